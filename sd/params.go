package sd

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/weights"
)

// Params are the numbers of a model: an ordered, named list of tensors on the engine's device, in the engine's layout.
type Params struct {
	Specs   []nn.Spec
	Tensors []*engine.Tensor
	stored  []stored          // how the checkpoint holds each, for writing back
	extra   []*weights.Tensor // what the checkpoint holds beside the model: buffers such as position_ids
}

type stored struct {
	name  string
	dtype weights.DType
	shape []int
}

// Names lists the parameters' names, in order.
func (p *Params) Names() []string {
	names := make([]string, len(p.Specs))
	for i, s := range p.Specs {
		names[i] = s.Name
	}
	return names
}

// Count is the number of single numbers.
func (p *Params) Count() int {
	n := 0
	for _, s := range p.Specs {
		n += s.Size()
	}
	return n
}

// Weights pairs the parameters' names with the inputs of a graph.
func (p *Params) Weights(values []*ad.Value) *nn.Weights { return nn.NewWeights(p.Names(), values) }

// WithTensors is the same list of parameters with other numbers.
func (p *Params) WithTensors(ts []*engine.Tensor) *Params {
	next := *p
	next.Tensors = ts
	return &next
}

// Free releases the tensors.
func (p *Params) Free() { engine.Free(p.Tensors...) }

// FromHost makes parameters from host arrays in the checkpoint's layout, in the order of specs.
func FromHost(specs []nn.Spec, values [][]float32) (*Params, error) {
	p := &Params{Specs: specs}
	for i, s := range specs {
		if len(values[i]) != s.Size() {
			return nil, fmt.Errorf("parameter %q needs %d numbers, not %d", s.Name, s.Size(), len(values[i]))
		}
		p.Tensors = append(p.Tensors, engine.Float32s(s.ToEngine(values[i]), s.EngineShape()...))
		p.stored = append(p.stored, stored{name: s.Name, dtype: weights.F32, shape: s.Shape})
	}
	return p, nil
}

// RandomParams draws the parameters of a model that has no checkpoint, as PyTorch's layers do.
func RandomParams(specs []nn.Spec, seed uint64) *Params {
	values := make([][]float32, len(specs))
	for i, s := range specs {
		r := random.New(seed, "init", s.Name)
		v := make([]float32, s.Size())
		for k := range v {
			switch s.Init {
			case nn.Ones:
				v[k] = 1
			case nn.Embedding:
				v[k] = float32(0.02 * r.Normal())
			case nn.Fan:
				v[k] = float32((2*r.Float64() - 1) / math.Sqrt(float64(s.Fan)))
			}
		}
		values[i] = v
	}
	p, err := FromHost(specs, values)
	if err != nil {
		panic(err) // the arrays were sized from the same specs three lines up
	}
	return p
}

// LoadParams reads the parameters that specs describes straight to where an engine computes, or to the host if it is nil.
// Every missing name, every name in the file that the model does not have, and every wrong shape is listed in one error.
// alias may give a second name for a parameter; unneeded tells which names of the file are not parameters.
func LoadParams(e *engine.Engine, source weights.FileSource, where string, specs []nn.Spec, alias func(string) string, unneeded func(string) bool) (*Params, error) {
	p := &Params{Specs: specs}
	have := map[string]bool{}
	for _, name := range source.Names() {
		have[name] = true
	}
	var missing, wrong []string
	for _, s := range specs {
		name := s.Name
		if !have[name] && alias != nil && have[alias(name)] {
			name = alias(name)
		}
		if !have[name] {
			missing = append(missing, s.Name)
			continue
		}
		delete(have, name)
		t, err := source.Tensor(name)
		if err != nil {
			p.Free()
			return nil, err
		}
		if !sameShape(t.Shape, s) {
			wrong = append(wrong, fmt.Sprintf("%s is %v instead of %v", name, t.Shape, s.Shape))
			continue
		}
		x, err := e.Made(func(values []float32) error { return read(t, s, values) }, s.EngineShape()...)
		if err != nil {
			p.Free()
			return nil, fmt.Errorf("%s: tensor %q: %w", where, name, err)
		}
		p.Tensors = append(p.Tensors, x)
		p.stored = append(p.stored, stored{name: name, dtype: t.DType, shape: slices.Clone(t.Shape)})
	}
	var unused []string
	for _, name := range source.Names() {
		if !have[name] {
			continue
		}
		if unneeded == nil || !unneeded(name) {
			unused = append(unused, name)
			continue
		}
		t, err := source.Tensor(name)
		if err != nil {
			p.Free()
			return nil, err
		}
		p.extra = append(p.extra, t)
	}
	if len(missing)+len(unused)+len(wrong) > 0 {
		p.Free()
		return nil, mismatch(where, missing, unused, wrong)
	}
	return p, nil
}

