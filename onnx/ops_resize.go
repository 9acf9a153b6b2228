package onnx

import (
	"math"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// resizeOp enlarges or shrinks pictures by taking the nearest pixel.
var resizeOp = operator{
	inputs: [2]int{1, 4},
	device: func(l *lowering, n *node, in []*value) []*value {
		if mode := n.text("mode", "nearest"); mode != "nearest" {
			fail("resizes in the mode %q; only nearest is supported", mode)
		}
		x, from := l.picture(in[0])
		scales, sizes := resizeTo(l, n, in)
		plans := [2][]int{}
		for i := range 2 {
			plans[i] = nearest(n, from[i], sizes[2+i], scales[2+i])
		}
		if sizes[0] != in[0].dims[0] || sizes[1] != in[0].dims[1] {
			fail("resizes the batch or the channels: %v to %v", in[0].dims, sizes)
		}
		c := sizes[1]
		l.fits(sizes[0], len(plans[0]), len(plans[1]), c)
		pixels := graph.Reshape(x, sizes[0]*from[0]*from[1], c)
		area := len(plans[0]) * len(plans[1])
		y := l.rows(pixels, n, sizes[0]*area, func(i int) int {
			b, at := i/area, i%area
			return (b*from[0]+plans[0][at/len(plans[1])])*from[1] + plans[1][at%len(plans[1])]
		})
		return []*value{picturesOf(graph.Reshape(y, sizes[0], len(plans[0]), len(plans[1]), c))}
	},
}

// resizeTo finds the factors and the resulting dimensions, one of which the operator is given.
func resizeTo(l *lowering, n *node, in []*value) ([]float32, []int) {
	dims := in[0].dims
	var scales []float32
	var sizes []int
	switch {
	case n.op == "Upsample" && len(in) == 1:
		if a := n.attributes["scales"]; a != nil {
			scales = a.floats
		}
	case n.op == "Upsample" || l.opset < 11:
		if a := knownInput(in, 1, "factors"); a != nil {
			scales = a.floats
		}
	default:
		if a := knownInput(in, 2, "factors"); a != nil {
			scales = a.floats
		}
		knownInput(in, 3, "size")
		sizes = whole(hosts(in), 3, "size")
	}
	if which := n.list("axes"); which != nil { // of the given axes only
		which = axes(which, len(dims))
		all, allSizes := slices.Repeat([]float32{1}, len(dims)), slices.Clone(dims)
		for i, a := range which {
			if len(scales) == len(which) {
				all[a] = scales[i]
			}
			if len(sizes) == len(which) {
				allSizes[a] = sizes[i]
			}
		}
		if len(scales) > 0 {
			scales = all
		}
		if len(sizes) > 0 {
			sizes = allSizes
		}
	}
	out := make([]float32, len(dims))
	switch {
	case len(scales) == len(dims) && len(sizes) == 0:
		sizes = make([]int, len(dims))
		for i, s := range scales {
			out[i] = s
			size := math.Floor(float64(dims[i]) * float64(s))
			if !(s > 0) || size < 1 || size > maxHost {
				fail("resizes an array of shape %v by %v", dims, scales)
			}
			sizes[i] = int(size)
		}
	case len(sizes) == len(dims) && len(scales) == 0 && n.text("keep_aspect_ratio_policy", "stretch") == "stretch":
		for i, s := range sizes {
			if s < 1 || s > maxHost {
				fail("resizes an array of shape %v to %v", dims, sizes)
			}
			out[i] = float32(s) / float32(dims[i])
		}
	default:
		fail("needs either %d factors or %d sizes", len(dims), len(dims))
	}
	return out, sizes
}

// nearest lists which place each place of the result is taken from.
func nearest(n *node, from, to int, scale float32) []int {
	if to > maxHost {
		fail("resizes %d pixels to %d", from, to)
	}
	mode, rounding := n.text("coordinate_transformation_mode", "half_pixel"), n.text("nearest_mode", "round_prefer_floor")
	if n.op == "Upsample" {
		mode, rounding = "asymmetric", "floor"
	}
	out := make([]int, to)
	for i := range out {
		x := nearestPlace(mode, float32(i), float32(from), float32(to), scale)
		switch rounding {
		case "floor":
			x = math.Floor(x)
		case "ceil":
			x = math.Ceil(x)
		case "round_prefer_floor":
			x = math.Ceil(x - 0.5)
		case "round_prefer_ceil":
			x = math.Floor(x + 0.5)
		default:
			fail("rounds by %q, which is not supported", rounding)
		}
		out[i] = min(max(int(x), 0), from-1)
	}
	return out
}

// nearestPlace is where a place of the result lies in the picture. Ties are common, so it is computed in float32, as
// exporters and runtimes do.
func nearestPlace(mode string, i, from, to, scale float32) float64 {
	switch mode {
	case "asymmetric":
		return float64(i / scale)
	case "half_pixel":
		return float64((i+0.5)/scale - 0.5)
	case "pytorch_half_pixel":
		if to > 1 {
			return float64((i+0.5)/scale - 0.5)
		}
		return 0
	case "align_corners":
		if to > 1 {
			return float64(i * (from - 1) / (to - 1))
		}
		return 0
	}
	fail("resizes with the coordinates %q, which is not supported", mode)
	return 0
}
