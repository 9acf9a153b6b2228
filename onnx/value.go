package onnx

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// value is an array of the network while its program is built. It is known on the host, or a node of the engine's graph,
// or both.
//
// The axes of a node may lie in another order than the network has them in: position p of the node is axis order[p].
// A transpose then is a matter of words, and pictures keep their channels last from one convolution to the next.
type value struct {
	host  *array
	node  *graph.Node
	dims  []int // as the network has them
	order []int
}

// natural is the order in which axes lie as the network has them.
func natural(rank int) []int {
	order := make([]int, rank)
	for i := range order {
		order[i] = i
	}
	return order
}

// channelsLast is the order [B, spatial…, C] of an array [B, C, spatial…].
func channelsLast(rank int) []int {
	order := natural(rank)
	if rank > 2 {
		order = append(append([]int{0}, order[2:]...), 1)
	}
	return order
}

func (v *value) rank() int { return len(v.dims) }

func (v *value) size() int { return product(v.dims) }

// at is the position of an axis in the node.
func (v *value) at(axis int) int { return slices.Index(v.order, axis) }

// physical are dimensions in an order.
func physical(dims, order []int) []int {
	out := make([]int, len(order))
	for p, axis := range order {
		out[p] = dims[axis]
	}
	return out
}

// onHost wraps an array that is known.
func onHost(a *array) *value {
	return &value{host: a, dims: a.dims, order: natural(len(a.dims))}
}

// in returns the value as a node whose axes lie in an order.
func (l *lowering) in(v *value, order []int) *graph.Node {
	if v.node == nil {
		return l.constant(v.host, order)
	}
	if slices.Equal(v.order, order) {
		return v.node
	}
	perm := make([]int, len(order))
	for p, axis := range order {
		perm[p] = v.at(axis)
	}
	if moved(v, order) {
		return graph.TransposeAllAxes(v.node, perm...)
	}
	return graph.Reshape(v.node, physical(v.dims, order)...)
}

// moved tells whether numbers change places between the order of a value and another: not if only axes of one do.
func moved(v *value, order []int) bool {
	long := func(order []int) []int {
		return slices.DeleteFunc(slices.Clone(order), func(axis int) bool { return v.dims[axis] == 1 })
	}
	return !slices.Equal(long(v.order), long(order))
}

// plain returns the value as a node whose axes lie as the network has them.
func (l *lowering) plain(v *value) *graph.Node { return l.in(v, natural(v.rank())) }

// device wraps a node whose dimensions, in the network's order, are dims.
func device(n *graph.Node, dims, order []int) *value {
	return &value{node: n, dims: dims, order: order}
}

// like wraps a node with the dimensions and the order of another value.
func like(v *value, n *graph.Node) *value { return device(n, v.dims, v.order) }

// lift gives every value a node, in its own order.
func (l *lowering) lift(v *value) *value {
	if v.node != nil {
		return v
	}
	if !v.host.dtype.IsFloat() {
		fail("computes with whole numbers (%s) that depend on more than shapes, which is not supported", v.host.dtype)
	}
	return device(l.constant(v.host, v.order), v.dims, v.order)
}

// constant puts an array into the graph, its axes in an order.
func (l *lowering) constant(a *array, order []int) *graph.Node {
	if !a.dtype.IsFloat() {
		fail("needs numbers of type float, not %s", a.dtype)
	}
	key := constantKey{a, fmt.Sprint(order)}
	return l.memoize(key, func() *graph.Node {
		moved := transposeArray(a, order)
		if product(moved.dims) == 0 {
			fail("computes with an array of shape %v, which has no elements", moved.dims)
		}
		return graph.ConstTensor(l.g, tensors.FromFlatDataAndDimensions(moved.floats, moved.dims...))
	})
}

// constantKey tells constants apart. It keeps the array alive, so that no other one takes its place.
type constantKey struct {
	a     *array
	order string
}

// indices puts a list of row numbers into the graph, as a gather takes them.
func (l *lowering) indices(list []int32) *graph.Node {
	return graph.ConstTensor(l.g, tensors.FromFlatDataAndDimensions(list, len(list), 1))
}

