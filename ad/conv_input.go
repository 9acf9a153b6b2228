package ad

import (
	"fmt"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
)

// convInput is the derivative of Conv2D with respect to its pictures of height h and width width, given the cotangent v
// [B, H', W', O]: [B, h, width, C]. It is linear in v and in the kernels, and with convolution and convKernel closed under
// differentiation: ⟨convInput(v, k), u⟩ = ⟨v, Conv2D(u, k)⟩.
func convInput(p Precision, v, k *Value, w Window, h, width int) *Value {
	t := v.tape
	x := t.convInput(t.convert(v.node, p.Factors), t.convert(k.node, p.Factors), p.Result, w, h, width)
	return t.value(x, func(u *Value, i int) *Value {
		if i == 0 {
			return Conv2DIn(Precision{p.Factors, v.DType()}, u, k, w)
		}
		return convKernel(Precision{p.Factors, k.DType()}, u, v, w)
	}, v, k)
}

// convInput lowers the derivative. Where kernels are larger than pictures, as in the depth of a UNet, they are used as
// they lie, and each product is added where it belongs; otherwise the cotangent is convolved with the mirrored kernels.
func (t *Tape) convInput(v, k *graph.Node, result dtypes.DType, w Window, h, width int) *graph.Node {
	vd, kd := v.Shape().Dimensions, k.Shape().Dimensions
	if w.pointwise() {
		x := t.contract(v, k, result, []int{3}, []int{0}) // [B, H, W, 1, 1, C]
		return graph.Reshape(x, vd[0], h, width, kd[3])
	}
	if (!t.native || t.processor) && t.deep(vd[0]*vd[1]*vd[2], kd[0]) {
		return t.fold(v, k, result, w, h, width)
	}
	top, left := w.KH-1-w.Top, w.KW-1-w.Left
	spread := v
	if w.Stride > 1 {
		zero := graph.ScalarZero(t.g, v.DType())
		apart := compute.PadAxis{End: w.Stride - 1, Interior: w.Stride - 1}
		spread = graph.Pad(v, zero, compute.PadAxis{}, apart, apart, compute.PadAxis{})
	}
	sd := spread.Shape().Dimensions
	return t.conv(spread, t.mirrored(k), result, Window{
		KH: w.KH, KW: w.KW, Stride: 1,
		Top: top, Bottom: h + w.KH - 1 - sd[1] - top,
		Left: left, Right: width + w.KW - 1 - sd[2] - left,
	})
}

// mirrored turns kernels [O, KH, KW, C] about and exchanges their channels: [C, KH, KW, O].
func (t *Tape) mirrored(k *graph.Node) *graph.Node {
	return graph.TransposeAllAxes(graph.Reverse(k, 1, 2), 3, 1, 2, 0)
}

// fold multiplies every position of v [B, H', W', O] by the kernels, and adds up the KH·KW products that meet at each
// pixel of the picture [B, h, width, C]. Rows are gathered in the picture's order, as unfold does.
func (t *Tape) fold(v, k *graph.Node, result dtypes.DType, w Window, h, width int) *graph.Node {
	vd, kd := v.Shape().Dimensions, k.Shape().Dimensions
	positions, window, c := vd[0]*vd[1]*vd[2], w.KH*w.KW, kd[3]
	wide := result
	if wide.IsHalfPrecision() {
		wide = dtypes.Float32
	}
	if t.native {
		return graph.ConvertDType(t.foldSlices(t.contract(v, k, wide, []int{3}, []int{0}), w, h, width), result)
	}
	// A last position of zeros stands for all that lie outside.
	zero := graph.ScalarZero(t.g, v.DType())
	flat := graph.Pad(graph.Reshape(v, positions, kd[0]), zero, compute.PadAxis{End: 1}, compute.PadAxis{})
	products := t.contract(flat, k, wide, []int{1}, []int{0}) // [positions + 1, KH, KW, C]
	rows := graph.Gather(graph.Reshape(products, (positions+1)*window, c), t.foldIndices(vd[0], vd[1], vd[2], h, width, w))
	sum := graph.ReduceSum(graph.Reshape(rows, vd[0]*h*width, window, c), 1)
	return graph.ConvertDType(graph.Reshape(sum, vd[0], h, width, c), result)
}

// foldSlices is fold by slices, paddings and sums of products [B, H', W', KH, KW, C], which XLA makes one loop of.
func (t *Tape) foldSlices(products *graph.Node, w Window, h, width int) *graph.Node {
	d := products.Shape().Dimensions
	zero := graph.ScalarZero(t.g, products.DType())
	// apart puts row y of n at y·Stride + offset − before, of limit rows.
	apart := func(n, offset, before, limit int) compute.PadAxis {
		start := offset - before
		return compute.PadAxis{Start: start, End: limit - start - (n-1)*w.Stride - 1, Interior: w.Stride - 1}
	}
	var sum *graph.Node
	for i := range w.KH {
		for j := range w.KW {
			one := graph.Slice(products, graph.AxisRange(), graph.AxisRange(), graph.AxisRange(), graph.AxisRange(i, i+1), graph.AxisRange(j, j+1))
			one = graph.Reshape(one, d[0], d[1], d[2], d[5])
			one = graph.Pad(one, zero, compute.PadAxis{}, apart(d[1], i, w.Top, h), apart(d[2], j, w.Left, width), compute.PadAxis{})
			if sum == nil {
				sum = one
			} else {
				sum = graph.Add(sum, one)
			}
		}
	}
	return sum
}

// foldIndices lists, for every pixel of the picture and position of the window, the row of products that falls there.
func (t *Tape) foldIndices(batch, rows, columns, h, width int, w Window) *graph.Node {
	key := fmt.Sprintf("fold %d %d %d %d %d %v", batch, rows, columns, h, width, w)
	return t.memoize(key, func() *graph.Node {
		window := w.KH * w.KW
		// at is the output row or column that a pixel at x reaches through offset i of the window.
		at := func(x, i, before, limit int) (int, bool) {
			x += before - i
			return x / w.Stride, x >= 0 && x%w.Stride == 0 && x/w.Stride < limit
		}
		indices := make([]int32, 0, batch*h*width*window)
		for b := range batch {
			for y := range h {
				for x := range width {
					for i := range w.KH {
						for j := range w.KW {
							row, inside := at(y, i, w.Top, rows)
							column, within := at(x, j, w.Left, columns)
							position := batch * rows * columns
							if inside && within {
								position = (b*rows+row)*columns + column
							}
							indices = append(indices, int32(position*window+i*w.KW+j))
						}
					}
				}
			}
		}
		return graph.Reshape(graph.Const(t.g, indices), len(indices), 1)
	})
}
