package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// family is a fine-tuning that was tried with several shares of harmful pictures in its data.
type family struct {
	name    string
	members []string // adaptations, by their share
}

// families finds the adaptations that differ in their share only: their names are the family's with "-20" for 20 %
// behind it. One share alone is no family.
func (c cells) families() []family {
	var out []family
	for _, adaptation := range c.adaptations {
		name, ok := strings.CutSuffix(adaptation, "-"+shareText(c.shares[adaptation]))
		if !ok {
			continue
		}
		i := slices.IndexFunc(out, func(f family) bool { return f.name == name })
		if i < 0 {
			i, out = len(out), append(out, family{name: name})
		}
		out[i].members = append(out[i].members, adaptation)
	}
	for i := range out {
		slices.SortStableFunc(out[i].members, func(a, b string) int {
			return int(math.Copysign(1, c.shares[a]-c.shares[b]))
		})
	}
	return slices.DeleteFunc(out, func(f family) bool { return len(f.members) < 2 })
}

// shareText writes a share as the percent that adaptations are named by.
func shareText(share float64) string {
	return strconv.FormatFloat(math.Round(share*1e6)/1e4, 'f', -1, 64)
}

// familyLabel is what to call a family: its own label, or what its members' have in common.
func (c cells) familyLabel(f family) string {
	if label := c.labels[f.name]; label != "" {
		return label
	}
	first := f.members[0]
	if label, ok := strings.CutSuffix(c.labels[first], ", "+shareText(c.shares[first])+" % harmful"); ok {
		return label
	}
	return f.name
}

// contaminationChart draws a rate after the last step of a family against the share of harmful pictures in its data.
func (v *viewer) contaminationChart(m measure, f family) (c chart, ok bool) {
	last := 0
	for _, member := range f.members {
		last = max(last, v.last(member))
	}
	title := fmt.Sprintf("%s after %s of “%s”", m.name, stepsOf(last), v.familyLabel(f))
	c = frame("contamination-"+m.id+"-"+slug(v.adaptations, f.members[0]), title, chartWidth, m.height, v.labelRoom)
	c.XLabel, c.YLabel = "harmful pictures in the fine-tuning data", m.axis
	highest := v.shares[f.members[len(f.members)-1]]
	x := axis{low: v.shares[f.members[0]], high: highest, from: c.Left + 6, to: c.Right - 6}
	for i := len(f.members) - 1; i >= 0; i-- {
		share := v.shares[f.members[i]]
		if at := x.at(share); len(x.ticks) == 0 || x.ticks[len(x.ticks)-1].At-at >= tickRoom {
			x.ticks = append(x.ticks, tick{at, shareText(share) + percent})
		}
	}
	y := shareAxis(0, c.Bottom, c.Top+4)
	c.X, c.Y = x.ticks, y.ticks
	for _, model := range v.models {
		s := series{style: v.styles[model], Name: v.label(model)}
		var line path
		var at, lows, highs []float64
		for _, member := range f.members {
			found := v.at[place{model, member, last}]
			if found == nil || m.of(found).N == 0 {
				continue
			}
			rate := m.of(found)
			interval := rate.Wilson()
			p := v.point(found, rate)
			p.Set, p.Contamination = m.set, plain(v.shares[member])
			p.X, p.Y = x.at(v.shares[member]), y.at(rate.Value())
			line.to(p.X, p.Y)
			at, lows, highs = append(at, p.X), append(lows, y.at(interval.Low)), append(highs, y.at(interval.High))
			for _, row := range found.rows {
				if r := m.ofRow(row); len(found.rows) > 1 && r.N > 0 {
					s.Dots = append(s.Dots, point{X: p.X, Y: y.at(r.Value())})
				}
			}
			s.Points = append(s.Points, p)
		}
		if len(s.Points) == 0 {
			continue
		}
		last := s.Points[len(s.Points)-1]
		s.Line, s.Band = line.String(), band(at, lows, highs)
		c.Series = append(c.Series, s)
		c.Ends = append(c.Ends, end{style: s.style, Text: shorten(s.Name), X: last.X, Y: last.Y})
	}
	c.Ends = spread(c.Ends, c.Top+4, c.Bottom)
	c.Description = fmt.Sprintf("%s against the share of harmful pictures in the fine-tuning data, one line per model; the table below lists the same numbers.", m.name)
	return c, len(c.Series) > 0
}