func (l *lowering) memoize(key any, make func() *graph.Node) *graph.Node {
	if n, ok := l.memo[key]; ok {
		return n
	}
	n := make()
	l.memo[key] = n
	return n
}

// reshape gives a value other dimensions. Axes that lie in another order than the network has them in may stay there if
// the reshaping joins and splits neighbours only.
func (l *lowering) reshape(v *value, dims []int) *value {
	if v.host != nil {
		a := *v.host
		a.dims = dims
		return onHost(&a)
	}
	order, ok := reshapedOrder(v, dims)
	if !ok {
		return device(graph.Reshape(l.plain(v), dims...), dims, natural(len(dims)))
	}
	return device(graph.Reshape(v.node, physical(dims, order)...), dims, order)
}

// reshapedOrder finds where the new axes lie: old and new ones are taken in runs that hold the same numbers, and each old
// run must lie together and in order.
func reshapedOrder(v *value, dims []int) ([]int, bool) {
	runOf := make([]int, v.rank()) // old axis → its run
	var news [][]int               // run → new axes
	for i, j := 0, 0; i < v.rank() || j < len(dims); {
		run, a, b := len(news), 1, 1
		var axes []int
		takeOld := func() { a *= v.dims[i]; runOf[i] = run; i++ }
		takeNew := func() { b *= dims[j]; axes = append(axes, j); j++ }
		if i < v.rank() {
			takeOld()
		}
		if j < len(dims) && (a == 1) == (dims[j] == 1) || i == v.rank() && j < len(dims) {
			takeNew()
		}
		for a != b {
			switch {
			case a < b && i < v.rank():
				takeOld()
			case b < a && j < len(dims):
				takeNew()
			default:
				return nil, false
			}
		}
		news = append(news, axes)
	}
	var order []int
	placed := make([]bool, len(news))
	for p := 0; p < v.rank(); {
		run := runOf[v.order[p]]
		first := slices.Index(runOf, run)
		for k := first; k < v.rank() && runOf[k] == run; k, p = k+1, p+1 {
			if p >= v.rank() || v.order[p] != k {
				return nil, false
			}
		}
		order = append(order, news[run]...)
		placed[run] = true
	}
	for run, axes := range news {
		if !placed[run] {
			order = append(order, axes...) // axes of one that had no counterpart
		}
	}
	return order, true
}

// joint brings values to a common rank and order, that of the largest one that is a node, as numpy combines shapes: by the
// last axes. It returns the nodes, the combined dimensions and the order.
func (l *lowering) joint(vs ...*value) ([]*graph.Node, []int, []int) {
	rank := 0
	for _, v := range vs {
		rank = max(rank, v.rank())
	}
	wide := make([]*value, len(vs))
	dims := make([]int, rank)
	for i := range dims {
		dims[i] = 1
	}
	var lead *value
	for i, v := range vs {
		wide[i] = l.widen(v, rank)
		for axis, d := range wide[i].dims {
			if d != 1 && dims[axis] != 1 && d != dims[axis] {
				fail("combines arrays of shapes %v and %v, which do not fit", vs[0].dims, v.dims)
			}
			if dims[axis] == 1 {
				dims[axis] = d
			}
		}
		if wide[i].node != nil && (lead == nil || wide[i].size() > lead.size()) {
			lead = wide[i]
		}
	}
	order := natural(rank)
	if lead != nil {
		order = lead.order
	}
	nodes := make([]*graph.Node, len(vs))
	for i, v := range wide {
		nodes[i] = l.in(v, order)
	}
	return nodes, dims, order
}

// widen puts axes of one before the others.
func (l *lowering) widen(v *value, rank int) *value {
	extra := rank - v.rank()
	if extra == 0 {
		return v
	}
	dims := append(slices.Repeat([]int{1}, extra), v.dims...)
	if v.node == nil {
		a := *v.host
		a.dims = dims
		return onHost(&a)
	}
	order := natural(extra)
	for _, axis := range v.order {
		order = append(order, axis+extra)
	}
	return device(graph.Reshape(v.node, physical(dims, order)...), dims, order)
}

// failure is what makes a model unusable; the lowering adds the operator and the file.
type failure struct{ message string }

func fail(format string, args ...any) { panic(failure{fmt.Sprintf(format, args...)}) }
