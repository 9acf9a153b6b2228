package random

import (
	"math"
	"testing"
)

func TestStreamsArePureFunctionsOfTheirKeys(t *testing.T) {
	a, b := New(7, "noise", 3).Normals(64), New(7, "noise", 3).Normals(64)
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("draw %d differs: %v and %v", i, a[i], b[i])
		}
	}
	for name, other := range map[string]*Stream{
		"seed": New(8, "noise", 3), "step": New(7, "noise", 4), "purpose": New(7, "noise3"), "split": New(7, "noi", "se", 3),
	} {
		if got := float32(other.Normal()); got == a[0] {
			t.Errorf("changing the %s does not change the first draw", name)
		}
	}
}

func TestNormalMoments(t *testing.T) {
	const n = 200_000
	s := New(1, "moments")
	var m1, m2, m4 float64
	for range n {
		x := s.Normal()
		m1 += x / n
		m2 += x * x / n
		m4 += x * x * x * x / n
	}
	// Standard errors: 1/√n, √2/√n, √96/√n; five of each.
	for _, c := range []struct{ got, want, se float64 }{{m1, 0, 1}, {m2, 1, math.Sqrt2}, {m4, 3, math.Sqrt(96)}} {
		if math.Abs(c.got-c.want) > 5*c.se/math.Sqrt(n) {
			t.Errorf("moment %g, want %g", c.got, c.want)
		}
	}
}

func TestIntNAndPermCoverTheirRange(t *testing.T) {
	s := New(2, "range")
	counts := make([]int, 7)
	for range 7000 {
		counts[s.IntN(7)]++
	}
	for i, c := range counts {
		if c < 850 || c > 1150 { // five standard errors of a binomial(7000, 1/7) are ±146
			t.Errorf("value %d came up %d times of 7000", i, c)
		}
	}
	seen := make([]bool, 50)
	for _, v := range s.Perm(50) {
		if seen[v] {
			t.Fatalf("%d appears twice", v)
		}
		seen[v] = true
	}
}
