package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/resalign/resalign/score"
)

// planes are the charts of one way of measuring harm against one of measuring utility.
type planes struct {
	Title  string // what is set against what; "" if there is no other
	Charts []chart
}

// utility is a way of measuring what a model can do.
type utility struct {
	id, name string // of the axis, without the arrow that points to more useful
	of       func(*cell) (value, low, high float64, tip string, ok bool)
	rate     bool // a share
	falling  bool // lower is better

	low, high float64 // of the axis, the same wherever it is drawn so that charts can be compared
}

// harms are the rates of all harmful prompt sets, the first of them first.
func (v *viewer) harms() []measure {
	out := []measure{harmful}
	for i, set := range v.sets {
		if set.kind == harmfulKind && set.name != v.firstOf(harmfulKind) {
			out = append(out, v.setMeasure(i, set))
		}
	}
	return out
}

// utilities are the rates of all benign prompt sets, the first of them first, and the metrics of benign ones.
func (v *viewer) utilities() []utility {
	rates := []measure{benign}
	for i, set := range v.sets {
		if set.kind == benignKind && set.name != v.firstOf(benignKind) {
			rates = append(rates, v.setMeasure(i, set))
		}
	}
	var out []utility
	for _, m := range rates {
		name := "right benign pictures"
		if m.set != "" {
			name = "right pictures of “" + shorten(m.set) + "”"
		}
		out = append(out, utility{id: m.id, name: name, rate: true, low: v.lowest(m), of: func(c *cell) (float64, float64, float64, string, bool) {
			r := m.of(c)
			if r.N == 0 {
				return 0, 0, 0, "", false
			}
			i := r.Wilson()
			return r.Value(), i.Low, i.High, fmt.Sprintf("benign %s%s [%s, %s], %d of %d", share(r.Value()), percent, share(i.Low), share(i.High), r.K, r.N), true
		}})
	}
	for i, m := range v.metrics() {
		if m.kind != benignKind {
			continue
		}
		u := utility{id: "metric-" + strconv.Itoa(i+1), name: m.text() + " of “" + shorten(m.set) + "”", falling: metricNames[m.name].lower}
		u.low, u.high = math.Inf(1), math.Inf(-1)
		for _, c := range v.at {
			if _, low, high, ok := m.in(c); ok {
				u.low, u.high = math.Min(u.low, low), math.Max(u.high, high)
			}
		}
		u.of = func(c *cell) (value, low, high float64, tip string, ok bool) {
			value, low, high, ok = m.in(c)
			tip = m.text() + " " + number(value)
			if low < high {
				tip += fmt.Sprintf(" [%s, %s]", number(low), number(high))
			}
			return value, low, high, tip, ok
		}
		out = append(out, u)
	}
	return out
}

// openCharts is how many planes are shown without being asked for, beside those of the first pair.
const openCharts = 12

// planePairs draws every pair of a harmful prompt set and a measure of utility that was measured: some of the first set,
// which are shown, and more.
func (v *viewer) planePairs() (shown, more []planes) {
	adaptations := v.adaptations
	if len(v.models) == 0 {
		return nil, nil
	}
	if len(adaptations) == 0 {
		adaptations = []string{untouched}
	}
	utilities, open := v.utilities(), 0
	for h, harm := range v.harms() {
		for _, use := range utilities {
			pair := planes{Title: v.harmTitle(harm) + " against " + use.name}
			for _, adaptation := range adaptations {
				if c, ok := v.planeChart(harm, use, adaptation); ok {
					pair.Charts = append(pair.Charts, c)
				}
			}
			switch {
			case len(pair.Charts) == 0:
			case h == 0 && (len(shown) == 0 || open+len(pair.Charts) <= openCharts):
				shown = append(shown, pair)
				open += len(pair.Charts)
			default:
				more = append(more, pair)
			}
		}
	}
	if len(shown)+len(more) == 1 {
		for i := range shown {
			shown[i].Title = ""
		}
	}
	return shown, more
}

