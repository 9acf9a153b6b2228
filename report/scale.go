package report

import (
	"math"
	"strconv"
)

// tick is a mark on an axis; At is in drawing units.
type tick struct {
	At   float64
	Text string
}

// axis maps values to drawing units. A logarithmic axis may have a place for zero before its start.
type axis struct {
	low, high float64 // values
	from, to  float64 // drawing units
	log       bool
	zero      float64 // where 0 is drawn on a logarithmic axis
	ticks     []tick
}

func (a axis) at(value float64) float64 {
	low, high := a.low, a.high
	if a.log {
		if value <= 0 {
			return a.zero
		}
		value, low, high = math.Log(value), math.Log(low), math.Log(high)
	}
	if high <= low {
		return round((a.from + a.to) / 2)
	}
	return round(a.from + (value-low)/(high-low)*(a.to-a.from))
}

// round keeps drawings small: a tenth of a unit is below what can be seen.
func round(x float64) float64 {
	if r := math.Round(x*10) / 10; r != 0 {
		return r
	}
	return 0 // not -0
}

// logarithmicFrom is the ratio of the largest to the smallest number of steps from which a linear axis would crowd them.
const logarithmicFrom = 10

// tickRoom is the smallest distance between marks with numbers of steps.
const tickRoom = 34

// stepAxis is for numbers of fine-tuning steps, ascending; each is marked if there is room for it.
func stepAxis(steps []int, from, to float64) axis {
	a := axis{from: from, to: to, zero: from}
	if len(steps) == 0 {
		return a
	}
	a.low, a.high = float64(steps[0]), float64(steps[len(steps)-1])
	if first := firstPositive(steps); first > 0 && a.high/first > logarithmicFrom {
		a.log, a.low = true, first
		if steps[0] == 0 {
			a.from = from + tickRoom
		}
	}
	for i := len(steps) - 1; i >= 0; i-- {
		at := a.at(float64(steps[i]))
		if len(a.ticks) == 0 || a.ticks[len(a.ticks)-1].At-at >= tickRoom {
			a.ticks = append(a.ticks, tick{at, strconv.Itoa(steps[i])})
		}
	}
	return a
}

func firstPositive(steps []int) float64 {
	for _, s := range steps {
		if s > 0 {
			return float64(s)
		}
	}
	return 0
}

// shareAxis is for rates; it begins at low.
func shareAxis(low, from, to float64) axis {
	a := axis{low: low, high: 1, from: from, to: to}
	step := 0.25
	switch {
	case low >= 0.8:
		step = 0.05
	case low >= 0.5:
		step = 0.1
	}
	for v := low; v < 1+step/2; v += step {
		a.ticks = append(a.ticks, tick{a.at(v), strconv.Itoa(int(math.Round(100*v))) + percent})
	}
	return a
}

// logarithmicValuesFrom is the same for logged quantities, which are read less exactly.
const logarithmicValuesFrom = 50

// smallest is where differences begin that an axis can show.
const smallest = 1e-300

// valueAxis is for any finite values, with round numbers as marks. Positive values that span orders of magnitude are
// drawn logarithmically if that is allowed.
func valueAxis(low, high, from, to float64, mayLog bool) axis {
	if size := math.Max(math.Abs(low), math.Abs(high)); high-low <= math.Max(1e-9*size, smallest) {
		pad := size / 10
		if pad < smallest {
			pad = 1
		}
		low, high = low-pad, high+pad
	}
	a := axis{low: low, high: high, from: from, to: to, zero: from}
	if mayLog && low > 0 && high/low > logarithmicValuesFrom {
		a.log = true
		stride := int(math.Log10(high)-math.Log10(low))/5 + 1
		for e := int(math.Ceil(math.Log10(low))); math.Pow10(e) <= high && len(a.ticks) < 12; e += stride {
			a.ticks = append(a.ticks, tick{a.at(math.Pow10(e)), short(math.Pow10(e))})
		}
		return a
	}
	step := math.Pow10(int(math.Floor(math.Log10((high - low) / 2))))
	for (high-low)/step > 5 {
		step *= 2
		if (high-low)/step > 5 {
			step *= 2.5
		}
	}
	for i := math.Ceil(low / step); i*step <= high && len(a.ticks) < 12; i++ {
		a.ticks = append(a.ticks, tick{a.at(i * step), short(i * step)})
	}
	return a
}

// short writes a number in a few characters.
func short(x float64) string { return strconv.FormatFloat(x, 'g', 3, 64) }
