package ad

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// Reshape gives the same elements another shape.
func Reshape(x *Value, dims ...int) *Value {
	if slices.Equal(x.Dims(), dims) {
		return x
	}
	from := x.Dims()
	return x.tape.value(graph.Reshape(x.node, dims...), func(v *Value, _ int) *Value { return Reshape(v, from...) }, x)
}

// Transpose reorders axes: axis i of the result is axis perm[i] of x.
func Transpose(x *Value, perm ...int) *Value {
	inverse := make([]int, len(perm))
	for i, p := range perm {
		inverse[p] = i
	}
	return x.tape.value(graph.TransposeAllAxes(x.node, perm...), func(v *Value, _ int) *Value {
		return Transpose(v, inverse...)
	}, x)
}

// Concat joins values along an axis; negative axes count from the end.
func Concat(axis int, xs ...*Value) *Value {
	if axis < 0 {
		axis += xs[0].Rank()
	}
	nodes := make([]*graph.Node, len(xs))
	starts := make([]int, len(xs)+1)
	for i, x := range xs {
		nodes[i] = x.node
		starts[i+1] = starts[i] + x.Dim(axis)
	}
	return xs[0].tape.value(graph.Concatenate(nodes, axis), func(v *Value, i int) *Value {
		return Slice(v, axis, starts[i], starts[i+1])
	}, xs...)
}

// Slice takes the positions [start, end) of one axis.
func Slice(x *Value, axis, start, end int) *Value {
	if axis < 0 {
		axis += x.Rank()
	}
	length := x.Dim(axis)
	if start == 0 && end == length {
		return x
	}
	ranges := make([]graph.SliceAxisSpec, x.Rank())
	for i := range ranges {
		ranges[i] = graph.AxisRange()
	}
	ranges[axis] = graph.AxisRange(start, end)
	return x.tape.value(graph.Slice(x.node, ranges...), func(v *Value, _ int) *Value {
		return pad(v, axis, start, length-end, 0)
	}, x)
}

// pad puts zeros before, after and (interior many) between the positions of one axis. Its derivative takes them away.
func pad(x *Value, axis, before, after, interior int) *Value {
	if before == 0 && after == 0 && interior == 0 {
		return x
	}
	length := x.Dim(axis)
	config := make([]compute.PadAxis, x.Rank())
	config[axis] = compute.PadAxis{Start: before, End: after, Interior: interior}
	zero := graph.ScalarZero(x.tape.g, x.node.DType())
	return x.tape.value(graph.Pad(x.node, zero, config...), func(v *Value, _ int) *Value {
		return unpad(v, axis, before, after, interior, length)
	}, x)
}

func unpad(x *Value, axis, before, after, interior, length int) *Value {
	ranges := make([]graph.SliceAxisSpec, x.Rank())
	for i := range ranges {
		ranges[i] = graph.AxisRange()
	}
	ranges[axis] = graph.AxisRange(before, x.Dim(axis)-after).Stride(interior + 1)
	return x.tape.value(graph.Slice(x.node, ranges...), func(v *Value, _ int) *Value {
		return pad(v, axis, before, after, interior)
	}, x)
}

// Flip reverses the order along one axis.
func Flip(x *Value, axis int) *Value {
	return x.tape.value(graph.Reverse(x.node, axis), func(v *Value, _ int) *Value { return Flip(v, axis) }, x)
}

// BroadcastTo repeats axes of one to the given dimensions.
func BroadcastTo(x *Value, dims ...int) *Value {
	from := x.Dims()
	if slices.Equal(from, dims) {
		return x
	}
	return x.tape.value(x.tape.broadcast(x.node, dims), func(v *Value, _ int) *Value { return SumTo(v, from...) }, x)
}

// SumTo sums the axes in which dims has one and x has more; these stay as axes of one. Numbers of half precision are
// added up in float32.
func SumTo(x *Value, dims ...int) *Value {
	from := x.Dims()
	if slices.Equal(from, dims) {
		return x
	}
	if len(from) != len(dims) {
		panic(fmt.Errorf("ad: shape %v cannot be summed to %v", from, dims))
	}
	var axes []int
	for i := range dims {
		switch {
		case from[i] == dims[i]:
		case dims[i] == 1:
			axes = append(axes, i)
		default:
			panic(fmt.Errorf("ad: shape %v cannot be summed to %v", from, dims))
		}
	}
	sum := inFloat32(x.node, func(n *graph.Node) *graph.Node {
		return graph.Reshape(graph.ReduceSum(n, axes...), dims...)
	})
	return x.tape.value(sum, func(v *Value, _ int) *Value { return BroadcastTo(v, from...) }, x)
}

// SumAll is the sum of all elements, a scalar.
func SumAll(x *Value) *Value {
	if x.Rank() == 0 {
		return x
	}
	ones := make([]int, x.Rank())
	for i := range ones {
		ones[i] = 1
	}
	return Reshape(SumTo(x, ones...))
}

// MeanAll is the mean of all elements, a scalar.
func MeanAll(x *Value) *Value { return Scale(SumAll(x), 1/float64(x.Size())) }

// GatherRows takes rows of a table [N, D] by their int32 indices, of any shape S: the result is [S…, D].
func GatherRows(table *Value, indices *Value) *Value {
	at := graph.InsertAxes(indices.node, -1)
	rows := table.Dims()
	return table.tape.value(graph.Gather(table.node, at), func(v *Value, _ int) *Value {
		return scatterRows(v, indices, rows)
	}, table)
}

// scatterRows adds rows [S…, D] into a table of zeros at their indices.
func scatterRows(updates, indices *Value, table []int) *Value {
	n := indices.Size()
	at := graph.Reshape(indices.node, n, 1)
	rows := graph.Reshape(updates.node, n, table[1])
	shape := updates.node.Shape().Clone()
	shape.Dimensions = slices.Clone(table)
	shape.AxisNames = nil
	return updates.tape.value(graph.Scatter(at, rows, shape, false, false), func(v *Value, _ int) *Value {
		return GatherRows(v, indices)
	}, updates)
}
