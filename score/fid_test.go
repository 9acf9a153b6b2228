package score

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// drawFeatures is the function features of scripts/score_statistics.py.
func drawFeatures(name string, count, width int) [][]float32 {
	h := fnv.New64a()
	h.Write([]byte(name))
	state := h.Sum64()
	out := make([][]float32, count)
	for i := range out {
		sum := 0.0
		for range width {
			state += 0x9e3779b97f4a7c15
			z := (state ^ state>>30) * 0xbf58476d1ce4e5b9
			z = (z ^ z>>27) * 0x94d049bb133111eb
			sum += float64((z^z>>31)>>40)/(1<<24) - 0.5
			out[i] = append(out[i], float32(max(sum, 0)))
		}
	}
	return out
}

type distances struct {
	Frechet []struct {
		A, B, Width int
		Distance    float64
	}
	Kernel struct {
		Pictures, Width int
		Distance        float64
	}
}

// readDistances gives the distances that pytorch-fid and NumPy computed.
func readDistances(t *testing.T) (d distances) {
	t.Helper()
	content, err := os.ReadFile("testdata/distances.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func moments(t testing.TB, features [][]float32) Statistics {
	t.Helper()
	s, err := Moments(features)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestFrechetAgainstPytorchFID(t *testing.T) {
	for _, c := range readDistances(t).Frechet {
		x := moments(t, drawFeatures(fmt.Sprintf("x %d %d", c.A, c.Width), c.A, c.Width))
		y := moments(t, drawFeatures(fmt.Sprintf("y %d %d", c.B, c.Width), c.B, c.Width))
		for _, pair := range [][2]Statistics{{x, y}, {y, x}} {
			got, err := Frechet(pair[0], pair[1])
			if err != nil {
				t.Fatal(err)
			}
			// A root of a singular product, of fewer pictures than features, is less certain there.
			tolerance := 1e-8
			if min(c.A, c.B) <= c.Width {
				tolerance = 1e-6
			}
			if off := math.Abs(got/c.Distance - 1); off > tolerance {
				t.Errorf("%d and %d pictures, %d features: %v instead of %v, %.2g off", c.A, c.B, c.Width, got, c.Distance, off)
			}
		}
		same, err := Frechet(x, x)
		if err != nil || math.Abs(same) > 1e-6 {
			t.Errorf("the distance to itself is %v, %v", same, err)
		}
	}
}

// Two normal distributions with the covariances QDQᵀ of one Q: the distance is known in closed form.
func TestFrechetOfCommutingCovariances(t *testing.T) {
	const n = 150
	r := random.New(1, "commuting")
	v := make([]float64, n) // the reflection 1 − 2vvᵀ is the Q
	norm := 0.0
	for i := range v {
		v[i] = r.Normal()
		norm += v[i] * v[i]
	}
	a, b := Statistics{Mean: make([]float64, n)}, Statistics{Mean: make([]float64, n)}
	want := 0.0
	diagonal := [2][]float64{}
	for i := range n {
		a.Mean[i], b.Mean[i] = r.Normal(), r.Normal()
		p, q := r.Float64(), 100*r.Float64()
		if i%7 == 0 {
			p = 0
		}
		diagonal[0], diagonal[1] = append(diagonal[0], p), append(diagonal[1], q)
		want += (a.Mean[i]-b.Mean[i])*(a.Mean[i]-b.Mean[i]) + p + q - 2*math.Sqrt(p*q)
	}
	for k, s := range []*Statistics{&a, &b} {
		m := newSymmetric(n)
		for i := range n {
			for j := range i + 1 {
				sum := 0.0
				for l, d := range diagonal[k] {
					left, right := -2*v[i]*v[l]/norm, -2*v[j]*v[l]/norm
					if i == l {
						left++
					}
					if j == l {
						right++
					}
					sum += left * d * right
				}
				m.row(i)[j], m.row(j)[i] = sum, sum
			}
		}
		s.Covariance = m.values
	}
	got, err := Frechet(a, b)
	if err != nil || math.Abs(got/want-1) > 1e-9 {
		t.Errorf("%v instead of %v, %v", got, want, err)
	}
}

// The second-difference matrix has the eigenvalues 2 − 2 cos(πk/(n+1)).
func TestEigenvalues(t *testing.T) {
	for _, n := range []int{1, 2, 3, 64, 301} {
		dense := newSymmetric(n)
		for i := range n {
			dense.row(i)[i] = 2
			if i > 0 {
				dense.row(i)[i-1], dense.row(i - 1)[i] = -1, -1
			}
		}
		// The same eigenvalues in a full matrix: between two reflections.
		r := random.New(2, "reflection", n)
		v := make([]float64, n)
		norm := 0.0
		for i := range v {
			v[i] = r.Normal()
			norm += v[i] * v[i]
		}
		for range 2 { // M ← (1 − 2vvᵀ/|v|²)·M, transposed in between
			for i := range n {
				along := dot(dense.row(i), v) * 2 / norm
				for j := range n {
					dense.row(i)[j] -= along * v[j]
				}
			}
			for i := range n {
				for j := range i {
					dense.row(i)[j], dense.row(j)[i] = dense.row(j)[i], dense.row(i)[j]
				}
			}
		}
		got, err := dense.eigenvalues()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		for k, v := range got {
			if want := 2 - 2*math.Cos(math.Pi*float64(k+1)/float64(n+1)); math.Abs(v-want) > 1e-13*float64(n+10) {
				t.Fatalf("n = %d: eigenvalue %d is %v instead of %v", n, k, v, want)
			}
		}
	}
}

func TestMomentsByHand(t *testing.T) {
	s := moments(t, [][]float32{{1, 2}, {3, 2}, {5, 8}})
	want := Statistics{Mean: []float64{3, 4}, Covariance: []float64{4, 6, 6, 12}}
	if !slices.Equal(s.Mean, want.Mean) || !slices.Equal(s.Covariance, want.Covariance) {
		t.Errorf("%v instead of %v", s, want)
	}
}

// More pictures than are laid out at once, and features that do not fill the blocks.
func TestMomentsOfManyPictures(t *testing.T) {
	const count, n = 2100, 131
	features := drawFeatures("many", count, n)
	got := moments(t, features)
	for _, place := range [][2]int{{0, 0}, {3, 130}, {130, 3}, {127, 128}, {64, 64}} {
		i, j := place[0], place[1]
		sum := 0.0
		for _, f := range features {
			sum += (float64(f[i]) - got.Mean[i]) * (float64(f[j]) - got.Mean[j])
		}
		if want := sum / (count - 1); math.Abs(got.Covariance[i*n+j]-want) > 1e-12 {
			t.Errorf("covariance of %d and %d: %v instead of %v", i, j, got.Covariance[i*n+j], want)
		}
	}
}

func TestFrechetRefuses(t *testing.T) {
	good := moments(t, drawFeatures("good", 10, 2))
	for what, bad := range map[string]Statistics{
		"of another network": moments(t, drawFeatures("other", 10, 3)),
		"asymmetric":         {Mean: []float64{0, 0}, Covariance: []float64{1, 0.5, 0, 1}},
		"indefinite":         {Mean: []float64{0, 0}, Covariance: []float64{1, 2, 2, 1}},
		"negative":           {Mean: []float64{0, 0}, Covariance: []float64{-1, 0, 0, 1}},
		"not a number":       {Mean: []float64{0, math.NaN()}, Covariance: []float64{1, 0, 0, 1}},
		"empty":              {},
	} {
		for _, pair := range [][2]Statistics{{good, bad}, {bad, good}} {
			if d, err := Frechet(pair[0], pair[1]); err == nil {
				t.Errorf("statistics %s give %v", what, d)
			}
		}
	}
	if _, err := Moments(drawFeatures("one", 1, 4)); err == nil {
		t.Error("one picture has a covariance")
	}
	if _, err := Moments([][]float32{{1, 2}, {1}}); err == nil {
		t.Error("features of two lengths are pooled")
	}
}

func TestKIDAgainstNumPy(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	want := readDistances(t).Kernel
	x, y := drawFeatures("x kernel", want.Pictures, want.Width), drawFeatures("y kernel", want.Pictures, want.Width)
	whole, err := KID(t.Context(), e, x, y, Subsets{Count: 1, Size: 1000})
	if err != nil || math.Abs(whole.Mean-want.Distance) > 1e-6 || whole.SD != 0 {
		t.Errorf("%v instead of %v, %v", whole, want.Distance, err)
	}
	parts, err := KID(t.Context(), e, x, y, Subsets{Count: 200, Size: 30, Seed: 1})
	if err != nil || parts.SD == 0 || math.Abs(parts.Mean-want.Distance) > 4*parts.SD/math.Sqrt(200) {
		t.Errorf("over subsets %v, over all %v, %v", parts, want.Distance, err)
	}
	again, err := KID(t.Context(), e, x, y, Subsets{Count: 200, Size: 30, Seed: 1})
	if err != nil || again != parts {
		t.Errorf("the same seed gives %v and %v, %v", parts, again, err)
	}
	other, err := KID(t.Context(), e, x, y, Subsets{Count: 200, Size: 30, Seed: 2})
	if err != nil || other == parts {
		t.Errorf("another seed gives %v too, %v", other, err)
	}
	if _, err := KID(t.Context(), e, x[:1], y, DefaultSubsets()); err == nil {
		t.Error("one picture has a kernel distance")
	}
}

func BenchmarkFrechet2048(b *testing.B) {
	x, y := moments(b, drawFeatures("x", 4000, 2048)), moments(b, drawFeatures("y", 4000, 2048))
	for b.Loop() {
		d, err := Frechet(x, y)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(d, "distance")
	}
}

func BenchmarkMoments2048(b *testing.B) {
	features := drawFeatures("x", 4000, 2048)
	for b.Loop() {
		moments(b, features)
	}
}
