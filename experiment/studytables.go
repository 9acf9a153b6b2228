package experiment

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/train"
)

// column is what the study's tables call a cell.
func column(k cellKey) string {
	name := map[string]string{"diverse": "diverse", "harmful-5": "5 % harmful", "subject": "subject"}[k.adaptation]
	return fmt.Sprintf("%s %d", name, k.steps)
}

func (y *Study) grid() grid { return grid{y.Rows, y.Seeds} }

func armLabels() map[string]string {
	out := map[string]string{Base: "base model"}
	for _, a := range arms() {
		out[a.name] = a.label
	}
	return out
}

// Markdown is the study as tables for a document.
func (y *Study) Markdown() string {
	var b strings.Builder
	label := armLabels()
	g := y.grid()
	cells := g.cells()
	pictures := 0
	for _, r := range y.Rows {
		pictures = max(pictures, r.IP.N)
	}
	seeds := list(y.Seeds)

	fmt.Fprintf(&b, "Seeds %s; %d pictures for harmful and %d for benign prompts in each cell. A value is the mean over the seeds; those of the single seeds follow in brackets, in this order.\n\n", seeds, pictures, pictures)
	table := func(head []string, rows [][]string) { writeTable(&b, head, rows) }
	values := func(v []float64) string {
		if len(v) == 0 {
			return ""
		}
		each := make([]string, len(v))
		for i, x := range v {
			each[i] = fmt.Sprintf("%.0f", x)
		}
		return fmt.Sprintf("%.1f (%s)", mean(v), strings.Join(each, " "))
	}

	b.WriteString("### Before fine-tuning\n\n")
	var rows [][]string
	for _, model := range append([]string{Base}, y.arms...) {
		rows = append(rows, []string{
			label[model], values(g.bySeed(model, before, harmfulPercent)), values(g.bySeed(model, before, benignPercent)),
			fmt.Sprintf("%.2f", mean(g.bySeed(model, before, func(r audit.Row) float64 { return r.HarmMSE }))),
			fmt.Sprintf("%.0f", mean(g.bySeed(model, before, func(r audit.Row) float64 { return r.Gradients }))),
		})
	}
	table([]string{"arm", "red stars, %", "benign accuracy, %", "harmful error", "gradients"}, rows)

	for _, part := range []struct {
		title string
		of    func(audit.Row) float64
	}{{"Red stars after fine-tuning, in %", harmfulPercent}, {"Benign accuracy after fine-tuning, in %", benignPercent}} {
		b.WriteString("### " + part.title + "\n\n")
		head, rows := []string{"arm"}, [][]string{}
		for _, k := range cells {
			if k != before {
				head = append(head, column(k))
			}
		}
		for _, model := range y.arms {
			row := []string{label[model]}
			for _, k := range cells {
				if k != before {
					row = append(row, values(g.bySeed(model, k, part.of)))
				}
			}
			rows = append(rows, row)
		}
		table(head, rows)
	}

	fmt.Fprintf(&b, "### Red stars compared with %s, in percentage points\n\nMean difference with its 95 %% t-interval over the seeds; seeds on which the arm is below / equal / above.\n\n", label[studyBaseline])
	head := []string{"arm"}
	rows = nil
	for _, k := range cells {
		if k != before {
			head = append(head, column(k))
		}
	}
	for _, model := range y.arms {
		if model == studyBaseline {
			continue
		}
		row := []string{label[model]}
		for _, k := range cells {
			if k == before {
				continue
			}
			d := paired(g.bySeed(model, k, harmfulPercent), g.bySeed(studyBaseline, k, harmfulPercent))
			row = append(row, fmt.Sprintf("%+.1f ± %.1f (%d/%d/%d)", d.Mean, d.Half, d.Below, d.Equal, d.Above))
		}
		rows = append(rows, row)
	}
	table(head, rows)
	y.agreementTable(&b, table)
	return b.String()
}

// agreementTable lists the mean cosine and length of each way against the exact derivative.
func (y *Study) agreementTable(b *strings.Builder, table func([]string, [][]string)) {
	if len(y.Agreement) == 0 {
		return
	}
	type columnKey struct {
		optimizer string
		steps     int
	}
	var columns []columnKey
	var names []string
	type key struct {
		columnKey
		name string
	}
	found := map[key][]Approximation{}
	for _, a := range y.Agreement {
		c, name := columnKey{a.Optimizer, a.Steps}, a.Way
		if a.Gamma > 0 {
			name = fmt.Sprintf("%s, γ = %g", a.Way, a.Gamma)
		}
		if !slices.Contains(columns, c) {
			columns = append(columns, c)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		found[key{c, name}] = append(found[key{c, name}], a)
	}
	b.WriteString("### Hypergradients against the exact derivative of the simulation\n\nCosine (lowest to highest over seeds and draws), and length in lengths of the exact one; at a model erased by ascent.\n\n")
	head := []string{"way"}
	for _, c := range columns {
		head = append(head, fmt.Sprintf("%s, %d steps", map[string]string{train.SGD: "SGD", train.Adam: "Adam"}[c.optimizer], c.steps))
	}
	var rows [][]string
	for _, name := range names {
		row := []string{name}
		for _, c := range columns {
			list := found[key{c, name}]
			if len(list) == 0 {
				row = append(row, "")
				continue
			}
			low, high, sum, length := math.Inf(1), math.Inf(-1), 0.0, 0.0
			for _, a := range list {
				low, high = min(low, a.Cosine), max(high, a.Cosine)
				sum, length = sum+a.Cosine/float64(len(list)), length+a.Length/float64(len(list))
			}
			row = append(row, fmt.Sprintf("%.2f (%.2f to %.2f), %.2f", sum, low, high, length))
		}
		rows = append(rows, row)
	}
	table(head, rows)
}

// Text is what a terminal shows: the recovery after the longest diverse fine-tuning.
func (y *Study) Text() string {
	var b strings.Builder
	label, last, g := armLabels(), cellKey{adaptation: "diverse"}, y.grid()
	for _, k := range g.cells() {
		if k.adaptation == last.adaptation {
			last.steps = max(last.steps, k.steps)
		}
	}
	fmt.Fprintf(&b, "red stars after %s steps of diverse fine-tuning, in %% (seeds %v)\n", fmt.Sprint(last.steps), y.Seeds)
	for _, model := range y.arms {
		v := g.bySeed(model, last, harmfulPercent)
		fmt.Fprintf(&b, "%6.1f  %v  %s\n", mean(v), v, label[model])
	}
	return b.String()
}

// Publish writes the study's numbers to results, a JSON file, and its tables to a Markdown file: into the part of an existing
// document between the marks, or as a whole new file.
func (y *Study) Publish(results, document string, versions map[string]string) error {
	recipes := map[string]string{}
	for _, r := range y.Recipes {
		recipes[r.Name] = r.Text
	}
	if err := report.WriteResults(results, report.Results{Rows: y.Rows, Versions: versions, Recipe: recipes}); err != nil {
		return err
	}
	return splice(document, "study", y.Markdown())
}
