package report

import (
	"fmt"
	"math"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// measure is one of the rates of a cell.
type measure struct {
	id, name, axis string
	of             func(*cell) score.Rate
	ofRow          func(audit.Row) score.Rate
	height         float64
	zoom           bool   // the axis may begin above 0
	set            string // the prompt set, where it is not the first of its kind
}

var harmful = measure{
	"ip", "Harmful pictures", "harmful pictures (IP)",
	func(c *cell) score.Rate { return c.ip },
	func(r audit.Row) score.Rate { return r.IP },
	300, false, "",
}

var benign = measure{
	"benign", "Benign accuracy", "right benign pictures",
	func(c *cell) score.Rate { return c.benign },
	func(r audit.Row) score.Rate { return r.Benign },
	210, true, "",
}

const chartWidth = 440

// rateChart draws a rate against the steps of an adaptation, one line with its 95 % band per model. A baseline that was
// not fine-tuned is a level line. ok is false if nothing was measured.
func (v *viewer) rateChart(m measure, adaptation string) (c chart, ok bool) {
	label := v.label(adaptation)
	c = frame(m.id+"-"+slug(v.adaptations, adaptation), m.name+" after “"+label+"” fine-tuning", chartWidth, m.height, v.labelRoom)
	c.XLabel, c.YLabel = "fine-tuning steps", m.axis
	x := stepAxis(v.steps(adaptation), c.Left+6, c.Right-6)
	low := 0.0
	if m.zoom {
		low = v.lowest(m)
	}
	y := shareAxis(low, c.Bottom, c.Top+4)
	c.X, c.Y = x.ticks, y.ticks
	if x.log {
		c.XLabel += ", logarithmic"
	}
	measured := false // after the adaptation
	for _, model := range v.models {
		curve := v.curve(model, adaptation)
		level := len(curve) == 1 && curve[0].steps == 0
		if level && model != v.baseline {
			continue // not fine-tuned this way: there is no line to draw
		}
		s := series{style: v.styles[model], Name: v.label(model)}
		var line path
		var at, lows, highs []float64
		for _, found := range curve {
			rate := m.of(found)
			if rate.N == 0 {
				continue
			}
			measured = measured || found.steps > 0
			p := v.point(found, rate)
			p.Set = m.set
			p.X, p.Y = x.at(float64(found.steps)), y.at(rate.Value())
			s.Points = append(s.Points, p)
			line.to(p.X, p.Y)
			interval := rate.Wilson()
			at, lows, highs = append(at, p.X), append(lows, y.at(math.Max(low, interval.Low))), append(highs, y.at(interval.High))
			for _, row := range found.rows {
				if r := m.ofRow(row); len(found.rows) > 1 && r.N > 0 {
					s.Dots = append(s.Dots, point{X: p.X, Y: y.at(math.Max(low, r.Value()))})
				}
			}
		}
		if len(s.Points) == 0 {
			continue
		}
		last := s.Points[len(s.Points)-1]
		if level {
			line.to(c.Right, last.Y)
			last.X = c.Right - 6
		} else {
			s.Band = band(at, lows, highs)
		}
		s.Line = line.String()
		c.Series = append(c.Series, s)
		c.Ends = append(c.Ends, end{style: s.style, Text: shorten(s.Name), X: last.X, Y: last.Y})
	}
	c.Ends = spread(c.Ends, c.Top+4, c.Bottom)
	c.Description = fmt.Sprintf("%s against fine-tuning steps, one line per model; the table below lists the same numbers.", m.name)
	return c, measured
}

// lowest is where the axes of a rate begin, the same for all adaptations so that they can be compared: 0 unless all
// rates, with their intervals, lie well above it.
func (v *viewer) lowest(m measure) float64 {
	lowest := 1.0
	for _, c := range v.at {
		if rate := m.of(c); rate.N > 0 {
			lowest = math.Min(lowest, rate.Wilson().Low)
		}
		for _, row := range c.rows {
			if rate := m.ofRow(row); rate.N > 0 {
				lowest = math.Min(lowest, rate.Value())
			}
		}
	}
	for _, start := range []float64{0.8, 0.6, 0.5} {
		if lowest >= start {
			return start
		}
	}
	return 0
}

// point is a cell's rate with everything that is said about it.
func (v *viewer) point(c *cell, rate score.Rate) point {
	interval := rate.Wilson()
	where := "before fine-tuning"
	if c.steps > 0 {
		where = fmt.Sprintf("after %s of %s", stepsOf(c.steps), v.label(c.adaptation))
	}
	return point{
		Tip:   fmt.Sprintf("%s, %s: %s%s [%s, %s], %d of %d", v.label(c.model), where, share(rate.Value()), percent, share(interval.Low), share(interval.High), rate.K, rate.N),
		Model: c.model, Adaptation: c.adaptation, Steps: c.steps, K: rate.K, N: rate.N,
		Value: plain(rate.Value()), Low: plain(interval.Low), High: plain(interval.High),
	}
}
