package onnx

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// lowering writes a network as a graph of the engine, for inputs of given shapes.
type lowering struct {
	g      *graph.Graph
	opset  int
	native bool // the backend's own convolution is its fastest
	values map[string]*value
	memo   map[any]*graph.Node
	budget budget
}

// operator writes one kind of operator.
type operator struct {
	inputs [2]int // how many it takes, at least and at most
	// host computes it where all inputs are known; nil if that never happens, or not for these inputs.
	host func(n *node, in []*array) []*array
	// device writes it; nil for operators that only shapes are computed with.
	device func(l *lowering, n *node, in []*value) []*value
}

// run writes the operators one after the other.
func (l *lowering) run(nodes []*node) {
	for _, n := range nodes {
		l.step(n)
	}
}

// step writes one operator, and names it in what goes wrong.
func (l *lowering) step(n *node) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case failure:
			panic(failure{fmt.Sprintf("%s %s", n, r.message)})
		case error:
			panic(fmt.Errorf("%s: %w", n, r))
		default:
			panic(fmt.Errorf("%s: %v", n, r))
		}
	}()
	op := operators[n.op]
	in := make([]*value, len(n.inputs))
	known := true
	for i, name := range n.inputs {
		if name == "" {
			continue
		}
		if in[i] = l.values[name]; in[i] == nil {
			fail("reads %q, an output of an operator that has none of that number", name)
		}
		known = known && in[i].host != nil
	}
	for len(in) > 0 && in[len(in)-1] == nil {
		in = in[:len(in)-1]
	}
	if len(in) < op.inputs[0] || len(in) > op.inputs[1] || slices.Contains(in[:op.inputs[0]], nil) {
		fail("has %d inputs; it takes %d to %d", len(in), op.inputs[0], op.inputs[1])
	}
	var out []*value
	switch {
	case n.op == "Shape" || n.op == "Size":
		out = []*value{onHost(shapeOf(n, in[0]))}
	case known && op.host != nil && !tooLarge(in):
		arrays := make([]*array, len(in))
		for i, v := range in {
			if v != nil {
				arrays[i] = v.host
			}
		}
		for _, a := range op.host(n, arrays) {
			out = append(out, onHost(a))
		}
	}
	if out == nil {
		if op.device == nil {
			fail("has inputs that depend on the picture, which is only supported where they depend on shapes")
		}
		out = op.device(l, n, in)
	}
	for i, v := range out {
		if i >= len(n.outputs) {
			break
		}
		if v.host == nil {
			l.fits(v.dims...)
		} else {
			l.charge(v.size())
		}
		l.values[n.outputs[i]] = v
	}
}

// tooLarge tells whether inputs are weights that the engine had better work on.
func tooLarge(in []*value) bool {
	for _, v := range in {
		if v != nil && v.size() > maxHost {
			return true
		}
	}
	return false
}

// shapeOf computes Shape and Size, which never look at the numbers.
func shapeOf(n *node, v *value) *array {
	if n.op == "Size" {
		return intArray([]int64{int64(v.size())})
	}
	start, end := clampRange(n.int("start", 0), n.int("end", v.rank()), v.rank())
	var dims []int64
	for _, d := range v.dims[start:max(start, end)] {
		dims = append(dims, int64(d))
	}
	return intArray(dims, len(dims))
}

// clampRange counts negative places from the end and keeps both within 0 and n.
func clampRange(start, end, n int) (int, int) {
	fit := func(i int) int {
		if i < 0 {
			i += n
		}
		return min(max(i, 0), n)
	}
	return fit(start), fit(end)
}

// clampInt keeps numbers of the file, such as "to the end" as 2⁶³−1, in the range that sums of them fit in.
func clampInt(v int64) int { return int(min(max(v, -maxExtent), maxExtent)) }

func (n *node) int(name string, otherwise int) int {
	if a := n.attributes[name]; a != nil {
		return clampInt(a.i)
	}
	return otherwise
}

func (n *node) float(name string, otherwise float32) float32 {
	if a := n.attributes[name]; a != nil {
		return a.f
	}
	return otherwise
}

func (n *node) text(name, otherwise string) string {
	if a := n.attributes[name]; a != nil {
		return a.s
	}
	return otherwise
}

// list returns a list of numbers; nil if there is none.
func (n *node) list(name string) []int {
	a := n.attributes[name]
	if a == nil {
		return nil
	}
	out := make([]int, len(a.ints))
	for i, v := range a.ints {
		out[i] = clampInt(v)
	}
	return out
}

// listOf is list for a number of values, all otherwise if they are not given.
func (n *node) listOf(name string, count, otherwise int) []int {
	out := n.list(name)
	if out == nil {
		out = slices.Repeat([]int{otherwise}, count)
	}
	if len(out) != count {
		fail("has %d numbers in %q instead of %d", len(out), name, count)
	}
	return out
}

// axis checks an axis of an array of the given rank; negative ones count from the end.
func axis(i, rank int) int {
	if i < -rank || i >= rank {
		fail("names the axis %d of an array with %d", i, rank)
	}
	if i < 0 {
		i += rank
	}
	return i
}

// axes checks a set of axes.
func axes(list []int, rank int) []int {
	out := make([]int, len(list))
	for i, a := range list {
		if out[i] = axis(a, rank); slices.Contains(out[:i], out[i]) {
			fail("names the axis %d twice", a)
		}
	}
	return out
}

// whole returns the whole numbers of an input that must be known; nil if the input is not there.
func whole(in []*array, i int, what string) []int {
	if i >= len(in) || in[i] == nil {
		return nil
	}
	if in[i].dtype.IsFloat() {
		fail("needs whole numbers as %s, not %s", what, in[i].dtype)
	}
	out := make([]int, len(in[i].ints))
	for k, v := range in[i].ints {
		out[k] = clampInt(v)
	}
	return out
}

// hosts returns the inputs as far as they are known.
func hosts(in []*value) []*array {
	out := make([]*array, len(in))
	for i, v := range in {
		if v != nil {
			out[i] = v.host
		}
	}
	return out
}

// knownInput returns an input that the operator needs to know while the program is built; nil if it is not there.
func knownInput(in []*value, i int, what string) *array {
	if i >= len(in) || in[i] == nil {
		return nil
	}
	if in[i].host == nil {
		fail("computes its %s from the picture, which is not supported", what)
	}
	return in[i].host
}

// number is a known scalar.
func number(a *array, otherwise float32) float32 {
	switch {
	case a == nil:
		return otherwise
	case a.size() != 1:
		fail("needs a single number, not an array of shape %v", a.dims)
	case !a.dtype.IsFloat():
		return float32(a.ints[0])
	}
	return a.floats[0]
}
