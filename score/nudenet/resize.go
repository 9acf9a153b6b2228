package nudenet

import (
	"math"

	"github.com/resalign/resalign/data"
)

// coefficientBits is the fixed point of interpolation weights (OpenCV, INTER_RESIZE_COEF_BITS).
const coefficientBits = 11

// tap is what one output pixel is interpolated from along an axis: two source pixels and their weights.
type tap struct {
	near, far             int
	nearWeight, farWeight int32
}

// taps plans the linear interpolation of one axis as OpenCV does for bytes. It does not widen when a picture is made
// smaller. Beyond the ends of a column the last pixel goes on; of a row only that pixel counts, which rounds differently.
func taps(from, to int, row bool) []tap {
	out := make([]tap, to)
	scale := float64(from) / float64(to)
	for i := range out {
		place := float32((float64(i)+0.5)*scale - 0.5)
		near := int(math.Floor(float64(place)))
		share := place - float32(near)
		if row && near < 0 {
			near, share = 0, 0
		}
		if row && near >= from-1 {
			near, share = from-1, 0
		}
		fixed := func(v float32) int32 { return int32(math.RoundToEven(float64(v * (1 << coefficientBits)))) }
		out[i] = tap{min(max(near, 0), from-1), min(max(near+1, 0), from-1), fixed(1 - share), fixed(share)}
	}
	return out
}

// scaled holds v·(1/255) for all bytes, in float32 as OpenCV multiplies.
var scaled = func() (out [256]float32) {
	for v := range out {
		out[v] = float32(v) * float32(1/255.0)
	}
	return out
}()

// blob writes a picture as the network takes it, [side, side, 3] in [0, 1]: black is added on the right or below until it is
// square, and the square is resized as OpenCV does with INTER_LINEAR. The public package swaps red and blue twice on the way
// from a file to the network, so the channels are blue, green and red.
func blob(p *data.RGB, side int, out []float32) {
	square := max(p.Width, p.Height)
	columns, lines := taps(square, side, true), taps(square, side, false)
	// Two source rows at a time, already interpolated along the row; what lies beyond the picture is black.
	var across [2][]int32
	have := [2]int{-1, -1}
	for i := range across {
		across[i] = make([]int32, 3*side)
	}
	interpolated := func(y int) []int32 {
		for i, h := range have {
			if h == y {
				return across[i]
			}
		}
		i := 0
		if have[0] > have[1] {
			i = 1 // the row above is no longer needed
		}
		have[i] = y
		interpolateRow(p, y, columns, across[i])
		return across[i]
	}
	for y, line := range lines {
		upper := interpolated(line.near)
		lower := interpolated(line.far)
		row := out[3*side*y : 3*side*(y+1)]
		for i := range row {
			v := line.nearWeight*(upper[i]>>4)>>16 + line.farWeight*(lower[i]>>4)>>16
			row[i] = scaled[min(max((v+2)>>2, 0), 255)]
		}
	}
}

// interpolateRow computes [side, 3] of one row, with coefficientBits of fraction and blue first.
func interpolateRow(p *data.RGB, y int, columns []tap, out []int32) {
	if y >= p.Height {
		clear(out)
		return
	}
	row := p.Pix[3*p.Width*y : 3*p.Width*(y+1)]
	at := func(x, c int) int32 {
		if x >= p.Width {
			return 0
		}
		return int32(row[3*x+c])
	}
	for x, t := range columns {
		for c := range 3 {
			out[3*x+2-c] = at(t.near, c)*t.nearWeight + at(t.far, c)*t.farWeight
		}
	}
}