// read puts the numbers of a checkpoint's tensor into an array in the engine's layout.
func read(t *weights.Tensor, s nn.Spec, values []float32) error {
	if err := t.Float32Into(values); err != nil {
		return err
	}
	if moved := s.ToEngine(values); len(moved) > 0 && &moved[0] != &values[0] {
		copy(values, moved)
	}
	return nil
}

// mismatch lists every difference between a file and its model; a shortened list hides the one that explains the rest.
func mismatch(where string, missing, unused, wrong []string) error {
	var parts []string
	for _, part := range []struct {
		what  string
		names []string
	}{{"missing", missing}, {"not part of this model", unused}, {"of the wrong shape", wrong}} {
		if len(part.names) > 0 {
			parts = append(parts, fmt.Sprintf("%d tensors %s: %s", len(part.names), part.what, strings.Join(part.names, ", ")))
		}
	}
	return errors.New(where + ": the weights do not fit the model's config.json; " + strings.Join(parts, "; "))
}

// sameShape accepts linear weights that are stored as 1×1 convolutions, as old autoencoders are.
func sameShape(shape []int, s nn.Spec) bool {
	if slices.Equal(shape, s.Shape) {
		return true
	}
	return s.Layout == nn.Plain && len(s.Shape) == 2 && slices.Equal(shape, []int{s.Shape[0], s.Shape[1], 1, 1})
}

// Host copies one parameter to the host, in the checkpoint's layout.
func (p *Params) Host(i int) ([]float32, error) { return p.host(i, p.Tensors[i]) }

// host is Host for a tensor that stands for parameter i.
func (p *Params) host(i int, t *engine.Tensor) ([]float32, error) {
	values, err := engine.Values(t)
	if err != nil {
		return nil, fmt.Errorf("parameter %q: %w", p.Specs[i].Name, err)
	}
	return p.Specs[i].FromEngine(values), nil
}

// Export gives the parameters as host tensors with the names, shapes and data types of the checkpoint they came from,
// followed by whatever else that checkpoint held.
func (p *Params) Export() ([]*weights.Tensor, error) {
	var out []*weights.Tensor
	for _, d := range p.Deferred() {
		t, err := d.Read()
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// Deferred is Export with each tensor copied to the host when it is read. The parameters must not be freed before.
func (p *Params) Deferred() []weights.Deferred {
	return p.deferred(func(i int) (*engine.Tensor, func(), error) { return p.Tensors[i], func() {}, nil })
}

// deferred is Deferred for numbers that are made when they are needed: by number, which gives those of a parameter and what
// to call when they were copied.
func (p *Params) deferred(number func(i int) (t *engine.Tensor, done func(), err error)) []weights.Deferred {
	var out []weights.Deferred
	for i, s := range p.stored {
		out = append(out, weights.Deferred{Name: s.name, DType: s.dtype, Shape: s.shape, Read: func() (*weights.Tensor, error) {
			t, done, err := number(i)
			if err != nil {
				return nil, err
			}
			defer done()
			values, err := p.host(i, t)
			if err != nil {
				return nil, err
			}
			return weights.FromFloat32(s.name, s.dtype, s.shape, values)
		}})
	}
	return append(out, weights.DeferAll(p.extra)...)
}
