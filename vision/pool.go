package vision

import (
	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/ad"
)

// The networks of this package are only evaluated, never trained: the operations below have no derivatives.

// relu is max(x, 0).
func relu(x *ad.Value) *ad.Value {
	n := x.Node()
	return x.Tape().Input(graph.Max(n, graph.ScalarZero(n.Graph(), n.DType())))
}

// maxPool takes the largest value of every 3×3 or other square window of x [B, H, W, C], of what lies inside the picture.
// It is taken of columns first and then of rows, each as the maximum of shifted pictures, which on the Go engine is several
// times as fast as its own pooling.
func maxPool(x *ad.Value, size, stride, padding int) *ad.Value {
	n := x.Node()
	if padding > 0 {
		lowest := graph.Infinity(n.Graph(), n.DType(), -1)
		pad := compute.PadAxis{Start: padding, End: padding}
		n = graph.Pad(n, lowest, compute.PadAxis{}, pad, pad, compute.PadAxis{})
	}
	for _, axis := range []int{2, 1} {
		n = slide(n, axis, size, stride, graph.Max)
	}
	return x.Tape().Input(n)
}

// slide joins every window of size positions along an axis, stride positions apart, by an operation such as the maximum.
func slide(n *graph.Node, axis, size, stride int, join func(a, b *graph.Node) *graph.Node) *graph.Node {
	count := (n.Shape().Dimensions[axis]-size)/stride + 1
	var out *graph.Node
	for i := range size {
		ranges := []graph.SliceAxisSpec{graph.AxisRange(), graph.AxisRange(), graph.AxisRange(), graph.AxisRange()}
		ranges[axis] = graph.AxisRange(i, i+(count-1)*stride+1)
		if stride > 1 {
			ranges[axis] = ranges[axis].Stride(stride)
		}
		part := graph.Slice(n, ranges...)
		if out == nil {
			out = part
		} else {
			out = join(out, part)
		}
	}
	return out
}

// averagePool3 averages every 3×3 window of x [B, H, W, C], one position apart, over the positions inside the picture.
func averagePool3(x *ad.Value) *ad.Value {
	n := x.Node()
	h, w := x.Dim(1), x.Dim(2)
	pad := compute.PadAxis{Start: 1, End: 1}
	sum := graph.Pad(n, graph.ScalarZero(n.Graph(), n.DType()), compute.PadAxis{}, pad, pad, compute.PadAxis{})
	for _, axis := range []int{2, 1} {
		sum = slide(sum, axis, 3, 1, graph.Add)
	}
	inside := func(at, side int) int { return min(at+2, side) - max(at-1, 0) }
	shares := make([]float32, 0, h*w)
	for i := range h {
		for j := range w {
			shares = append(shares, 1/float32(inside(i, h)*inside(j, w)))
		}
	}
	tape := x.Tape()
	return ad.Mul(tape.Input(sum), tape.Constant(x, shares, 1, h, w, 1))
}
