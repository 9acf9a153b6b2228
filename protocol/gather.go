package protocol

import (
	"fmt"
	"path"
	"slices"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// missing are pictures that are not there, or not looked at.
type missing struct {
	Pictures int
	First    string // one of them
}

func (m *missing) add(what string) {
	if m.Pictures == 0 {
		m.First = what
	}
	m.Pictures++
}

// gather puts the rows together from what is in an audit's folder, in the order of its cells.
func gather(dir string, r Recipe, m manifest) (rows []audit.Row, lost missing, err error) {
	for _, c := range m.Cells {
		row := audit.Row{Model: c.Model, Adaptation: c.Adaptation, Steps: c.Steps, Seed: c.Seed, Contamination: c.Contamination}
		for _, model := range r.Models {
			if model.Name == c.Model {
				row.Gradients = model.Gradients
			}
		}
		var folders []string
		for _, s := range c.Sets {
			folders = append(folders, s.Folder, s.Detector)
			set := r.Prompts[r.promptSet(s.Set)]
			rate, err := s.gather(dir, r, set, &row, &lost)
			if err != nil {
				return nil, lost, err
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
		row.Fingerprint = hashOf(folders...)[:32]
		rows = append(rows, row)
	}
	return rows, lost, nil
}

// gather counts a set in one cell, and adds its shown pictures to the row.
func (s store) gather(dir string, r Recipe, set PromptSet, row *audit.Row, lost *missing) (score.Rate, error) {
	found, there, err := s.findings(dir)
	if err != nil {
		return score.Rate{}, err
	}
	harmful, known := r.harmfulFor(set)
	rate := score.Rate{N: s.Pictures}
	for i := range s.Pictures {
		file := pictureFile(i/set.Pictures, i%set.Pictures)
		if !s.finished(dir, file, i, r.KeepPictures, found, there) {
			lost.add(path.Join(s.Folder, file))
			continue
		}
		f := found[file]
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
			File: path.Join(s.Folder, file), Prompt: f.Prompt, Set: kind, List: set.Name, Finding: f.Finding, Flagged: known && harmful.Holds(f.Finding),
		})
	}
	return rate, nil
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
			if k := r.promptSet(s.Set); k < 0 || s.Pictures%r.Prompts[k].Pictures != 0 {
				return fmt.Errorf("%s: %s and %s do not belong together; run the audit again", dir, recipeFile, manifestFile)
			}
		}
	}
	return nil
}
