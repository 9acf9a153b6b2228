package ad

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
)

// The share is kept, survivors are scaled, and the same seed and draw give the same elements in float64, in the gradient
// and in a checkpoint; others give others.
func TestDropout(t *testing.T) {
	e := open(t)
	const n, share = 20000, 0.3
	ones := make([]float64, n)
	for i := range ones {
		ones[i] = 1
	}
	run := func(seed int32, draw uint32, build func(x, seed *Value) *Value) []float64 {
		f, err := Compile(e, "dropout", func(_ *Tape, in []*Value) []*Value {
			return []*Value{build(in[0], in[1])}
		})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Free()
		out, err := f.Call(engine.Float64s(ones, 100, n/100), engine.Int32s([]int32{seed}, 1))
		if err != nil {
			t.Fatal(err)
		}
		return float64s(t, out[0])
	}
	plain := func(draw uint32) func(x, seed *Value) *Value {
		return func(x, seed *Value) *Value { return Dropout(x, seed, draw, share) }
	}
	first := run(7, 1, plain(1))
	dropped, neighbours := 0, 0
	for i, v := range first {
		switch {
		case v == 0:
			dropped++
			if i > 0 && first[i-1] == 0 {
				neighbours++
			}
		case math.Abs(v-1/(1-share)) > 1e-6:
			t.Fatalf("element %d is %v", i, v)
		}
	}
	// Five standard deviations.
	if d := math.Abs(float64(dropped) - n*share); d > 5*math.Sqrt(n*share*(1-share)) {
		t.Errorf("%d of %d dropped", dropped, n)
	}
	if d := math.Abs(float64(neighbours) - n*share*share); d > 6*math.Sqrt(n*share*share) {
		t.Errorf("%d neighbours dropped of %d", neighbours, n)
	}
	for name, other := range map[string][]float64{"seed": run(8, 1, plain(1)), "draw": run(7, 2, plain(2)), "negative seed": run(-7, 1, plain(1))} {
		both := 0
		for i := range first {
			if first[i] == 0 && other[i] == 0 {
				both++
			}
		}
		if d := math.Abs(float64(both) - n*share*share); d > 6*math.Sqrt(n*share*share) {
			t.Errorf("another %s: %d elements dropped by both", name, both)
		}
	}
	gradient := run(7, 1, func(x, seed *Value) *Value { return Gradient(SumAll(Dropout(x, seed, 1, share)), x)[0] })
	checkpoint := run(7, 1, func(x, seed *Value) *Value {
		y := Checkpoint(func(a, p []*Value) *Value { return Square(Dropout(a[0], p[0], 1, share)) }, []*Value{x}, []*Value{seed})
		return Scale(Gradient(SumAll(y), x)[0], 0.5*(1-share))
	})
	if !slices.Equal(first, gradient) {
		t.Error("the gradient drops other elements")
	}
	for i := range first {
		if math.Abs(first[i]-checkpoint[i]) > 1e-6 {
			t.Fatalf("in a checkpoint element %d is %v, not %v", i, checkpoint[i], first[i])
		}
	}
	whole := run(7, 1, func(x, seed *Value) *Value { return Dropout(x, seed, 1, 0) })
	if !slices.Equal(whole, ones) {
		t.Error("a share of zero drops something")
	}
}
