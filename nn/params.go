// Package nn holds the layers of diffusion models as pure functions: a layer knows its name in the checkpoint and the
// shapes of its parameters, never their numbers. The numbers come with each evaluation, so that one graph can run the
// same network at several points of parameter space, as bilevel training needs.
package nn

import (
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
)

// Layout says how a parameter lies in memory, in the checkpoint and in the engine.
type Layout int

const (
	// Plain parameters have the same layout in both: vectors, and linear weights [out, in].
	Plain Layout = iota
	// Kernel parameters are convolution weights: [out, in, height, width] in the checkpoint and
	// [out, height, width, in] in the engine, where channels come last.
	Kernel
)

// Spec describes one parameter of a model.
type Spec struct {
	Name   string // as in the checkpoint
	Shape  []int  // as in the checkpoint
	Layout Layout
	// Init says how a freshly made model draws it: Zeros, Ones or Fan (uniform in ±1/√fan-in).
	Init Init
	Fan  int // inputs to one output, for Fan
}

// Init is the distribution of a parameter in a model without a checkpoint.
type Init int

// The distributions of PyTorch's default initialisation, plus Normal(0, 0.02) for embeddings.
const (
	Fan Init = iota
	Zeros
	Ones
	Embedding
)

// EngineShape is the parameter's shape in the engine.
func (s Spec) EngineShape() []int {
	if s.Layout == Kernel {
		return []int{s.Shape[0], s.Shape[2], s.Shape[3], s.Shape[1]}
	}
	return slices.Clone(s.Shape)
}

// Size is the number of elements.
func (s Spec) Size() int {
	n := 1
	for _, d := range s.Shape {
		n *= d
	}
	return n
}

// ToEngine reorders the elements of a parameter from the checkpoint's layout to the engine's.
func (s Spec) ToEngine(values []float32) []float32 {
	if s.Layout == Plain || s.Shape[2]*s.Shape[3] == 1 {
		return values
	}
	return swapInner(values, s.Shape[0], s.Shape[1], s.Shape[2]*s.Shape[3])
}

// FromEngine is the inverse of ToEngine.
func (s Spec) FromEngine(values []float32) []float32 {
	if s.Layout == Plain || s.Shape[2]*s.Shape[3] == 1 {
		return values
	}
	return swapInner(values, s.Shape[0], s.Shape[2]*s.Shape[3], s.Shape[1])
}

// swapInner turns [outer, a, b] into [outer, b, a].
func swapInner(values []float32, outer, a, b int) []float32 {
	out := make([]float32, len(values))
	for o := range outer {
		block := o * a * b
		for i := range a {
			for j := range b {
				out[block+j*a+i] = values[block+i*b+j]
			}
		}
	}
	return out
}

// Builder collects the parameters of a model while its layers are laid out; its path mirrors the checkpoint's names.
type Builder struct {
	path  string
	specs *[]Spec
}

// NewBuilder starts a model without parameters.
func NewBuilder() Builder { return Builder{specs: &[]Spec{}} }

// At descends to a part of the model.
func (b Builder) At(name any) Builder {
	path := fmt.Sprint(name)
	if b.path != "" {
		path = b.path + "." + path
	}
	return Builder{path: path, specs: b.specs}
}

// Path is where the builder stands.
func (b Builder) Path() string { return b.path }

// Specs lists all parameters laid out so far, in order.
func (b Builder) Specs() []Spec { return slices.Clone(*b.specs) }

// Param adds a parameter and returns its full name.
func (b Builder) Param(name string, s Spec) string {
	s.Name = b.At(name).path
	*b.specs = append(*b.specs, s)
	return s.Name
}

// Weights gives the parameters of one evaluation their values, and carries the adapters that lie on top.
type Weights struct {
	values     map[string]*ad.Value
	adapters   []map[string]Factors
	checkpoint bool
	compute    Compute
	dropout    *dropout // nil: adapters take their inputs whole
}

// Factors are the low-rank update of one layer: y += Scale · up(down(x)). For a convolution down is one of the same
// window, and up a 1×1 convolution.
type Factors struct {
	Down  *ad.Value // [rank, in]; of a convolution [rank, height, width, in]
	Up    *ad.Value // [out, rank]; of a convolution [out, 1, 1, rank]
	Scale float64
}

// NewWeights pairs names with values; the lists have equal length.
func NewWeights(names []string, values []*ad.Value) *Weights {
	if len(names) != len(values) {
		panic(fmt.Errorf("nn: %d names for %d values", len(names), len(values)))
	}
	w := &Weights{values: make(map[string]*ad.Value, len(names))}
	for i, n := range names {
		w.values[n] = values[i]
	}
	return w
}

// With returns the weights with some of the parameters replaced.
func (w *Weights) With(names []string, values []*ad.Value) *Weights {
	next := *w
	next.values = make(map[string]*ad.Value, len(w.values))
	for n, v := range w.values {
		next.values[n] = v
	}
	for i, n := range names {
		if _, ok := next.values[n]; !ok {
			panic(fmt.Errorf("nn: the model has no parameter %q", n))
		}
		next.values[n] = values[i]
	}
	return &next
}

// WithAdapter returns the weights with one more adapter, by the module path of the layers it sits on.
func (w *Weights) WithAdapter(factors map[string]Factors) *Weights {
	next := *w
	next.adapters = append(slices.Clone(w.adapters), factors)
	return &next
}

func (w *Weights) value(name string) *ad.Value {
	v, ok := w.values[name]
	if !ok {
		panic(fmt.Errorf("nn: parameter %q was not given a value", name))
	}
	return v
}
