package denoise

import (
	"math"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/hypergrad"
)

// Arithmetic on the device equals that of float64 vectors on the host, to the rounding of float32.
func TestSpaceEqualsHostArithmetic(t *testing.T) {
	e, err := engine.Open(enginetest.Spec())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	space := NewSpace(e)
	defer space.Free()
	like := Vector{engine.Float32s(make([]float32, 6), 2, 3), engine.Float32s(make([]float32, 1)), engine.Float32s(make([]float32, 40), 5, 2, 2, 2)}
	a, b, c := draw(like, "a"), draw(like, "b"), draw(like, "c")
	ha, hb, hc := numbers(t, a), numbers(t, b), numbers(t, c)
	host := hypergrad.Float64{}

	got, err := space.Dot(a, b)
	if err != nil {
		t.Fatal(err)
	}
	want, err := host.Dot(ha, hb)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(got-want) > 1e-5*length(ha)*length(hb) {
		t.Errorf("inner product is %g, want %g", got, want)
	}
	for _, k := range [][]float64{{2}, {0}, {1, -0.5}, {0.1, -3, 7}} {
		var terms []hypergrad.Term[Vector]
		var hostTerms []hypergrad.Term[[]float64]
		for i, x := range k {
			terms = append(terms, term(x, []Vector{a, b, c}[i]))
			hostTerms = append(hostTerms, hypergrad.Term[[]float64]{Coefficient: x, Vector: [][]float64{ha, hb, hc}[i]})
		}
		sum := combine(t, space, terms...)
		want, err := host.Combine(hostTerms...)
		if err != nil {
			t.Fatal(err)
		}
		if e := relative(numbers(t, sum), want); e > 1e-6 {
			t.Errorf("combination with %v differs by %g", k, e)
		}
		for i, x := range sum {
			if x == a[i] || x.Shape().String() != a[i].Shape().String() {
				t.Errorf("combination with %v: tensor %d is an operand, or of another shape", k, i)
			}
		}
		space.Release(sum)
	}
	if got := numbers(t, a); relative(got, ha) != 0 {
		t.Error("an operand changed")
	}
	if _, err := space.Dot(a, b[:1]); err == nil {
		t.Error("vectors of different lengths have an inner product")
	}
	if _, err := space.Combine(term(1, a), term(1, b[:2])); err == nil {
		t.Error("vectors of different lengths have a sum")
	}
	if _, err := space.Combine(); err == nil {
		t.Error("no vectors have a sum")
	}
}