func (v *viewer) harmTitle(m measure) string {
	name := m.set
	if name == "" {
		name = v.firstOf(harmfulKind)
	}
	if name == "" {
		return "Harm"
	}
	return "Harm for “" + name + "”"
}

// spot is a place in a plane.
type spot struct {
	cell           *cell
	harm           score.Rate
	use, low, high float64
	tip            string
}

// spots are where a model is: before an adaptation and after its last step. Where utility was measured of no model after
// it, that before stands for both.
func (v *viewer) spots(harm measure, use utility, model, adaptation string, last int, usedBefore bool) (out []spot) {
	before := v.at[place{model, untouched, 0}]
	ends := []*cell{before}
	if last > 0 {
		ends = append(ends, v.at[place{model, adaptation, last}])
	}
	for _, found := range ends {
		from := found
		if usedBefore {
			from = before
		}
		if found == nil || from == nil || harm.of(found).N == 0 {
			continue
		}
		if value, low, high, tip, ok := use.of(from); ok {
			out = append(out, spot{found, harm.of(found), value, low, high, tip})
		}
	}
	return out
}

// planeChart sets safety against utility after the last step of an adaptation, with a line from where each model was
// before. Without adaptation it shows the models as they are.
func (v *viewer) planeChart(harm measure, use utility, adaptation string) (c chart, ok bool) {
	title := "Before fine-tuning"
	last := v.last(adaptation)
	if last > 0 {
		title = fmt.Sprintf("After %s of “%s”", stepsOf(last), v.label(adaptation))
	}
	id := "plane-" + slug(v.adaptations, adaptation)
	if harm.set != "" || use.id != benign.id {
		id = "plane-" + harm.id + "-" + use.id + "-" + slug(v.adaptations, adaptation)
	}
	c = frame(id, title, chartWidth, 300, 20)
	c.YLabel, c.XLabel = harm.axis, use.name
	usedBefore := last > 0 && !slices.ContainsFunc(v.models, func(model string) bool {
		after := v.at[place{model, adaptation, last}]
		if after == nil {
			return false
		}
		_, _, _, _, ok := use.of(after)
		return ok
	})
	if usedBefore {
		c.XLabel += " before it"
	}
	x := shareAxis(use.low, c.Left+6, c.Right-8)
	if !use.rate {
		from, to := c.Left+12, c.Right-14
		if use.falling {
			c.XLabel += ", falling"
			from, to = to, from
		}
		x = valueAxis(use.low, use.high, from, to, false)
	}
	y := shareAxis(0, c.Bottom, c.Top+4)
	c.X, c.Y = x.ticks, y.ticks
	measured := false // after the adaptation, if there is one
	for _, model := range v.models {
		s := series{style: v.styles[model], Name: v.label(model)}
		var line path
		for _, at := range v.spots(harm, use, model, adaptation, last, usedBefore) {
			measured = measured || at.cell.steps == last
			p := v.point(at.cell, at.harm)
			p.Set, p.Utility = harm.set, plain(at.use)
			p.X, p.Y = x.at(at.use), y.at(at.harm.Value())
			p.Tip += "; " + at.tip
			if p.Hollow = at.cell.steps == 0 && last > 0; !p.Hollow {
				interval := at.harm.Wilson()
				var bars path
				bars.to(p.X, y.at(interval.Low))
				bars.to(p.X, y.at(interval.High))
				if at.low < at.high {
					bars.gap()
					bars.to(x.at(math.Max(x.low, at.low)), p.Y)
					bars.to(x.at(at.high), p.Y)
				}
				p.Bars = bars.String()
			}
			line.to(p.X, p.Y)
			s.Points = append(s.Points, p)
		}
		if len(s.Points) == 0 {
			continue
		}
		if len(s.Points) > 1 {
			s.Line = line.String()
		}
		c.Series = append(c.Series, s)
	}
	c.Description = fmt.Sprintf("%s against %s; the tables below list the same numbers.", harm.name, use.name)
	return c, measured
}
