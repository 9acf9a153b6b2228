package nn

import (
	"slices"
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// What is dropped is the adapter's input: the layer's own product stays whole, and each layer draws for itself, within a
// checkpoint as without.
func TestDropoutOfAdapters(t *testing.T) {
	const width, rows, share = 32, 40, 0.5
	b := NewBuilder()
	first, second := NewLinear(b.At("one"), width, width, false), NewLinear(b.At("two"), width, width, false)
	names := []string{b.Specs()[0].Name, b.Specs()[1].Name}
	identity := make([]float32, width*width)
	for i := range width {
		identity[i*width+i] = 1
	}
	unit := func() *engine.Tensor { return engine.Float32s(identity, width, width) }
	x := random.New(4, "input").Normals(rows * width)
	run := func(l Linear, share float64, checkpoint bool) []float32 {
		got, err := evaluate(t, func(in []*ad.Value) *ad.Value {
			factors := Factors{Down: in[3], Up: in[3], Scale: 1}
			w := NewWeights(names, in[1:3]).WithAdapter(map[string]Factors{"one": factors, "two": factors}).WithDropout(share, in[4])
			if checkpoint {
				w = w.WithCheckpoints()
			}
			return w.Block([]string{"one", "two"}, func(w *Weights, in []*ad.Value) *ad.Value { return l.Apply(w, in[0]) }, in[0])
		}, engine.Float32s(x, rows, width), unit(), unit(), unit(), engine.Int32s([]int32{5}, 1))
		return must(t, got, err)
	}
	one := run(first, share, false)
	alone, tripled := 0, 0 // x + 0, or x + 2x
	for i, v := range x {
		switch one[i] {
		case v:
			alone++
		case v + 2*v:
			tripled++
		default:
			t.Fatalf("element %d is %v for an input of %v", i, one[i], v)
		}
	}
	if alone < len(x)*2/5 || tripled < len(x)*2/5 {
		t.Errorf("%d of %d inputs dropped", alone, len(x))
	}
	if slices.Equal(one, run(second, share, false)) {
		t.Error("two layers drop the same")
	}
	if !slices.Equal(one, run(first, share, true)) {
		t.Error("a checkpoint drops others")
	}
	for i, v := range run(first, 0, false) {
		if v != 2*x[i] {
			t.Fatalf("without dropout element %d is %v for an input of %v", i, v, x[i])
		}
	}
}
