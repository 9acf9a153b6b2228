package onnx

import (
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// kernelOrder is the order [O, KH, KW, C] of kernels [O, C, KH, KW].
var kernelOrder = channelsLast(4)

var convOp = operator{
	inputs: [2]int{2, 3},
	device: func(l *lowering, n *node, in []*value) []*value {
		x, size := l.picture(in[0])
		k := in[1]
		if k.rank() != 4 {
			fail("has kernels of shape %v instead of four axes", k.dims)
		}
		w := windowOf(n, size, [2]int{k.dims[2], k.dims[3]})
		if given := n.list("kernel_shape"); given != nil && !slices.Equal(given, k.dims[2:]) {
			fail("has kernels of shape %v, but a window of %v", k.dims, given)
		}
		channels, groups := in[0].dims[1], n.int("group", 1)
		if groups < 1 || channels%groups != 0 || k.dims[0]%groups != 0 || k.dims[1]*groups != channels {
			fail("convolves %d channels in %d groups with kernels of shape %v", channels, groups, k.dims)
		}
		if k.size() == 0 {
			fail("has kernels of shape %v", k.dims)
		}
		var bias *graph.Node
		if len(in) > 2 {
			if in[2].size() != k.dims[0] {
				fail("has %d biases for %d kernels", in[2].size(), k.dims[0])
			}
			bias = graph.Reshape(l.plain(in[2]), k.dims[0])
		}
		l.fits(in[0].dims[0], w.out[0], w.out[1], k.dims[0])
		return []*value{picturesOf(l.conv(x, k, bias, w, groups, n.activation))}
	},
}

// conv convolves pictures [B, H, W, C] with kernels [O, C/groups, KH, KW], adds the bias and applies the activation.
func (l *lowering) conv(x *graph.Node, k *value, bias *graph.Node, w window, groups int, activation compute.ActivationType) *graph.Node {
	batch, c, o := x.Shape().Dimensions[0], x.Shape().Dimensions[3], k.dims[0]
	if l.native {
		l.spend(batch, w.out[0], w.out[1], k.size())
		return l.nativeConv(x, k, bias, w, groups, activation)
	}
	dims := []int{batch, w.out[0], w.out[1], o}
	switch {
	case groups == 1:
		kernel := l.matrix(k)
		if w.size == [2]int{1, 1} && w.stride == [2]int{1, 1} && w.padded() == w.in {
			return graph.Reshape(l.dense(graph.Reshape(x, batch*w.in[0]*w.in[1], c), kernel, bias, activation), dims...)
		}
		return l.unfolded(l.padPicture(x, w, 0), w, func(rows *graph.Node) *graph.Node {
			return l.dense(rows, kernel, bias, activation)
		})
	case groups == c && o == c:
		return l.depthwise(x, k, bias, w, activation)
	}
	return l.grouped(x, k, bias, w, groups, activation)
}

// nativeConv is the backend's own convolution.
func (l *lowering) nativeConv(x *graph.Node, k *value, bias *graph.Node, w window, groups int, activation compute.ActivationType) *graph.Node {
	layout := compute.ConvolveAxesConfig{
		InputBatch: 0, InputChannels: 3, InputSpatial: []int{1, 2},
		KernelOutputChannels: 0, KernelSpatial: []int{1, 2}, KernelInputChannels: 3,
		OutputBatch: 0, OutputChannels: 3, OutputSpatial: []int{1, 2},
	}
	pads := [][2]int{{w.before[0], w.after[0]}, {w.before[1], w.after[1]}}
	y := graph.ConvGeneral(x, l.in(k, kernelOrder), layout, w.stride[:], pads, nil, w.dilation[:], groups, 1)
	if bias != nil {
		y = graph.Add(y, graph.Reshape(bias, 1, 1, 1, k.dims[0]))
	}
	return l.activate(y, activation)
}

// matrix lays kernels out as a matrix [KH·KW·C, O].
func (l *lowering) matrix(k *value) *graph.Node {
	return graph.Reshape(l.in(k, []int{2, 3, 1, 0}), k.size()/k.dims[0], k.dims[0])
}

// stripBytes bounds the windows that are written out at once.
const stripBytes = 32 << 20

// unfolded writes the windows of padded pictures out, [rows, KH·KW·C], strip by strip if they are many, and joins what
// apply makes of them, [rows, O], to pictures [B, H', W', O].
func (l *lowering) unfolded(padded *graph.Node, w window, apply func(rows *graph.Node) *graph.Node) *graph.Node {
	d := padded.Shape().Dimensions
	batch, width := d[0], w.size[0]*w.size[1]*d[3]
	strips := min(w.out[0], (batch*w.out[0]*w.out[1]*width*4+stripBytes-1)/stripBytes)
	var parts []*graph.Node
	for s := range strips {
		from, to := s*w.out[0]/strips, (s+1)*w.out[0]/strips
		part := apply(l.windows(padded, w, from, to))
		parts = append(parts, graph.Reshape(part, batch, to-from, w.out[1], part.Shape().Dimensions[1]))
	}
	if len(parts) == 1 {
		return parts[0]
	}
	return graph.Concatenate(parts, 1)
}

type windowKey struct {
	w                   window
	batch, from, to     int
	height, width, each int
}

// windows writes out the windows of rows from to to of the output: [B·(to − from)·W', KH·KW·C]. Pixels that lie side by
// side are copied together.
func (l *lowering) windows(padded *graph.Node, w window, from, to int) *graph.Node {
	d := padded.Shape().Dimensions
	batch, height, width, c := d[0], d[1], d[2], d[3]
	together := 1
	if w.dilation[1] == 1 {
		together = w.size[1]
	}
	perRow := w.size[1] / together
	pieces := w.size[0] * perRow
	count := batch * (to - from) * w.out[1] * pieces
	l.fits(count, together, c)
	indices := l.memoize(windowKey{w, batch, from, to, height, width, together}, func() *graph.Node {
		list := make([]int32, 0, count)
		for b := range batch {
			for y := from; y < to; y++ {
				for x := range w.out[1] {
					for i := range w.size[0] {
						for j := range perRow {
							list = append(list, int32((b*height+y*w.stride[0]+i*w.dilation[0])*width+x*w.stride[1]+j*w.dilation[1]))
						}
					}
				}
			}
		}
		return l.indices(list)
	})
	pixels := graph.Reshape(padded, batch*height*width, c)
	picked := graph.GatherSlices(pixels, []int{0}, indices, []int{together}, false)
	return graph.Reshape(picked, count/pieces, pieces*together*c)
}

// depthwise convolves each channel with its own kernel: windows times kernels, summed over the window.
func (l *lowering) depthwise(x *graph.Node, k *value, bias *graph.Node, w window, activation compute.ActivationType) *graph.Node {
	c, area := k.dims[0], w.size[0]*w.size[1]
	kernel := graph.Reshape(l.in(k, []int{2, 3, 1, 0}), 1, area*c)
	y := l.unfolded(l.padPicture(x, w, 0), w, func(rows *graph.Node) *graph.Node {
		products := graph.Mul(rows, kernel)
		n := products.Shape().Dimensions[0]
		return graph.ReduceSum(graph.Reshape(products, n, area, c), 1)
	})
	if bias != nil {
		y = graph.Add(y, graph.Reshape(bias, 1, 1, 1, c))
	}
	return l.activate(y, activation)
}

// grouped convolves groups of channels one after the other.
func (l *lowering) grouped(x *graph.Node, k *value, bias *graph.Node, w window, groups int, activation compute.ActivationType) *graph.Node {
	c, o := x.Shape().Dimensions[3]/groups, k.dims[0]/groups
	pictures := picturesOf(x)
	kernels := l.lift(k)
	parts := make([]*graph.Node, groups)
	for g := range groups {
		input := l.cut(pictures, []slicing{{1, g * c, 1, c}})
		kernel := l.cut(kernels, []slicing{{0, g * o, 1, o}})
		var b *graph.Node
		if bias != nil {
			b = graph.Slice(bias, graph.AxisRange(g*o, (g+1)*o))
		}
		parts[g] = l.conv(input.node, kernel, b, w, 1, activation)
	}
	return graph.Concatenate(parts, 3)
}
