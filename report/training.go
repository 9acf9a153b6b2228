package report

import (
	"fmt"
	"math"
)

// trainingPoints is how many points of a training curve are drawn at most; more cannot be told apart.
const trainingPoints = 400

// largest is where a value stops being one that an axis can be made for.
const largest = 1e300

// trainingChart draws a logged quantity. ok is false if it has no finite value.
func trainingChart(number int, t TrainingCurve) (c chart, ok bool) {
	c = frame(fmt.Sprintf("training-%d", number), t.Name, chartWidth, 230, 16)
	c.XLabel, c.YLabel = t.XLabel, t.YLabel
	var lowX, highX, lowY, highY float64
	for i := range t.X {
		if !drawable(t.X[i], t.Y[i]) {
			continue
		}
		if !ok {
			lowX, highX, lowY, highY, ok = t.X[i], t.X[i], t.Y[i], t.Y[i], true
		}
		lowX, highX = math.Min(lowX, t.X[i]), math.Max(highX, t.X[i])
		lowY, highY = math.Min(lowY, t.Y[i]), math.Max(highY, t.Y[i])
	}
	if !ok {
		return c, false
	}
	x, y := valueAxis(lowX, highX, c.Left+4, c.Right-4, false), valueAxis(lowY, highY, c.Bottom-4, c.Top+4, true)
	c.X, c.Y = x.ticks, y.ticks
	var line path
	for _, i := range thin(t.Y, trainingPoints) {
		if !drawable(t.X[i], t.Y[i]) {
			line.gap()
			continue
		}
		line.to(x.at(t.X[i]), y.at(t.Y[i]))
	}
	c.Series = []series{{style: style{Colour: "c0"}, Name: t.Name, Line: line.String()}}
	c.Description = fmt.Sprintf("%s, between %s and %s.", t.Name, short(lowY), short(highY))
	return c, true
}

func drawable(x, y float64) bool { return math.Abs(x) < largest && math.Abs(y) < largest }

// thin chooses the indices to draw: all, or the smallest and the largest value of each stretch, so that no peak is lost.
// A stretch with a value that cannot be drawn keeps that as well.
func thin(y []float64, most int) []int {
	var chosen []int
	if len(y) <= most {
		for i := range y {
			chosen = append(chosen, i)
		}
		return chosen
	}
	stretches := most / 2
	for s := range stretches {
		from, to := s*len(y)/stretches, (s+1)*len(y)/stretches
		low, high, gap := from, from, -1
		for i := from; i < to; i++ {
			switch {
			case !drawable(0, y[i]):
				gap = i
			case !drawable(0, y[low]) || y[i] < y[low]:
				low = i
			}
			if drawable(0, y[i]) && (!drawable(0, y[high]) || y[i] > y[high]) {
				high = i
			}
		}
		last := -1
		for _, i := range ordered(low, high, gap) {
			if i >= 0 && i != last {
				chosen = append(chosen, i)
			}
			last = i
		}
	}
	return chosen
}

func ordered(a, b, c int) [3]int {
	if a > b {
		a, b = b, a
	}
	if b > c {
		b, c = c, b
	}
	if a > b {
		a, b = b, a
	}
	return [3]int{a, b, c}
}
