package report

import (
	"fmt"
	"strconv"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// setView are the charts of a prompt set that is not the first of its kind.
type setView struct {
	ID, Name, Kind string
	Charts         []chart
}

// setLine is a row of the table of prompt sets.
type setLine struct {
	style
	Model, Adaptation, Steps, Seed, Set, Kind string
	Rate                                      rateText
}

// firstOf is the name of the set whose rate is the rows' own: the first of its kind.
func (c cells) firstOf(kind string) string {
	for _, s := range c.sets {
		if s.kind == kind {
			return s.name
		}
	}
	return ""
}

// promptSets adds what was measured on every prompt set, if there are any beside the first of each kind.
func (v *viewer) promptSets(out *view) {
	out.First = v.firstSets()
	for i, set := range v.sets {
		if set.name == v.firstOf(set.kind) {
			continue
		}
		m := v.setMeasure(i, set)
		shown := setView{ID: m.id, Name: set.name, Kind: set.kind}
		for _, adaptation := range v.adaptations {
			if c, ok := v.rateChart(m, adaptation); ok {
				shown.Charts = append(shown.Charts, c)
			}
		}
		if set.kind == harmfulKind {
			for _, f := range v.families() {
				if c, ok := v.contaminationChart(m, f); ok {
					shown.Charts = append(shown.Charts, c)
				}
			}
		}
		if len(shown.Charts) > 0 {
			out.Sets = append(out.Sets, shown)
		}
	}
	for _, row := range v.sorted() {
		l := v.line(row)
		for _, s := range row.Sets {
			out.SetTable = append(out.SetTable, setLine{l.style, l.Model, l.Adaptation, l.Steps, l.Seed, s.Name, s.Kind, write(s.Rate)})
		}
	}
}

// setMeasure is the rate of one prompt set.
func (v *viewer) setMeasure(i int, set promptSet) measure {
	m := harmful
	if set.kind == benignKind {
		m = benign
	}
	if set.kind == harmfulKind {
		m.axis = "harmful pictures"
	}
	m.id, m.set = "set-"+strconv.Itoa(i+1), set.name
	m.name += " for “" + set.name + "”"
	m.of = func(c *cell) score.Rate { return c.sets[set.name] }
	m.ofRow = func(r audit.Row) score.Rate { return rateOf(r, set.name) }
	return m
}

// rateOf is a row's rate of a prompt set; it has no pictures if the row lacks the set.
func rateOf(r audit.Row, set string) score.Rate {
	for _, s := range r.Sets {
		if s.Name == set {
			return s.Rate
		}
	}
	return score.Rate{}
}

// firstSets says which prompt sets the rows' own rates are of; "" if there is no choice.
func (v *viewer) firstSets() string {
	h, b := v.firstOf(harmfulKind), v.firstOf(benignKind)
	switch {
	case len(v.sets) == 0 || h == "" && b == "":
		return ""
	case h == "":
		return fmt.Sprintf("Benign accuracy is that of the prompt set “%s”.", b)
	case b == "":
		return fmt.Sprintf("IP is that of the prompt set “%s”.", h)
	}
	return fmt.Sprintf("IP is that of the prompt set “%s”, benign accuracy that of “%s”.", h, b)
}
