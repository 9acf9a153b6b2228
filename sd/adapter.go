package sd

import (
	"fmt"
	"maps"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/weights"
)

// Adapter is a low-rank adapter (LoRA) of some of the UNet's layers. Like the networks it holds the architecture;
// its numbers are Params.
type Adapter struct {
	Layers []Layer
	Rank   int
	Scale  float64 // alpha / rank
}

// NewAdapter describes an adapter of the given rank.
func NewAdapter(layers []Layer, rank int, scale float64) (*Adapter, error) {
	for _, l := range layers {
		if rank < 1 || rank > min(l.fields(), l.Out) {
			return nil, fmt.Errorf("rank %d does not fit layer %s of %d inputs and %d outputs", rank, l.Path, l.fields(), l.Out)
		}
	}
	if len(layers) == 0 {
		return nil, fmt.Errorf("an adapter needs at least one layer to sit on")
	}
	return &Adapter{Layers: layers, Rank: rank, Scale: scale}, nil
}

// Specs lists the factors, down before up for each layer: MODULE.lora_A.weight [rank, in], MODULE.lora_B.weight
// [out, rank]; of a convolution [rank, in, height, width] and [out, rank, 1, 1].
func (a *Adapter) Specs() []nn.Spec {
	var specs []nn.Spec
	for _, l := range a.Layers {
		down := nn.Spec{Name: l.Path + ".lora_A.weight", Shape: []int{a.Rank, l.In}}
		up := nn.Spec{Name: l.Path + ".lora_B.weight", Shape: []int{l.Out, a.Rank}}
		if l.convolution() {
			down.Shape, down.Layout = append(down.Shape, l.Kernel[:]...), nn.Kernel
			up.Shape, up.Layout = append(up.Shape, 1, 1), nn.Kernel
		}
		specs = append(specs, down, up)
	}
	return specs
}

// Draw makes the factors: normal numbers of the given standard deviations. An up factor of zero leaves the model
// unchanged at first, as a fresh adapter should.
func (a *Adapter) Draw(seed uint64, downStd, upStd float64) *Params {
	specs := a.Specs()
	values := make([][]float32, len(specs))
	for i, s := range specs {
		std := downStd
		if i%2 == 1 {
			std = upStd
		}
		r := random.New(seed, "adapter", s.Name)
		values[i] = make([]float32, s.Size())
		for k := range values[i] {
			values[i][k] = float32(std * r.Normal())
		}
	}
	p, err := FromHost(specs, values)
	if err != nil {
		panic(err) // sized from the same specs
	}
	return p
}

// Factors pairs the adapter's layers with values, in the order of Specs.
func (a *Adapter) Factors(values []*ad.Value) map[string]nn.Factors {
	out := make(map[string]nn.Factors, len(a.Layers))
	for i, l := range a.Layers {
		out[l.Path] = nn.Factors{Down: values[2*i], Up: values[2*i+1], Scale: a.Scale}
	}
	return out
}

// LoRA exports the adapter's numbers.
func (a *Adapter) LoRA(p *Params) (*weights.LoRA, error) {
	out := &weights.LoRA{}
	for i, l := range a.Layers {
		down, err := p.Host(2 * i)
		if err != nil {
			return nil, err
		}
		up, err := p.Host(2*i + 1)
		if err != nil {
			return nil, err
		}
		out.Layers = append(out.Layers, weights.LoRALayer{
			Module: l.Path, Down: down, Up: up, Rank: a.Rank, In: l.In, Out: l.Out, Kernel: l.Kernel, Alpha: a.Scale * float64(a.Rank),
		})
	}
	return out, nil
}

// Merge adds the adapter into the weights of the UNet: W + scale·up·down, as new tensors for the layers it sits on. The
// others are shared with base, so only the new ones, which are returned as well, may be freed.
func (m *Model) Merge(base *Params, a *Adapter, factors *Params) (merged *Params, made []*engine.Tensor, err error) {
	merge, layers, err := m.merger(base, a, factors)
	if err != nil {
		return nil, nil, err
	}
	tensors := slices.Clone(base.Tensors)
	for _, k := range slices.Sorted(maps.Keys(layers)) {
		if tensors[k], err = merge(k); err != nil {
			return nil, made, err
		}
		made = append(made, tensors[k])
	}
	return base.WithTensors(tensors), made, nil
}

// merging is Merge for writing: each weight is made when it is read, and freed when it was copied.
func (m *Model) merging(base *Params, a *Adapter, factors *Params) ([]weights.Deferred, error) {
	merge, layers, err := m.merger(base, a, factors)
	if err != nil {
		return nil, err
	}
	return base.deferred(func(i int) (*engine.Tensor, func(), error) {
		if _, changed := layers[i]; !changed {
			return base.Tensors[i], func() {}, nil
		}
		t, err := merge(i)
		return t, func() { engine.Free(t) }, err
	}), nil
}

// merger merges an adapter into one weight of base at a time. layers gives the adapter's layer for each parameter that it
// changes.
func (m *Model) merger(base *Params, a *Adapter, factors *Params) (merge func(i int) (*engine.Tensor, error), layers map[int]int, err error) {
	f, err := m.function(fmt.Sprintf("merge adapter of rank %d ×%g", a.Rank, a.Scale), func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		// In the engine's layout a convolution's change is the same product, with kernel and inputs in one row.
		up, down := ad.Reshape(in[2], in[2].Dim(0), a.Rank), ad.Reshape(in[1], a.Rank, in[1].Size()/a.Rank)
		change := ad.Reshape(ad.MatMul(up, down, false, false), in[0].Dims()...)
		return []*ad.Value{ad.Add(in[0], ad.Scale(change, a.Scale))}
	})
	if err != nil {
		return nil, nil, err
	}
	at := make(map[string]int, len(base.Specs))
	for i, s := range base.Specs {
		at[s.Name] = i
	}
	layers = map[int]int{}
	for i, l := range a.Layers {
		k, ok := at[l.Path+".weight"]
		if !ok {
			return nil, nil, fmt.Errorf("the model has no layer %s", l.Path)
		}
		layers[k] = i
	}
	return func(k int) (*engine.Tensor, error) {
		i := layers[k]
		out, err := f.Call(base.Tensors[k], factors.Tensors[2*i], factors.Tensors[2*i+1])
		if err != nil {
			return nil, err
		}
		return out[0], nil
	}, layers, nil
}

// Params pairs the adapter's factors with tensors, in the order of Specs.
func (a *Adapter) Params(ts []*engine.Tensor) *Params {
	p := &Params{Specs: a.Specs(), Tensors: ts}
	for _, s := range p.Specs {
		p.stored = append(p.stored, stored{name: s.Name, dtype: weights.F32, shape: s.Shape})
	}
	return p
}
