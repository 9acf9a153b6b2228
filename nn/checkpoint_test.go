package nn

import (
	"strings"
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// A block takes the parameters and adapters of its modules, and not those of one whose name only begins alike.
func TestBlock(t *testing.T) {
	b := NewBuilder()
	first, second := NewLinear(b.At("block.1"), 3, 3, true), NewLinear(b.At("block.10"), 3, 3, false)
	var names []string
	for _, spec := range b.Specs() {
		names = append(names, spec.Name)
	}
	draw := func() []*engine.Tensor {
		s := random.New(2, "block")
		inputs := []*engine.Tensor{engine.Float32s(s.Normals(6), 2, 3)}
		for _, spec := range b.Specs() {
			inputs = append(inputs, engine.Float32s(s.Normals(spec.Size()), spec.Shape...))
		}
		return append(inputs, engine.Float32s(s.Normals(3), 1, 3), engine.Float32s(s.Normals(3), 3, 1))
	}
	gradients := func(paths []string, checkpoints bool) ([]float32, error) {
		return evaluate(t, func(in []*ad.Value) *ad.Value {
			w := NewWeights(names, in[1:1+len(names)])
			w = w.WithAdapter(map[string]Factors{"block.1": {Down: in[4], Up: in[5], Scale: 2}})
			if checkpoints {
				w = w.WithCheckpoints()
			}
			y := w.Block(paths, func(w *Weights, in []*ad.Value) *ad.Value {
				return SiLU(second.Apply(w, SiLU(first.Apply(w, in[0]))))
			}, in[0])
			var all []*ad.Value
			for _, g := range ad.Gradient(ad.SumAll(ad.Square(y)), in...) {
				all = append(all, ad.Reshape(g, g.Size()))
			}
			return ad.Concat(0, all...)
		}, draw()...)
	}
	values, err := gradients([]string{"block.1", "block.10"}, false)
	want := must(t, values, err)
	doubles := make([]float64, len(want))
	for i, v := range want {
		doubles[i] = float64(v)
	}
	got, err := gradients([]string{"block.1", "block.10"}, true)
	close32(t, "gradients with a checkpoint", must(t, got, err), doubles)
	if _, err := gradients([]string{"block.1"}, true); err == nil || !strings.Contains(err.Error(), `"block.10.weight"`) {
		t.Errorf("a parameter outside the block: %v", err)
	}
}
