package ad

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
)

// Window describes a two-dimensional convolution: the kernel's height and width, the stride of both, and the zeros
// added on each side.
type Window struct {
	KH, KW, Stride           int
	Top, Bottom, Left, Right int
}

// Same is the window of a k×k kernel with padding k/2, for odd k.
func Same(k, stride int) Window {
	p := k / 2
	return Window{KH: k, KW: k, Stride: stride, Top: p, Bottom: p, Left: p, Right: p}
}

func (w Window) out(h, width int) (int, int) {
	return (h+w.Top+w.Bottom-w.KH)/w.Stride + 1, (width+w.Left+w.Right-w.KW)/w.Stride + 1
}

func (w Window) pointwise() bool { return w == Window{KH: 1, KW: 1, Stride: 1} }

// Conv2D convolves pictures x [B, H, W, C] with kernels k [O, KH, KW, C]; the result is [B, H', W', O]. As in the
// field's libraries the kernel is not mirrored.
func Conv2D(x, k *Value, w Window) *Value { return Conv2DIn(Precision{x.DType(), x.DType()}, x, k, w) }

// Conv2DIn is Conv2D of pictures and kernels of any types, in the given precision.
func Conv2DIn(p Precision, x, k *Value, w Window) *Value {
	checkConv(x, k, w)
	t := x.tape
	y := t.conv(t.convert(x.node, p.Factors), t.convert(k.node, p.Factors), p.Result, w)
	return t.value(y, func(v *Value, i int) *Value {
		if i == 0 {
			return convInput(Precision{p.Factors, x.DType()}, v, k, w, x.Dim(1), x.Dim(2))
		}
		return convKernel(Precision{p.Factors, k.DType()}, x, v, w)
	}, x, k)
}

func checkConv(x, k *Value, w Window) {
	if x.Rank() != 4 || k.Rank() != 4 || x.Dim(3) != k.Dim(3) || k.Dim(1) != w.KH || k.Dim(2) != w.KW {
		panic(fmt.Errorf("ad: cannot convolve %v with kernels %v in a %d×%d window", x.Dims(), k.Dims(), w.KH, w.KW))
	}
	if h, width := w.out(x.Dim(1), x.Dim(2)); h < 1 || width < 1 {
		panic(fmt.Errorf("ad: pictures %v are smaller than the %d×%d window", x.Dims(), w.KH, w.KW))
	}
}

// convKernel is the derivative of Conv2D with respect to its kernels, given the cotangent v [B, H', W', O].
func convKernel(p Precision, x, v *Value, w Window) *Value {
	t := x.tape
	k := t.convKernel(t.convert(x.node, p.Factors), t.convert(v.node, p.Factors), p.Result, w)
	return t.value(k, func(u *Value, i int) *Value {
		if i == 0 {
			return convInput(Precision{p.Factors, x.DType()}, v, u, w, x.Dim(1), x.Dim(2))
		}
		return Conv2DIn(Precision{p.Factors, v.DType()}, x, u, w)
	}, x, v)
}

// deep tells whether kernels with this many outputs are larger than their pictures, as in the depth of a UNet. The
// convolution of XLA on processors falls to a tenth of its speed there.
func (t *Tape) deep(positions, outputs int) bool { return positions < outputs }

// conv lowers Conv2D, with the result in the given type. The Go backend gets a matrix product with the unfolded picture,
// accelerators their convolution, XLA on processors what is faster for the shape.
func (t *Tape) conv(x, k *graph.Node, result dtypes.DType, w Window) *graph.Node {
	xd, kd := x.Shape().Dimensions, k.Shape().Dimensions
	h, width := w.out(xd[1], xd[2])
	if t.native && !w.pointwise() && !(t.processor && t.deep(xd[0]*h*width, kd[0])) {
		axes := compute.ConvolveAxesConfig{
			InputBatch: 0, InputChannels: 3, InputSpatial: []int{1, 2},
			KernelOutputChannels: 0, KernelSpatial: []int{1, 2}, KernelInputChannels: 3,
			OutputBatch: 0, OutputChannels: 3, OutputSpatial: []int{1, 2},
		}
		y := graph.ConvGeneral(x, k, axes, []int{w.Stride, w.Stride}, [][2]int{{w.Top, w.Bottom}, {w.Left, w.Right}}, nil, nil, 1, 1)
		return graph.ConvertDType(y, result)
	}
	unfolded := xd[0] * h * width * kd[1] * kd[2] * kd[3] * x.DType().Size()
	if strips := (unfolded + stripBytes - 1) / stripBytes; strips > 1 && !w.pointwise() {
		return t.convStrips(x, k, result, w, min(h, strips))
	}
	return t.multiplyWindows(t.unfold(x, w), k, result)
}

