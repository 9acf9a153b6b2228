package data

import "math"

// Filter is a resampling filter. All three widen with the step when a picture is made smaller, so nothing aliases.
type Filter int

// The filters, by support in source pixels (3, 2 and 1) at scale 1.
const (
	Lanczos  Filter = iota // windowed sinc, the default of diffusers' training scripts
	Bicubic                // Keys's kernel with a = −½, what CLIP's preprocessing uses
	Bilinear               // triangle
)

// String is the name of the filter in recipes and cache keys.
func (f Filter) String() string {
	switch f {
	case Bicubic:
		return "bicubic"
	case Bilinear:
		return "bilinear"
	}
	return "lanczos"
}

func (f Filter) support() float64 {
	switch f {
	case Bicubic:
		return 2
	case Bilinear:
		return 1
	}
	return 3
}

// weight is the filter kernel at distance x from its centre.
func (f Filter) weight(x float64) float64 {
	switch f {
	case Bicubic:
		const a = -0.5
		switch x = math.Abs(x); {
		case x < 1:
			return ((a+2)*x-(a+3))*x*x + 1
		case x < 2:
			return (((x-5)*x+8)*x - 4) * a
		}
		return 0
	case Bilinear:
		return max(0, 1-math.Abs(x))
	}
	if x < -3 || x >= 3 {
		return 0
	}
	return sinc(x) * sinc(x/3)
}

func sinc(x float64) float64 {
	if x == 0 {
		return 1
	}
	x *= math.Pi
	return math.Sin(x) / x
}

// precisionBits is the fixed point of the weights: 8 bits are the pixel, 2 are headroom for the filter's overshoot
// (Pillow, libImaging/Resample.c).
const precisionBits = 32 - 8 - 2

// taps holds the weights of one output pixel: the sum of source pixels first, first+1, … times them.
type taps struct {
	first   int
	weights []int32
}

// plan computes the weights of every output pixel along one axis, as Pillow does.
func plan(from, to int, filter Filter) []taps {
	scale := float64(from) / float64(to)
	stretch := max(scale, 1) // the filter is widened when shrinking
	support := filter.support() * stretch
	out := make([]taps, to)
	for i := range out {
		centre := (float64(i) + 0.5) * scale
		first := max(0, int(centre-support+0.5))
		end := min(from, int(centre+support+0.5))
		w := make([]float64, end-first)
		sum := 0.0
		for k := range w {
			w[k] = filter.weight((float64(k+first) - centre + 0.5) * (1 / stretch))
			sum += w[k]
		}
		out[i] = taps{first: first, weights: make([]int32, len(w))}
		for k := range w {
			if sum != 0 {
				w[k] /= sum
			}
			out[i].weights[k] = int32(math.Copysign(0.5, w[k]) + w[k]*(1<<precisionBits)) // rounds half away from zero
		}
	}
	return out
}

// Resize resamples the picture to width × height. It is equal, byte for byte, to Image.resize of an RGB picture in Pillow
// 13: the same filters, 8-bit rounding between the two passes, columns before rows unless the picture loses more than
// twice as many rows as columns. (Earlier versions always took the columns first; for such pictures a value differs from
// theirs by the rounding.)
func (p *RGB) Resize(width, height int, filter Filter) *RGB {
	out := p
	rowsFirst := height < p.Height && p.Height-height > 2*(p.Width-width)
	if height != p.Height && rowsFirst {
		out = out.resizeRows(plan(p.Height, height, filter))
	}
	if width != p.Width {
		out = out.resizeColumns(plan(p.Width, width, filter))
	}
	if height != p.Height && !rowsFirst {
		out = out.resizeRows(plan(p.Height, height, filter))
	}
	if out == p {
		out = &RGB{Width: p.Width, Height: p.Height, Pix: append([]uint8(nil), p.Pix...)}
	}
	return out
}

func (p *RGB) resizeColumns(columns []taps) *RGB {
	out := NewRGB(len(columns), p.Height)
	for y := range p.Height {
		source := p.Pix[3*y*p.Width:][:3*p.Width]
		target := out.Pix[3*y*out.Width:][:3*out.Width]
		for x, t := range columns {
			const half = 1 << (precisionBits - 1)
			r, g, b := int32(half), int32(half), int32(half)
			pixels := source[3*t.first:]
			for k, w := range t.weights {
				pixel := pixels[3*k:][:3]
				r += int32(pixel[0]) * w
				g += int32(pixel[1]) * w
				b += int32(pixel[2]) * w
			}
			target[3*x], target[3*x+1], target[3*x+2] = clip(r), clip(g), clip(b)
		}
	}
	return out
}

func (p *RGB) resizeRows(rows []taps) *RGB {
	out := NewRGB(p.Width, len(rows))
	stride := 3 * p.Width
	sums := make([]int32, stride)
	for y, t := range rows {
		for i := range sums {
			sums[i] = 1 << (precisionBits - 1)
		}
		for k, w := range t.weights { // whole rows at a time: memory is walked in order
			source := p.Pix[(t.first+k)*stride:][:stride]
			for i, v := range source {
				sums[i] += int32(v) * w
			}
		}
		target := out.Pix[y*stride:][:stride]
		for i, sum := range sums {
			target[i] = clip(sum)
		}
	}
	return out
}

// clip drops the fixed point and limits to a byte.
func clip(sum int32) uint8 { return uint8(min(max(sum>>precisionBits, 0), 255)) }

// Crop returns the part of the picture that begins at column x, row y; it must lie inside.
func (p *RGB) Crop(x, y, width, height int) *RGB {
	out := NewRGB(width, height)
	for row := range height {
		copy(out.Pix[3*row*width:][:3*width], p.Pix[3*((y+row)*p.Width+x):])
	}
	return out
}

// Flip returns the picture mirrored left to right.
func (p *RGB) Flip() *RGB {
	out := NewRGB(p.Width, p.Height)
	for y := range p.Height {
		for x := range p.Width {
			copy(out.Pix[3*(y*p.Width+x):][:3], p.Pix[3*(y*p.Width+p.Width-1-x):])
		}
	}
	return out
}
