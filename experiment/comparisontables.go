package experiment

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/score"
)

func (y *Compared) grid() grid { return grid{y.Rows, y.Recipe.Seeds} }

// column is what the comparison's tables call a cell.
func (y *Compared) column(k cellKey) string {
	for _, a := range y.Recipe.Adaptations {
		if a.Name == k.adaptation {
			return fmt.Sprintf("%s, %d", a.label(), k.steps)
		}
	}
	return "before"
}

// rate shows a cell: the mean over seeds and its interval, in percent; "–" where nothing was measured.
func (y *Compared) rate(model string, k cellKey, of func(audit.Row) score.Rate) string {
	var rates []score.Rate
	for _, r := range y.grid().of(model, k) {
		rates = append(rates, of(r))
	}
	if len(rates) == 0 {
		return "–"
	}
	centre, i := overSeeds(rates)
	return fmt.Sprintf("%s [%s, %s]", percent(centre), percent(i.Low), percent(i.High))
}

func percent(x float64) string {
	if x > 0 && x < 10 {
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

// table lists methods against cells.
func (y *Compared) table(b *strings.Builder, title, text string, methods []Method, cells []cellKey, name func(cellKey) string, of func(audit.Row) score.Rate) {
	if len(cells) == 0 || len(methods) == 0 {
		return
	}
	fmt.Fprintf(b, "### %s\n\n", title)
	if text != "" {
		b.WriteString(text + "\n\n")
	}
	head := []string{"method"}
	for _, k := range cells {
		head = append(head, name(k))
	}
	var rows [][]string
	for _, m := range methods {
		row := []string{m.label()}
		for _, k := range cells {
			row = append(row, y.rate(m.Name, k, of))
		}
		rows = append(rows, row)
	}
	writeTable(b, head, rows)
}

// Markdown is the comparison as tables for a document.
func (y *Compared) Markdown() string {
	var b strings.Builder
	c := y.Recipe
	fmt.Fprintf(&b, "Seeds %s; %d pictures for harmful and %d for benign prompts in each cell and seed. A value is the mean over the seeds in percent; the brackets hold Student's 95 %% interval over the seeds, made no narrower than Wilson's over all pictures.\n\n", list(c.Seeds), c.Pictures, c.Pictures)
	var methods, ablations []Method
	for _, m := range c.Methods {
		if len(m.Adaptations) == 0 {
			methods = append(methods, m)
		}
		if m.Ablation != "" {
			m.Label = m.Ablation
			ablations = append(ablations, m)
		}
	}
	y.costTable(&b)
	long, contaminated, last := y.sweeps()
	y.table(&b, "Red stars after adaptations, in %", "The number is that of the steps.", methods, last, y.column, harmfulRate)
	y.table(&b, "Benign accuracy after adaptations, in %", "", methods, last, y.column, benignRate)
	steps := func(k cellKey) string { return fmt.Sprint(k.steps) }
	y.table(&b, "Red stars over fine-tuning steps, in %", "All weights, "+y.label(long)+".", methods, append([]cellKey{before}, long...), steps, harmfulRate)
	share := func(k cellKey) string { return percent(100*y.adaptation(k).Contamination) + " %" }
	y.table(&b, "Red stars over the share of red stars among the pictures, in %", y.sweepText(contaminated), methods, contaminated, share, harmfulRate)
	y.rivals(&b, methods, last)
	y.ablationTable(&b, ablations, long)
	return b.String()
}

// label is what the adaptation of the cells is called.
func (y *Compared) label(cells []cellKey) string {
	if len(cells) == 0 {
		return ""
	}
	return y.adaptation(cells[0]).label()
}

func (y *Compared) sweepText(cells []cellKey) string {
	if len(cells) == 0 {
		return ""
	}
	return fmt.Sprintf("After %d steps.", cells[0].steps)
}

func (y *Compared) adaptation(k cellKey) Adaptation {
	for _, a := range y.Recipe.Adaptations {
		if a.Name == k.adaptation {
			return a
		}
	}
	return Adaptation{}
}

// sweeps are the longest adaptation at all of its steps, the cells that differ from one of these in the contamination only,
// and every adaptation after its last step.
func (y *Compared) sweeps() (long, contaminated, last []cellKey) {
	var longest Adaptation
	for _, a := range y.Recipe.Adaptations {
		last = append(last, cellKey{a.Name, slices.Max(a.Steps)})
		if a.Contamination == 0 && len(a.Steps) > len(longest.Steps) {
			longest = a
		}
	}
	for _, steps := range longest.Steps {
		long = append(long, cellKey{longest.Name, steps})
	}
	for _, a := range y.Recipe.Adaptations {
		if a.Contamination == 0 || a.Pictures != longest.Pictures {
			continue
		}
		steps := slices.Max(a.Steps)
		if len(contaminated) == 0 && slices.Contains(longest.Steps, steps) {
			contaminated = append(contaminated, cellKey{longest.Name, steps})
		}
		if len(contaminated) > 0 && steps == contaminated[0].steps {
			contaminated = append(contaminated, cellKey{a.Name, steps})
		}
	}
	return long, contaminated, last
}

// costTable lists the models as they are, and what making them took.
func (y *Compared) costTable(b *strings.Builder) {
	b.WriteString("### Before adaptation, and what it took\n\nGradients are of one picture; a Hessian product counts as three. CPU time and peak memory are those of the process that made the model, means over the seeds.\n\n")
	var rows [][]string
	for _, m := range append([]Method{{Name: Base, Label: "base model"}}, y.Recipe.Methods...) {
		g := y.grid()
		row := []string{
			m.label(), y.rate(m.Name, before, harmfulRate), y.rate(m.Name, before, benignRate),
			fmt.Sprintf("%.2f", mean(g.bySeed(m.Name, before, func(r audit.Row) float64 { return r.HarmMSE }))),
			fmt.Sprintf("%.0f", mean(g.bySeed(m.Name, before, func(r audit.Row) float64 { return r.Gradients }))),
		}
		seconds, memory := "", ""
		if used := y.Costs[m.Name]; len(used) > 0 {
			var s, bytes []float64
			for _, u := range used {
				s, bytes = append(s, u.CPUSeconds), append(bytes, float64(u.PeakMemory))
			}
			seconds, memory = fmt.Sprintf("%.0f s", mean(s)), fmt.Sprintf("%.0f MiB", mean(bytes)/(1<<20))
		}
		rows = append(rows, append(row, seconds, memory))
	}
	writeTable(b, []string{"method", "red stars", "benign accuracy", "harmful error", "gradients", "CPU time", "peak memory"}, rows)
}

// rivals says where other methods let fewer red stars through than the reference.
func (y *Compared) rivals(b *strings.Builder, methods []Method, cells []cellKey) {
	i := slices.IndexFunc(methods, func(m Method) bool { return m.Name == y.Recipe.Reference })
	if i < 0 {
		return
	}
	reference, g := methods[i], y.grid()
	fmt.Fprintf(b, "### Where others beat %s\n\nMethods with fewer red stars, by percentage points with Student's 95 %% interval over the seeds, if their benign accuracy there is no more than ten points lower; an interval that holds 0 shows no difference.\n\n", reference.label())
	var rows [][]string
	for _, k := range append([]cellKey{before}, cells...) {
		base, kept := g.bySeed(reference.Name, k, harmfulPercent), mean(g.bySeed(reference.Name, k, benignPercent))
		var better []string
		for _, m := range methods {
			v := g.bySeed(m.Name, k, harmfulPercent)
			if m.Name == reference.Name || len(v) != len(base) || len(v) == 0 {
				continue
			}
			d := paired(v, base)
			if d.Mean < 0 && mean(g.bySeed(m.Name, k, benignPercent)) >= kept-10 {
				half := "?"
				if !math.IsInf(d.Half, 1) {
					half = fmt.Sprintf("%.1f", d.Half)
				}
				better = append(better, fmt.Sprintf("%s %.1f ± %s", m.label(), d.Mean, half))
			}
		}
		if len(better) == 0 {
			better = []string{"none"}
		}
		rows = append(rows, []string{y.column(k), strings.Join(better, "; ")})
	}
	writeTable(b, []string{"after", "methods"}, rows)
}

// ablationTable is the method part by part.
func (y *Compared) ablationTable(b *strings.Builder, ablations []Method, long []cellKey) {
	if len(ablations) == 0 {
		return
	}
	b.WriteString("### The method part by part, in %\n\n")
	if seeds := ablations[len(ablations)-1].Seeds; len(seeds) > 0 {
		fmt.Fprintf(b, "Of the seed %s only: intervals are Wilson's over its pictures and say nothing of other seeds.\n\n", list(seeds))
	}
	cells := slices.Clone(long)
	for _, a := range y.Recipe.Adaptations { // what all of them were put through
		k := cellKey{a.Name, slices.Max(a.Steps)}
		if !slices.Contains(cells, k) && !slices.ContainsFunc(ablations, func(m Method) bool { return len(y.grid().of(m.Name, k)) == 0 }) {
			cells = append(cells, k)
		}
	}
	head := []string{"method", "red stars before", "benign before", "gradients"}
	for _, k := range cells {
		head = append(head, "red stars: "+y.column(k))
	}
	var rows [][]string
	for _, m := range ablations {
		row := []string{
			m.label(), y.rate(m.Name, before, harmfulRate), y.rate(m.Name, before, benignRate),
			fmt.Sprintf("%.0f", mean(y.grid().bySeed(m.Name, before, func(r audit.Row) float64 { return r.Gradients }))),
		}
		for _, k := range cells {
			row = append(row, y.rate(m.Name, k, harmfulRate))
		}
		rows = append(rows, row)
	}
	writeTable(b, head, rows)
}

// Text is what a terminal shows: red stars before and after the longest fine-tuning.
func (y *Compared) Text() string {
	var b strings.Builder
	long, _, _ := y.sweeps()
	if len(long) == 0 {
		long = []cellKey{before}
	}
	k := long[len(long)-1]
	fmt.Fprintf(&b, "red stars in %%, before and after %s (seeds %s)\n", y.column(k), list(y.Recipe.Seeds))
	for _, m := range y.Recipe.Methods {
		fmt.Fprintf(&b, "  %-28s %-18s %s\n", m.label(), y.rate(m.Name, before, harmfulRate), y.rate(m.Name, k, harmfulRate))
	}
	return b.String()
}

// Publish writes results.json and report.html into the comparison's folder, and its tables into a Markdown file (see
// splice).
func (y *Compared) Publish(document string, versions map[string]string) (*Published, error) {
	p := &Published{Report: filepath.Join(y.out, "report.html"), Results: filepath.Join(y.out, "results.json"), Summary: y.Text()}
	labels, order := map[string]string{Base: "base model"}, []string{Base}
	for _, m := range y.Recipe.Methods {
		labels[m.Name], order = m.label(), append(order, m.Name)
	}
	for _, a := range y.Recipe.Adaptations {
		labels[a.Name] = a.label()
	}
	text, err := recipe.Encode(y.Recipe)
	if err != nil {
		return nil, err
	}
	recipes := map[string]string{"comparison": string(text)}
	page := report.Page{
		Title: "Methods of unlearning, before and after adaptation", Order: order, Baseline: Base, Labels: labels, Versions: versions,
		Summary: fmt.Sprintf("%d methods on the miniature, %d adaptations, seeds %s.", len(y.Recipe.Methods), len(y.Recipe.Adaptations), list(y.Recipe.Seeds)),
		Recipes: []report.NamedText{{Name: "comparison", Text: string(text)}},
	}
	page.Rows, page.PictureRoot = y.shown(), y.out
	for _, r := range y.Recipes {
		recipes[r.Name] = r.Text
	}
	if err := report.WriteResults(p.Results, report.Results{Rows: y.Rows, Versions: versions, Recipe: recipes}); err != nil {
		return nil, err
	}
	if err := report.Write(p.Report, page); err != nil {
		return nil, err
	}
	return p, splice(document, "comparison", y.Markdown())
}

// shown are the rows with the pictures that the page shows: of the first seed, before and after the longest adaptation. The
// others are in the seeds' folders.
func (y *Compared) shown() []audit.Row {
	long, _, _ := y.sweeps()
	cells := []cellKey{before}
	if len(long) > 0 {
		cells = append(cells, long[len(long)-1])
	}
	rows := slices.Clone(y.Rows)
	for i, r := range rows {
		rows[i].Pictures = nil
		if r.Seed != y.Recipe.Seeds[0] || !slices.Contains(cells, cellKey{r.Adaptation, r.Steps}) {
			continue
		}
		for _, p := range r.Pictures {
			p.File = fmt.Sprintf("seed-%d/audit/%s", r.Seed, p.File)
			rows[i].Pictures = append(rows[i].Pictures, p)
		}
	}
	return rows
}
