package onnx

import (
	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// window describes how a kernel of height and width size moves over a picture.
type window struct {
	size, stride, dilation, before, after, in, out [2]int
}

// windowOf reads the settings that convolutions and pools share, for pictures of height and width in.
func windowOf(n *node, in, size [2]int) window {
	w := window{size: size, in: in}
	copy(w.stride[:], n.listOf("strides", 2, 1))
	copy(w.dilation[:], n.listOf("dilations", 2, 1))
	pads := n.listOf("pads", 4, 0)
	copy(w.before[:], pads[:2])
	copy(w.after[:], pads[2:])
	mode := n.text("auto_pad", "NOTSET")
	for i := range 2 {
		if size[i] < 1 || w.stride[i] < 1 || w.dilation[i] < 1 || w.before[i] < 0 || w.after[i] < 0 ||
			size[i] > maxExtent/w.dilation[i] || w.before[i]+w.after[i] > maxExtent/2 {
			fail("has an impossible window: size %v, strides %v, dilations %v, pads %v", size, w.stride, w.dilation, pads)
		}
		reach := (size[i]-1)*w.dilation[i] + 1
		switch mode {
		case "SAME_UPPER", "SAME_LOWER":
			total := max(0, ((in[i]+w.stride[i]-1)/w.stride[i]-1)*w.stride[i]+reach-in[i])
			w.before[i] = total / 2
			if mode == "SAME_LOWER" {
				w.before[i] = (total + 1) / 2
			}
			w.after[i] = total - w.before[i]
		case "VALID":
			w.before[i], w.after[i] = 0, 0
		case "NOTSET", "":
		default:
			fail("has the unknown auto_pad %q", mode)
		}
		space := in[i] + w.before[i] + w.after[i] - reach
		if space < 0 {
			fail("has a window of %d on a picture of %d", reach, in[i])
		}
		w.out[i] = space/w.stride[i] + 1
		if n.int("ceil_mode", 0) != 0 && space%w.stride[i] != 0 && w.out[i]*w.stride[i] < in[i]+w.before[i] {
			w.out[i]++ // the window that hangs over, unless it begins in the padding
		}
	}
	return w
}

// padded are height and width of the picture with all that windows touch.
func (w window) padded() [2]int {
	var out [2]int
	for i := range out {
		out[i] = max(w.in[i]+w.before[i], (w.out[i]-1)*w.stride[i]+(w.size[i]-1)*w.dilation[i]+1)
	}
	return out
}

// picture checks that a value is a batch of pictures [B, C, H, W] and lays its channels last.
func (l *lowering) picture(v *value) (*graph.Node, [2]int) {
	if v.rank() != 4 {
		fail("needs pictures with four axes, not an array of shape %v; other numbers of axes are not supported", v.dims)
	}
	v = l.lift(v)
	return l.in(v, channelsLast(4)), [2]int{v.dims[2], v.dims[3]}
}

// picturesOf wraps pictures [B, H, W, C].
func picturesOf(n *graph.Node) *value {
	d := n.Shape().Dimensions
	return device(n, []int{d[0], d[3], d[1], d[2]}, channelsLast(4))
}

// padPicture surrounds pictures [B, H, W, C] by a number, up to the size that windows touch.
func (l *lowering) padPicture(x *graph.Node, w window, fill float64) *graph.Node {
	p := w.padded()
	if p == w.in {
		return x
	}
	l.fits(x.Shape().Dimensions[0], p[0], p[1], x.Shape().Dimensions[3])
	config := make([]compute.PadAxis, 4)
	for i := range 2 {
		config[1+i] = compute.PadAxis{Start: w.before[i], End: p[i] - w.in[i] - w.before[i]}
	}
	return graph.Pad(x, graph.Scalar(l.g, x.DType(), fill), config...)
}

// rows takes rows of an array [N, D] by their numbers.
func (l *lowering) rows(x *graph.Node, key any, count int, number func(i int) int) *graph.Node {
	indices := l.memoize(key, func() *graph.Node {
		l.fits(count)
		list := make([]int32, count)
		for i := range list {
			list[i] = int32(number(i))
		}
		return l.indices(list)
	})
	return graph.Gather(x, indices)
}

type lineKey struct{ batch, length, out, stride, at int }

// line takes every stride-th place of an axis, from a place on: x [outer, length, D] becomes [outer, out, D].
func (l *lowering) line(x *graph.Node, out, stride, at int) *graph.Node {
	d := x.Shape().Dimensions
	outer, length := d[0], d[1]
	flat := graph.Reshape(x, outer*length, d[2])
	y := l.rows(flat, lineKey{outer, length, out, stride, at}, outer*out, func(i int) int { return i/out*length + i%out*stride + at })
	return graph.Reshape(y, outer, out, d[2])
}

// pool folds windows of padded pictures, first along the height, then along the width: a maximum or a sum of sums is the
// same either way.
func (l *lowering) pool(x *graph.Node, w window, fold func(a, b *graph.Node) *graph.Node) *graph.Node {
	d := x.Shape().Dimensions
	batch, height, width, c := d[0], d[1], d[2], d[3]
	l.spend(w.size[0], batch, w.out[0], width, c)
	l.spend(w.size[1], batch, w.out[0], w.out[1], c)
	along := func(x *graph.Node, i int) *graph.Node {
		var y *graph.Node
		for k := range w.size[i] {
			part := l.line(x, w.out[i], w.stride[i], k*w.dilation[i])
			if y == nil {
				y = part
			} else {
				y = fold(y, part)
			}
		}
		return y
	}
	if w.size[0] > maxNames || w.size[1] > maxNames {
		fail("has a window of %v; at most %d are allowed", w.size, maxNames)
	}
	tall := along(graph.Reshape(x, batch, height, width*c), 0)
	wide := along(graph.Reshape(tall, batch*w.out[0], width, c), 1)
	return graph.Reshape(wide, batch, w.out[0], w.out[1], c)
}

func kernelShape(n *node) [2]int {
	return [2]int(n.listOf("kernel_shape", 2, 0))
}

var maxPoolOp = operator{
	inputs: [2]int{1, 1},
	device: func(l *lowering, n *node, in []*value) []*value {
		if len(n.outputs) > 1 {
			fail("also gives the places of the maxima, which is not supported")
		}
		x, size := l.picture(in[0])
		w := windowOf(n, size, kernelShape(n))
		return []*value{picturesOf(l.pool(l.padPicture(x, w, -maxFloat32), w, graph.Max))}
	},
}

const maxFloat32 = 3.4028234663852886e38

var averagePoolOp = operator{
	inputs: [2]int{1, 1},
	device: func(l *lowering, n *node, in []*value) []*value {
		x, size := l.picture(in[0])
		w := windowOf(n, size, kernelShape(n))
		sum := picturesOf(l.pool(l.padPicture(x, w, 0), w, graph.Add))
		// Padding that the operator names may count as part of a window; what lies beyond never does.
		counts := func(i int) []float32 {
			low, high := w.before[i], w.before[i]+w.in[i]
			if n.int("count_include_pad", 0) != 0 {
				low, high = 0, high+w.after[i]
			}
			out := make([]float32, w.out[i])
			for o := range out {
				for k := range w.size[i] {
					if at := o*w.stride[i] + k*w.dilation[i]; at >= low && at < high {
						out[o]++
					}
				}
				if out[o] == 0 {
					fail("has a window that sees nothing but padding")
				}
			}
			return out
		}
		down, across := counts(0), counts(1)
		shares := make([]float32, 0, len(down)*len(across))
		for _, a := range down {
			for _, b := range across {
				shares = append(shares, 1/(a*b))
			}
		}
		return []*value{l.combine(graph.Mul, sum, onHost(floatArray(shares, 1, 1, len(down), len(across))))}
	},
}
