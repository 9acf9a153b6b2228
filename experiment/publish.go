package experiment

import (
	"fmt"
	"path/filepath"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/report"
)

// order is how models are listed.
var order = []string{Base, ESD, Ascent, Matched, ResAlign}

// labels say what the models and adaptations are.
func labels() map[string]string {
	return map[string]string{
		Base: "base model", ESD: "ESD", Ascent: "ascent", Matched: "ascent, matched compute", ResAlign: "ResAlign",
		"none": "none", "diverse": "diverse pictures", "subject": "one new subject",
	}
}

// Published is where the results were written.
type Published struct {
	Report  string `json:"report"`
	Results string `json:"results"`
	Summary string `json:"summary"`
	Table   string `json:"-"`
}

// Publish writes results.json and report.html into the experiment's folder.
func (o *Outcome) Publish(out string, versions map[string]string) (*Published, error) {
	p := &Published{
		Report: filepath.Join(out, "report.html"), Results: filepath.Join(out, "results.json"),
		Summary: Summary(o.Rows), Table: report.TextTable(o.Rows, order, labels()),
	}
	seconds, recipes := map[string]float64{}, map[string]string{}
	page := report.Page{
		Title: "What benign fine-tuning brings back", Summary: p.Summary, Rows: o.Rows, PictureRoot: filepath.Join(out, "audit"),
		Order: order, Baseline: Base, Labels: labels(), Versions: versions, Notes: notes(),
	}
	for _, s := range o.Seconds {
		seconds[s.Name] = s.Seconds
		page.Seconds = append(page.Seconds, report.Stage{Name: s.Name, Seconds: s.Seconds})
	}
	for _, r := range o.Recipes {
		recipes[r.Name] = r.Text
		page.Recipes = append(page.Recipes, report.NamedText{Name: r.Name, Text: r.Text})
	}
	if err := report.WriteResults(p.Results, report.Results{Rows: o.Rows, Seconds: seconds, Versions: versions, Recipe: recipes}); err != nil {
		return nil, err
	}
	return p, report.Write(p.Report, page)
}

// notes tell a reader what the experiment can show.
func notes() []report.Section {
	return []report.Section{
		{Heading: "What this shows", Paragraphs: []string{
			"A small text-to-image model learned to draw coloured shapes. A red star stands in for harmful content: red things and other stars are allowed, the pair is not. Each method made the model forget the pair. Then somebody fine-tuned the result on pictures without a single red star, as users of open models do. IP is the share of pictures for red-star prompts that a detector calls a red star; the benign accuracy is the share of pictures for other prompts with the right shape and colour. Bands and brackets are 95 % Wilson intervals over pictures.",
			"The matched ascent is the control that matters: the same plain loss, run for as many gradient evaluations as ResAlign needed. What ResAlign does better than plain ascent but not better than matched ascent is due to compute, and not to the simulation of fine-tuning.",
		}},
		{Heading: "What this does not show", Paragraphs: []string{
			"This is one seed of one model of half a million parameters, and the fine-tuning pictures come from the distribution that ResAlign simulated (other draws of it), which is kind to ResAlign. Intervals over pictures say nothing about other seeds: docs/results.md says what is known beyond this, and what is open. Nothing here says how a Stable Diffusion checkpoint would behave.",
		}},
	}
}

// Summary says in one sentence what was seen after the longest diverse fine-tuning.
func Summary(rows []audit.Row) string {
	steps := 0
	for _, r := range rows {
		if r.Adaptation == "diverse" {
			steps = max(steps, r.Steps)
		}
	}
	percent := func(model string, adaptation string, steps int) string {
		for _, r := range rows {
			if r.Model == model && r.Adaptation == adaptation && r.Steps == steps && r.IP.N > 0 {
				return fmt.Sprintf("%.0f %% [%.0f, %.0f]", 100*r.IP.Value(), 100*r.IPInterval.Low, 100*r.IPInterval.High)
			}
		}
		return "–"
	}
	return fmt.Sprintf("After %d steps of fine-tuning on harmless pictures, red stars were back in %s of the pictures for ESD, %s for ascent, %s for ascent with ResAlign's compute and %s for ResAlign; before, they were in %s, %s, %s and %s, and in %s for the base model.",
		steps, percent(ESD, "diverse", steps), percent(Ascent, "diverse", steps), percent(Matched, "diverse", steps), percent(ResAlign, "diverse", steps),
		percent(ESD, "none", 0), percent(Ascent, "none", 0), percent(Matched, "none", 0), percent(ResAlign, "none", 0), percent(Base, "none", 0))
}
