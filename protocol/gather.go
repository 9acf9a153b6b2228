package protocol

import (
	"context"
	"fmt"
	"math"
	"path"
	"slices"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/score"
)

// missing are pictures that are not there, or not looked at.
type missing struct {
	Pictures int
	First    string // one of them
}

func (m *missing) add(n int, first string) {
	if m.Pictures == 0 {
		m.First = first
	}
	m.Pictures += n
}

// gather puts the rows together from what is in an audit's folder, in the order of its cells.
func gather(ctx context.Context, dir string, r Recipe, m manifest) (rows []audit.Row, lost missing, err error) {
	c := &counter{dir: dir, recipe: r, references: map[string]keptReference{}}
	defer c.close()
	lacking, err := c.openReferences(m)
	if err != nil {
		return nil, lost, err
	}
	for _, cell := range m.Cells {
		row, err := c.row(ctx, cell)
		if err != nil {
			return nil, c.lost, fmt.Errorf("%s: %w", cell, err)
		}
		rows = append(rows, row)
	}
	if lacking.Pictures > 0 {
		c.lost.add(lacking.Pictures, lacking.First)
	}
	return rows, c.lost, nil
}

// counter puts rows together.
type counter struct {
	dir        string
	recipe     Recipe
	engine     *engine.Engine           // nil until a distance needs it
	references map[string]keptReference // by their files
	lost       missing
}

func (c *counter) close() {
	if c.engine != nil {
		c.engine.Close()
	}
}

// openReferences reads what distances are from, and counts the pictures of it that were not looked at.
func (c *counter) openReferences(m manifest) (lacking missing, err error) {
	for _, cell := range m.Cells {
		for _, s := range cell.Sets {
			for _, metric := range s.Metrics {
				name := metric.inReferences(generate.Shard{})
				if _, known := c.references[name]; known || metric.Network == "" {
					continue
				}
				kept, err := metric.readReference(c.dir)
				if err != nil {
					return lacking, err
				}
				if kept.missing > 0 {
					lacking.add(kept.missing, kept.first)
				}
				c.references[name] = kept
			}
		}
	}
	return lacking, nil
}

func (c *counter) row(ctx context.Context, of cell) (audit.Row, error) {
	r := c.recipe
	row := audit.Row{Model: of.Model, Adaptation: of.Adaptation, Steps: of.Steps, Seed: of.Seed, Contamination: of.Contamination}
	for _, model := range r.Models {
		if model.Name == of.Model {
			row.Gradients = model.Gradients
		}
	}
	var prints []string
	for _, s := range of.Sets {
		prints = append(prints, s.Folder, s.Detector)
		for _, m := range s.Metrics {
			prints = append(prints, m.key(), m.Reference)
		}
		set := r.Prompts[r.promptSet(s.Set)]
		known, err := s.look(c.dir)
		if err != nil {
			return row, err
		}
		lost := c.lost.Pictures
		rate := c.count(s, set, known, &row)
		if c.lost.Pictures == lost && !c.referenceLacks(s) {
			if err := c.measure(ctx, s, set, known, &row); err != nil {
				return row, err
			}
		}
		if !set.counts() {
			continue
		}
		row.Sets = append(row.Sets, audit.SetRate{Name: set.Name, Kind: set.Kind, Rate: rate, Interval: rate.Wilson()})
		switch set.Name {
		case r.first(Harmful):
			row.IP = rate
		case r.first(Benign):
			row.Benign = rate
		}
	}
	row.IPInterval, row.BenignInterval = row.IP.Wilson(), row.Benign.Wilson()
	row.Fingerprint = hashOf(prints...)[:32]
	return row, nil
}

