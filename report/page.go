// Package report shows what an audit found: one HTML page that needs nothing but itself, a JSON file for machines, and
// tables for documents and terminals.
package report

import (
	"bytes"
	"fmt"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/files"
)

// Page is what a report shows. Only Title is required; parts for which there is nothing are left out.
type Page struct {
	Title   string
	Summary string // one sentence that says what was seen; Sentence can write it

	// Rows are the cells of the audit. Rows that differ in their seed only are listed one by one and pooled in the charts.
	Rows []audit.Row
	// PictureRoot is the folder that the files of kept pictures are relative to; nothing outside it is read.
	PictureRoot string

	Order    []string          // model names in the order to show them; others follow as they come, absent ones are left out
	Baseline string            // the name of the model that was not unlearned, drawn as the reference; "" if there is none
	Labels   map[string]string // model or adaptation name → what to call it

	Notes    []Section // what the results show, and what they do not
	Curves   []TrainingCurve
	Recipes  []NamedText // how the results were made, word for word
	Versions map[string]string
	Seconds  []Stage
}

// Section is a heading with its paragraphs, plain text.
type Section struct {
	Heading    string
	Paragraphs []string
}

// NamedText is a text with its name, for example a recipe and the model it made.
type NamedText struct{ Name, Text string }

// Stage is a part of the work and how long it took.
type Stage struct {
	Name    string
	Seconds float64
}

// TrainingCurve is a quantity logged during training: Y[i] at X[i]. Values that are not finite leave a gap.
type TrainingCurve struct {
	Name, XLabel, YLabel string
	X, Y                 []float64
}

// Write writes the page as one HTML file. The same page gives the same bytes; the file appears whole or not at all.
// Pictures are embedded: as they are up to 128 pixels a side, larger ones as JPEG of at most 256.
//
// It refuses rows that cannot have been measured (see Results), a baseline without rows, and pictures that cannot be read.
func Write(path string, p Page) error {
	v, err := newView(p)
	if err != nil {
		return fmt.Errorf("report %s: %w", path, err)
	}
	var page bytes.Buffer
	if err := pageTemplate.Execute(&page, v); err != nil {
		return fmt.Errorf("report %s: %w", path, err)
	}
	return files.WriteBytes(path, page.Bytes())
}

// check finds what no page could show sensibly.
func (p Page) check() error {
	if p.Title == "" {
		return fmt.Errorf("the page has no title; set Title")
	}
	if err := p.results().check(); err != nil {
		return err
	}
	if p.Baseline != "" && !hasModel(p.Rows, p.Baseline) {
		return fmt.Errorf("baseline %q has no row; name one of the models measured, or none", p.Baseline)
	}
	for _, c := range p.Curves {
		if len(c.X) != len(c.Y) {
			return fmt.Errorf("training curve %q has %d x values and %d y values; give as many of each", c.Name, len(c.X), len(c.Y))
		}
	}
	for i, named := range p.Recipes {
		for _, other := range p.Recipes[:i] {
			if named.Name == other.Name {
				return fmt.Errorf("there are two recipes named %q; give each its own name", named.Name)
			}
		}
	}
	for i, stage := range p.Seconds {
		for _, other := range p.Seconds[:i] {
			if stage.Name == other.Name {
				return fmt.Errorf("stage %q is timed twice; add its seconds up", stage.Name)
			}
		}
	}
	return nil
}

// results is what the page offers for download.
func (p Page) results() Results {
	r := Results{Rows: p.Rows, Versions: p.Versions, Seconds: map[string]float64{}, Recipe: map[string]string{}}
	for _, s := range p.Seconds {
		r.Seconds[s.Name] = s.Seconds
	}
	for _, named := range p.Recipes {
		r.Recipe[named.Name] = named.Text
	}
	return r
}

func hasModel(rows []audit.Row, name string) bool {
	for _, r := range rows {
		if r.Model == name {
			return true
		}
	}
	return false
}