// multiplyWindows is windows [B, H, W, KH, KW, C] by kernels [O, KH, KW, C]: [B, H, W, O].
func (t *Tape) multiplyWindows(windows, k *graph.Node, result dtypes.DType) *graph.Node {
	d, o := windows.Shape().Dimensions, k.Shape().Dimensions[0]
	y := t.contract(windows, k, result, []int{3, 4, 5}, []int{1, 2, 3})
	return graph.Reshape(y, d[0], d[1], d[2], o)
}

// contract sums products over the last axes of a and the first or last ones of b. On the Go backend a matrix may lie in
// several axes, while to reshape it would copy it if it is a parameter or needed again; XLA on processors multiplies such
// matrices at a fifth of its speed, and reshapes for nothing.
func (t *Tape) contract(a, b *graph.Node, result dtypes.DType, axesA, axesB []int) *graph.Node {
	if t.native {
		ad, bd := a.Shape().Dimensions, b.Shape().Dimensions
		shape := append(slices.Clone(ad[:axesA[0]]), slices.Delete(slices.Clone(bd), axesB[0], axesB[0]+len(axesB))...)
		summed := size(ad[axesA[0]:])
		a = graph.Reshape(a, -1, summed)
		if axesB[0] == 0 {
			return graph.Reshape(graph.Dot(a, graph.Reshape(b, summed, -1)).WithOutputDType(result).General([]int{1}, nil, []int{0}, nil), shape...)
		}
		return graph.Reshape(graph.Dot(a, graph.Reshape(b, -1, summed)).WithOutputDType(result).General([]int{1}, nil, []int{1}, nil), shape...)
	}
	return graph.Dot(a, b).WithOutputDType(result).General(axesA, nil, axesB, nil)
}

// stripBytes bounds the unfolded picture, which is KH·KW times as large as the picture itself: a decoder at 512×512
// would need more than 1 GB for one layer.
const stripBytes = 192 << 20

// convStrips convolves horizontal strips of the picture one after the other.
func (t *Tape) convStrips(x, k *graph.Node, result dtypes.DType, w Window, strips int) *graph.Node {
	h, _ := w.out(x.Shape().Dimensions[1], x.Shape().Dimensions[2])
	padded := t.padPicture(x, w)
	var parts []*graph.Node
	for s := range strips {
		from, to := s*h/strips, (s+1)*h/strips
		if from == to {
			continue
		}
		strip := graph.Slice(padded, graph.AxisRange(), graph.AxisRange(from*w.Stride, (to-1)*w.Stride+w.KH))
		bare := Window{KH: w.KH, KW: w.KW, Stride: w.Stride}
		parts = append(parts, t.multiplyWindows(t.unfold(strip, bare), k, result))
	}
	return graph.Concatenate(parts, 1)
}

// convKernel lowers the derivative for kernels: Vᵀ [O, BH'W'] times the unfolded picture [BH'W', KH·KW·C].
func (t *Tape) convKernel(x, v *graph.Node, result dtypes.DType, w Window) *graph.Node {
	xd, vd := x.Shape().Dimensions, v.Shape().Dimensions
	if t.native && !w.pointwise() && !(t.processor && t.deep(vd[0]*vd[1]*vd[2], vd[3])) {
		// A convolution in which channels and batch change places: pictures [C, H, W, B] with kernels v.
		axes := compute.ConvolveAxesConfig{
			InputBatch: 3, InputChannels: 0, InputSpatial: []int{1, 2},
			KernelOutputChannels: 3, KernelSpatial: []int{1, 2}, KernelInputChannels: 0,
			OutputBatch: 3, OutputChannels: 0, OutputSpatial: []int{1, 2},
		}
		// With a stride the last rows of the picture may not have been read at all; the padding is then cut short.
		bottom := (vd[1]-1)*w.Stride + w.KH - xd[1] - w.Top
		right := (vd[2]-1)*w.Stride + w.KW - xd[2] - w.Left
		k := graph.ConvGeneral(x, v, axes, nil, [][2]int{{w.Top, bottom}, {w.Left, right}}, nil, []int{w.Stride, w.Stride}, 1, 1)
		return graph.ConvertDType(k, result)
	}
	windows, positions, width := t.unfold(x, w), vd[0]*vd[1]*vd[2], w.KH*w.KW*xd[3]
	flat := graph.Reshape(v, positions, vd[3])
	if t.native || positions*vd[3] > (positions+vd[3])*width { // there are few channels, and the windows are turned
		windows = graph.Reshape(windows, positions, width)
		return graph.Reshape(t.matMul(flat, windows, result, true, false), vd[3], w.KH, w.KW, xd[3])
	}
	turned := graph.Reshape(t.swapLast(flat), vd[3], vd[0], vd[1], vd[2])
	return t.contract(turned, windows, result, []int{1, 2, 3}, []int{0, 1, 2})
}