// count counts a set in one cell, and adds its shown pictures to the row.
func (c *counter) count(s store, set PromptSet, known seen, row *audit.Row) score.Rate {
	harmful, isKnown := c.recipe.harmfulFor(set)
	rate := score.Rate{N: s.Pictures}
	for i := range s.Pictures {
		file := pictureFile(i/set.Pictures, i%set.Pictures)
		if !s.finished(c.dir, file, i, c.recipe.KeepPictures, known) {
			c.lost.add(1, path.Join(s.Folder, file))
			continue
		}
		f := known.found[file]
		if set.counts() && set.holds(f.Finding, f.Wanted) {
			rate.K++
		}
		if i >= s.Shown {
			continue
		}
		kind := "benign"
		if set.Kind == Harmful {
			kind = "harm"
		}
		row.Pictures = append(row.Pictures, audit.Kept{
			File: path.Join(s.Folder, file), Prompt: f.Prompt, Set: kind, List: set.Name, Finding: f.Finding, Flagged: isKnown && harmful.Holds(f.Finding),
		})
	}
	return rate
}

func (c *counter) referenceLacks(s store) bool {
	return slices.ContainsFunc(s.Metrics, func(m measuring) bool { return c.references[m.inReferences(generate.Shard{})].missing > 0 })
}

// measure puts the metrics of a whole set together, from what was kept of its pictures in their order.
func (c *counter) measure(ctx context.Context, s store, set PromptSet, known seen, row *audit.Row) (err error) {
	for k, m := range s.Metrics {
		out := audit.SetMetric{Set: set.Name, Kind: set.Kind, Metric: m.Kind, By: m.Name, Pictures: s.Pictures}
		var values []float64
		var prompts []string
		var own [][]float32
		for i := range s.Pictures {
			file := pictureFile(i/set.Pictures, i%set.Pictures)
			if m.Network != "" {
				own = append(own, known.measures[k].features[hashOf(file)])
				continue
			}
			values, prompts = append(values, known.measures[k].values[file]), append(prompts, known.found[file].Prompt)
		}
		if m.Network == "" {
			mean, interval, err := folders.Mean(values, prompts, 0) // as resalign score has it
			if err != nil {
				return fmt.Errorf("prompts %s: %s: %w", set.Name, m.Kind, err)
			}
			out.Value, out.Interval = mean, &interval
		} else {
			if c.engine == nil { // the same for whoever puts the result together, so that its bytes are
				if c.engine, err = engine.Open("go"); err != nil {
					return err
				}
			}
			out.Value, out.SD, err = folders.Between(ctx, c.engine, m.Kind, own, c.references[m.inReferences(generate.Shard{})].Reference)
			if err == nil && (math.IsNaN(out.Value) || math.IsInf(out.Value, 0)) {
				err = fmt.Errorf("it is not a number; its weights are damaged")
			}
			if err != nil {
				return fmt.Errorf("prompts %s: %s: %w", set.Name, m.Kind, err)
			}
		}
		row.Metrics = append(row.Metrics, out)
	}
	return nil
}

// harmfulFor is what harmful means to the detector of a set: its own criterion, or that of the harmful set that has the
// same detector.
func (r Recipe) harmfulFor(set PromptSet) (c score.Criterion, known bool) {
	if set.Kind == Harmful {
		return set.Criterion, true
	}
	for _, p := range r.Prompts {
		if p.Kind == Harmful && p.Detector == set.Detector {
			return p.Criterion, true
		}
	}
	return c, false
}

// promptSet is the place of the prompt set of a name, or −1.
func (r Recipe) promptSet(name string) int {
	return slices.IndexFunc(r.Prompts, func(p PromptSet) bool { return p.Name == name })
}

// first is the name of the first prompt set of a kind that has a rate: the one that reports call IP, or benign accuracy.
func (r Recipe) first(kind string) string {
	for _, p := range r.Prompts {
		if p.Kind == kind && p.counts() {
			return p.Name
		}
	}
	return ""
}

// matches makes sure that a recipe and a manifest are of one audit.
func (r Recipe) matches(m manifest, dir string) error {
	for _, c := range m.Cells {
		for _, s := range c.Sets {
			if k := r.promptSet(s.Set); k < 0 || r.Prompts[k].Pictures < 1 || s.Pictures%r.Prompts[k].Pictures != 0 {
				return fmt.Errorf("%s: %s and %s do not belong together; run the audit again", dir, recipeFile, manifestFile)
			}
		}
	}
	return nil
}
