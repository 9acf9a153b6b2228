package onnx

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine"
)

// Options say how a model is compiled.
type Options struct {
	// ChannelsLast says that inputs with four axes, which the model has as pictures [B, C, H, W], will be given as
	// [B, H, W, C]. The Go backend then need not reorder them.
	ChannelsLast bool
}

// Program is a model on an engine. It is compiled on its first run for each combination of input shapes, and safe for
// concurrent use.
type Program struct {
	engine   *engine.Engine
	function *engine.Function
	model    *Model
	options  Options
	weights  []*engine.Tensor // of engines to which weights are inputs
}

// largeWeight is the number of elements from which on weights are inputs of a program instead of a part of it, where the
// compiler would have to read them as part of the text.
const largeWeight = 1024

// Compile prepares a model for an engine. It fails if the model has operators that are not supported. What depends on the
// shapes of inputs is found out by the first run.
func Compile(e *engine.Engine, m *Model, o Options) (*Program, error) {
	f := m.fuse()
	if err := supported(m, f.nodes); err != nil {
		return nil, err
	}
	p := &Program{engine: e, model: m, options: o}
	type placed struct {
		name  string
		order []int
	}
	var large []placed
	if e.NativeConvolutions() {
		seen := map[string]bool{}
		for _, n := range f.nodes {
			for i, name := range n.inputs {
				a := f.weights[name]
				if a == nil || seen[name] || !a.dtype.IsFloat() || a.size() < largeWeight {
					continue
				}
				seen[name] = true
				order := natural(len(a.dims))
				if n.op == "Conv" && i == 1 && len(a.dims) == 4 {
					order = kernelOrder
				}
				laid := transposeArray(a, order)
				large = append(large, placed{name, order})
				p.weights = append(p.weights, engine.Float32s(laid.floats, laid.dims...))
			}
		}
	}
	var err error
	p.function, err = e.NewFunction(m.Path, func(g *graph.Graph, inputs []*graph.Node) []*graph.Node {
		l := &lowering{g: g, opset: m.Opset, native: e.NativeConvolutions(), values: map[string]*value{}, memo: map[any]*graph.Node{}}
		elements := 0
		for name, a := range f.weights {
			l.values[name] = onHost(a)
			elements += a.size()
		}
		for i := range m.Inputs {
			elements += inputs[i].Shape().Size()
		}
		l.budget = newBudget(elements)
		for i, port := range m.Inputs {
			order := natural(inputs[i].Rank())
			if o.ChannelsLast && inputs[i].Rank() == 4 {
				order = channelsLast(4)
			}
			v := device(inputs[i], nil, order)
			v.dims = make([]int, len(order))
			for p, d := range inputs[i].Shape().Dimensions {
				v.dims[order[p]] = d
			}
			l.values[port.Name] = v
		}
		for i, w := range large {
			v := *l.values[w.name]
			v.node, v.order = inputs[len(m.Inputs)+i], w.order
			l.values[w.name] = &v
		}
		return l.outputs(m, f.nodes)
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// outputs writes the network and returns its outputs as the network has them.
func (l *lowering) outputs(m *Model, nodes []*node) []*graph.Node {
	defer func() {
		if r := recover(); r != nil {
			if f, ok := r.(failure); ok {
				panic(errors.New(failureMark + f.message))
			}
			panic(r)
		}
	}()
	l.run(nodes)
	out := make([]*graph.Node, len(m.Outputs))
	for i, port := range m.Outputs {
		v := l.values[port.Name]
		if v == nil {
			fail("the output %q is not computed", port.Name)
		}
		if v.node == nil && !v.host.dtype.IsFloat() {
			fail("the output %q depends on shapes alone and is of %s; only floats are supported", port.Name, v.host.dtype)
		}
		out[i] = l.plain(v)
	}
	return out
}

// supported names the first operator that cannot be computed.
func supported(m *Model, nodes []*node) error {
	for _, n := range nodes {
		if _, ok := operators[n.op]; ok && standardDomain(n.domain) {
			continue
		}
		return fmt.Errorf("%s: %s is not supported; only operators of image classifiers and YOLO detectors are, so export the network without it",
			m.Path, n)
	}
	return nil
}

// Run computes the outputs for inputs of float32, in the model's order. Inputs stay valid.
func (p *Program) Run(inputs ...*engine.Tensor) ([]*engine.Tensor, error) {
	if len(inputs) != len(p.model.Inputs) {
		return nil, fmt.Errorf("%s: %d inputs were given, but the model has %d", p.model.Path, len(inputs), len(p.model.Inputs))
	}
	for i, port := range p.model.Inputs {
		got := engine.Shape(inputs[i])
		if p.options.ChannelsLast && len(got) == 4 {
			got = []int{got[0], got[3], got[1], got[2]}
		}
		if !port.accepts(got) {
			return nil, fmt.Errorf("%s: the input %q has the shape %v, but the model takes %s", p.model.Path, port.Name, got, port.dims())
		}
		if !port.Type.IsFloat() {
			return nil, fmt.Errorf("%s: the input %q is of %s; only models that take floats are supported", p.model.Path, port.Name, port.Type)
		}
	}
	outputs, err := p.function.Call(append(slices.Clone(inputs), p.weights...)...)
	if err != nil {
		if _, what, ok := strings.Cut(err.Error(), failureMark); ok {
			return nil, fmt.Errorf("%s: %s; %s", p.model.Path, what, hint)
		}
	}
	return outputs, err
}

// failureMark begins what is wrong with a model in the errors of the engine, which say much else besides.
const failureMark = "the network cannot be computed: "

// accepts tells whether an array may be given for the port.
func (p Port) accepts(dims []int) bool {
	if p.Shape == nil {
		return true
	}
	return slices.EqualFunc(p.Shape, dims, func(want, got int) bool { return want < 0 || want == got })
}

// dims writes the dimensions with a question mark where the file leaves them open.
func (p Port) dims() string {
	return "[" + strings.ReplaceAll(strings.Trim(fmt.Sprint(p.Shape), "[]"), "-1", "?") + "]"
}

// Free releases the compiled program and the weights.
func (p *Program) Free() {
	p.function.Free()
	engine.Free(p.weights...)
}