// unfold writes for each output position the pixels in its window: [B, H', W', KH, KW, C]. On the Go backend a gather of
// rows, whose indices are constants, does that at 8 GB/s; nine slices and a concatenation reach 3, but suit XLA.
func (t *Tape) unfold(x *graph.Node, w Window) *graph.Node {
	xd := x.Shape().Dimensions
	c := xd[3]
	if w.pointwise() {
		return graph.Reshape(x, xd[0], xd[1], xd[2], 1, 1, c)
	}
	return t.memoize(fmt.Sprintf("unfold %d %v", x.Id(), w), func() *graph.Node {
		h, width := w.out(xd[1], xd[2])
		padded := t.padPicture(x, w)
		if t.native {
			return t.unfoldSlices(padded, w, h, width)
		}
		ph, pw := xd[1]+w.Top+w.Bottom, xd[2]+w.Left+w.Right
		indices := t.windowIndices(xd[0], h, width, ph, pw, w)
		rows := graph.Gather(graph.Reshape(padded, xd[0]*ph*pw, c), indices)
		return graph.Reshape(rows, xd[0], h, width, w.KH, w.KW, c)
	})
}

func (t *Tape) unfoldSlices(padded *graph.Node, w Window, h, width int) *graph.Node {
	d := padded.Shape().Dimensions
	var parts []*graph.Node
	for i := range w.KH {
		for j := range w.KW {
			rows := graph.AxisRange(i, i+(h-1)*w.Stride+1).Stride(w.Stride)
			columns := graph.AxisRange(j, j+(width-1)*w.Stride+1).Stride(w.Stride)
			parts = append(parts, graph.Slice(padded, graph.AxisRange(), rows, columns))
		}
	}
	return graph.Reshape(graph.Concatenate(parts, 3), d[0], h, width, w.KH, w.KW, d[3])
}

func (t *Tape) padPicture(x *graph.Node, w Window) *graph.Node {
	if w.Top == 0 && w.Bottom == 0 && w.Left == 0 && w.Right == 0 {
		return x
	}
	zero := graph.ScalarZero(t.g, x.DType())
	return graph.Pad(x, zero, compute.PadAxis{}, compute.PadAxis{Start: w.Top, End: w.Bottom}, compute.PadAxis{Start: w.Left, End: w.Right}, compute.PadAxis{})
}

// windowIndices lists, for every position of the output and of the window, the row of the padded picture it reads.
func (t *Tape) windowIndices(batch, h, width, ph, pw int, w Window) *graph.Node {
	key := fmt.Sprintf("window %d %d %d %d %d %v", batch, h, width, ph, pw, w)
	return t.memoize(key, func() *graph.Node {
		indices := make([]int32, 0, batch*h*width*w.KH*w.KW)
		for b := range batch {
			for y := range h {
				for x := range width {
					for i := range w.KH {
						for j := range w.KW {
							indices = append(indices, int32((b*ph+y*w.Stride+i)*pw+x*w.Stride+j))
						}
					}
				}
			}
		}
		return graph.Reshape(graph.Const(t.g, indices), len(indices), 1)
	})
}

// Upsample2 repeats every pixel of x [B, H, W, C] in a 2×2 block: nearest-neighbour upsampling.
func Upsample2(x *Value) *Value {
	d := x.Dims()
	b, h, w, c := d[0], d[1], d[2], d[3]
	// Joining a row of pixels with itself along an inner axis repeats it at memory speed on every backend.
	pixels := graph.Reshape(x.node, b*h*w, c)
	wide := graph.Reshape(graph.Concatenate([]*graph.Node{pixels, pixels}, 1), b*h, 2*w*c)
	tall := graph.Reshape(graph.Concatenate([]*graph.Node{wide, wide}, 1), b, 2*h, 2*w, c)
	return x.tape.value(tall, func(v *Value, _ int) *Value { return SumBlocks2(v) }, x)
}

// SumBlocks2 adds up every 2×2 block of pixels of x [B, 2H, 2W, C].
func SumBlocks2(x *Value) *Value {
	d := x.Dims()
	b, h, w, c := d[0], d[1]/2, d[2]/2, d[3]
	half := func(n *graph.Node, rows, width int) *graph.Node {
		n = graph.Reshape(n, rows, 2*width)
		left := graph.Slice(n, graph.AxisRange(), graph.AxisRange(0, width))
		right := graph.Slice(n, graph.AxisRange(), graph.AxisRange(width, 2*width))
		return graph.Add(left, right)
	}
	flat := half(x.node, b*h, 2*w*c)
	sum := graph.Reshape(half(flat, b*h*w, c), b, h, w, c)
	return x.tape.value(sum, func(v *Value, _ int) *Value { return Upsample2(v) }, x)
}
