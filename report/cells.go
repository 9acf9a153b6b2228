package report

import (
	"slices"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// untouched is the adaptation of rows measured before any.
const untouched = "none"

// place is where something was measured.
type place struct {
	model, adaptation string
	steps             int
}

// cell is what was measured in one place, pooled over seeds.
type cell struct {
	place
	ip, benign score.Rate
	sets       map[string]score.Rate // by the prompt set's name
	rows       []audit.Row           // one per seed
}

// promptSet is one of several prompt sets that were measured.
type promptSet struct{ name, kind string }

// cells are the rows of an audit, arranged for showing.
type cells struct {
	models      []string
	adaptations []string // without untouched, as they first appear
	at          map[place]*cell
	sets        []promptSet        // as they first appear
	shares      map[string]float64 // adaptation → share of harmful pictures in its data
	labels      map[string]string
	seeds       int
}

func arrange(rows []audit.Row, order []string, labels map[string]string) cells {
	c := cells{at: map[place]*cell{}, shares: map[string]float64{}, labels: labels}
	for _, name := range order {
		if hasModel(rows, name) && !slices.Contains(c.models, name) {
			c.models = append(c.models, name)
		}
	}
	seeds := map[uint64]bool{}
	for _, r := range rows {
		seeds[r.Seed] = true
		if !slices.Contains(c.models, r.Model) {
			c.models = append(c.models, r.Model)
		}
		if r.Adaptation != untouched && !slices.Contains(c.adaptations, r.Adaptation) {
			c.adaptations = append(c.adaptations, r.Adaptation)
		}
		p := place{r.Model, r.Adaptation, r.Steps}
		if c.at[p] == nil {
			c.at[p] = &cell{place: p, sets: map[string]score.Rate{}}
		}
		found := c.at[p]
		found.ip, found.benign = found.ip.Add(r.IP), found.benign.Add(r.Benign)
		found.rows = append(found.rows, r)
		c.shares[r.Adaptation] = r.Contamination
		for _, s := range r.Sets {
			found.sets[s.Name] = found.sets[s.Name].Add(s.Rate)
			if set := (promptSet{s.Name, s.Kind}); !slices.Contains(c.sets, set) {
				c.sets = append(c.sets, set)
			}
		}
	}
	c.seeds = len(seeds)
	return c
}

// label is what to call a model or an adaptation.
func (c cells) label(name string) string {
	if label := c.labels[name]; label != "" {
		return label
	}
	return name
}

// steps lists where an adaptation was measured, ascending, with 0 for the models as they are.
func (c cells) steps(adaptation string) []int {
	var steps []int
	for p := range c.at {
		if (p.adaptation == adaptation || p.adaptation == untouched) && !slices.Contains(steps, p.steps) {
			steps = append(steps, p.steps)
		}
	}
	slices.Sort(steps)
	return steps
}

// last is the largest number of steps of an adaptation, over all models.
func (c cells) last(adaptation string) int {
	steps := c.steps(adaptation)
	return steps[len(steps)-1]
}

// curve is a model's cells of an adaptation, from before it to its last step.
func (c cells) curve(model, adaptation string) []*cell {
	var curve []*cell
	if before := c.at[place{model, untouched, 0}]; before != nil {
		curve = append(curve, before)
	}
	for _, steps := range c.steps(adaptation) {
		if found := c.at[place{model, adaptation, steps}]; found != nil && steps > 0 {
			curve = append(curve, found)
		}
	}
	return curve
}

// sorted lists the rows by model, adaptation, steps and seed.
func (c cells) sorted() []audit.Row {
	var rows []audit.Row
	for _, model := range c.models {
		for _, adaptation := range append([]string{untouched}, c.adaptations...) {
			for _, steps := range c.steps(adaptation) {
				if found := c.at[place{model, adaptation, steps}]; found != nil {
					rows = append(rows, found.rows...)
				}
			}
		}
	}
	return rows
}
