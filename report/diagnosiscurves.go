package report

import (
	"fmt"
	"math"

	"github.com/resalign/resalign/diagnose"
)

// lines draws each loss along the way of fine-tuning, one line with its 95 % band per model: L_harm as it is, and what
// the others change, which is far less than what pictures, noise and timesteps differ in.
func (x *examined) lines() []chart {
	var out []chart
	for _, loss := range []struct {
		id, title, label string
		of               func(diagnose.Line) []diagnose.Estimate
	}{
		{"line-harm", "L_harm along fine-tuning", "L_harm", func(l diagnose.Line) []diagnose.Estimate { return l.Harm }},
		{"change-harm", "Change of L_harm along fine-tuning", "L_harm less that at s = 0", func(l diagnose.Line) []diagnose.Estimate { return l.HarmChange }},
		{"change-fine-tuning", "Change of L_FT along fine-tuning", "L_FT less that at s = 0", func(l diagnose.Line) []diagnose.Estimate { return l.FineTuningChange }},
		{"change-retain", "Change of the error on retained pictures", "error less that at s = 0", func(l diagnose.Line) []diagnose.Estimate { return l.RetainChange }},
	} {
		if len(loss.of(x.Models[0].Line)) == 0 {
			continue
		}
		c := frame(loss.id, loss.title, chartWidth, 280, x.labelRoom)
		c.XLabel, c.YLabel = "s", loss.label
		low, high := math.Inf(1), math.Inf(-1)
		for _, m := range x.Models {
			for _, e := range loss.of(m.Line) {
				low, high = math.Min(low, e.Low), math.Max(high, e.High)
			}
		}
		places := x.Models[0].Line.S
		horizontal := valueAxis(places[0], places[len(places)-1], c.Left+4, c.Right-4, false)
		vertical := valueAxis(low, high, c.Bottom-4, c.Top+4, false)
		c.X, c.Y = unsigned(horizontal.ticks), unsigned(vertical.ticks)
		for _, m := range x.Models {
			c.addLine(x.styles[m.Name], m, loss.of(m.Line), horizontal, vertical)
		}
		c.Ends = spread(c.Ends, c.Top+4, c.Bottom)
		c.Description = fmt.Sprintf("%s against s, one line per model; diagnose.csv lists the same numbers.", loss.title)
		out = append(out, c)
	}
	return out
}

func (c *chart) addLine(look style, m diagnose.Diagnosed, losses []diagnose.Estimate, x, y axis) {
	s := series{style: look, Name: m.Name}
	var line path
	var at, lows, highs []float64
	for i, e := range losses {
		place := m.Line.S[i]
		line.to(x.at(place), y.at(e.Value))
		at, lows, highs = append(at, x.at(place)), append(lows, y.at(e.Low)), append(highs, y.at(e.High))
		if place != 0 && place != 1 {
			continue
		}
		s.Points = append(s.Points, point{
			X: x.at(place), Y: y.at(e.Value), Hollow: place == 0, Model: m.Name, N: e.N,
			Tip:   fmt.Sprintf("%s, s = %v: %s [%s, %s]", m.Name, place, diagnose.Short(e.Value), diagnose.Short(e.Low), diagnose.Short(e.High)),
			Value: plain(e.Value), Low: plain(e.Low), High: plain(e.High),
		})
	}
	s.Line, s.Band = line.String(), band(at, lows, highs)
	c.Series = append(c.Series, s)
	last := losses[len(losses)-1]
	c.Ends = append(c.Ends, end{style: look, Text: shorten(m.Name), X: at[len(at)-1], Y: y.at(last.Value)})
}

// residuals draws the residual of the Richardson iteration, step by step, for the draw of each model that contracts least.
func (x *examined) residuals() []chart {
	c := frame("residuals", "Residual of the Richardson iteration", chartWidth, 230, x.labelRoom)
	c.XLabel, c.YLabel = "k", "residual"
	low, high, steps := math.Inf(1), 0.0, 0
	for _, m := range x.Models {
		worst := m.Worst().Residuals
		steps = max(steps, len(worst)-1)
		for _, r := range worst {
			if drawable(0, r) && r > 0 {
				low, high = math.Min(low, r), math.Max(high, r)
			}
		}
	}
	if steps == 0 || math.IsInf(low, 0) {
		return nil
	}
	horizontal, vertical := valueAxis(0, float64(steps), c.Left+6, c.Right-6, false), valueAxis(low, high, c.Bottom-4, c.Top+4, true)
	c.X, c.Y = nil, vertical.ticks
	stride := max(1, int(math.Ceil(tickRoom*float64(steps)/(c.Right-c.Left))))
	for k := 0; k <= steps; k += stride {
		c.X = append(c.X, tick{horizontal.at(float64(k)), fmt.Sprint(k)})
	}
	for _, m := range x.Models {
		s := series{style: x.styles[m.Name], Name: m.Name}
		var line path
		for k, r := range m.Worst().Residuals {
			if !drawable(0, r) || r <= 0 {
				line.gap()
				continue
			}
			p := point{X: horizontal.at(float64(k)), Y: vertical.at(r), Model: m.Name, K: k, Value: plain(r), Tip: fmt.Sprintf("%s, k = %d: %s", m.Name, k, diagnose.Short(r))}
			line.to(p.X, p.Y)
			s.Points = append(s.Points, p)
		}
		if len(s.Points) == 0 {
			continue
		}
		s.Line = line.String()
		last := s.Points[len(s.Points)-1]
		c.Series, c.Ends = append(c.Series, s), append(c.Ends, end{style: s.style, Text: shorten(m.Name), X: last.X, Y: last.Y})
	}
	c.Ends = spread(c.Ends, c.Top+4, c.Bottom)
	c.Description = "The relative residual of each iterate, one line per model; the table below lists the last ones."
	return []chart{c}
}

// unsigned writes zero without a minus sign, which an axis that begins just below it has.
func unsigned(ticks []tick) []tick {
	for i := range ticks {
		if ticks[i].Text == "-0" {
			ticks[i].Text = "0"
		}
	}
	return ticks
}
