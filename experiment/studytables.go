package experiment

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/train"
)

// cellKey is a column of the study's tables.
type cellKey struct {
	adaptation string
	steps      int
}

func (k cellKey) String() string {
	if k.steps == 0 {
		return "before"
	}
	name := map[string]string{"diverse": "diverse", "harmful-5": "5 % harmful", "subject": "subject"}[k.adaptation]
	return fmt.Sprintf("%s %d", name, k.steps)
}

// cells lists the columns in the order in which they were measured.
func (y *Study) cells() (out []cellKey) {
	for _, r := range y.Rows {
		if k := (cellKey{r.Adaptation, r.Steps}); !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// bySeed are the values of a cell, one for each seed.
func (y *Study) bySeed(model string, k cellKey, of func(audit.Row) float64) []float64 {
	var out []float64
	for _, seed := range y.Seeds {
		for _, r := range y.Rows {
			if r.Model == model && r.Seed == seed && (cellKey{r.Adaptation, r.Steps}) == k {
				out = append(out, of(r))
			}
		}
	}
	return out
}

func harmfulPercent(r audit.Row) float64 { return 100 * r.IP.Value() }
func benignPercent(r audit.Row) float64  { return 100 * r.Benign.Value() }

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// Difference is what separates an arm from another, in percentage points, with the seed as the unit.
type Difference struct {
	Mean, Half          float64 // the mean and half the width of its 95 % t-interval
	Below, Equal, Above int     // seeds
}

// paired compares two arms seed by seed.
func paired(a, b []float64) Difference {
	d := make([]float64, len(a))
	var out Difference
	for i := range a {
		d[i] = a[i] - b[i]
		switch {
		case d[i] < 0:
			out.Below++
		case d[i] > 0:
			out.Above++
		default:
			out.Equal++
		}
	}
	out.Mean = mean(d)
	square := 0.0
	for _, x := range d {
		square += (x - out.Mean) * (x - out.Mean)
	}
	n := float64(len(d))
	out.Half = math.Inf(1)
	if len(d) > 1 {
		out.Half = studentT(len(d)-1) * math.Sqrt(square/(n-1)/n)
	}
	return out
}

// studentT is the 97.5 % quantile of Student's t with the given degrees of freedom, from its usual table.
func studentT(freedom int) float64 {
	table := []float64{12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093}
	if freedom <= len(table) {
		return table[freedom-1]
	}
	return 1.960 + 2.4/float64(freedom) // within 0.002 from 20 on
}

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
	cells := y.cells()
	before := cellKey{"none", 0}
	pictures := 0
	for _, r := range y.Rows {
		pictures = max(pictures, r.IP.N)
	}
	seeds := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(y.Seeds)), ", "), "[]")

	fmt.Fprintf(&b, "Seeds %s; %d pictures for harmful and %d for benign prompts in each cell. A value is the mean over the seeds; those of the single seeds follow in brackets, in this order.\n\n", seeds, pictures, pictures)
	table := func(head []string, rows [][]string) {
		line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
		line(head)
		rule := make([]string, len(head))
		for i := range rule {
			rule[i] = "---"
		}
		line(rule)
		for _, r := range rows {
			line(r)
		}
		b.WriteString("\n")
	}
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
			label[model], values(y.bySeed(model, before, harmfulPercent)), values(y.bySeed(model, before, benignPercent)),
			fmt.Sprintf("%.2f", mean(y.bySeed(model, before, func(r audit.Row) float64 { return r.HarmMSE }))),
			fmt.Sprintf("%.0f", mean(y.bySeed(model, before, func(r audit.Row) float64 { return r.Gradients }))),
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
				head = append(head, k.String())
			}
		}
		for _, model := range y.arms {
			row := []string{label[model]}
			for _, k := range cells {
				if k != before {
					row = append(row, values(y.bySeed(model, k, part.of)))
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
			head = append(head, k.String())
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
			d := paired(y.bySeed(model, k, harmfulPercent), y.bySeed(studyBaseline, k, harmfulPercent))
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
	type column struct {
		optimizer string
		steps     int
	}
	var columns []column
	var names []string
	type key struct {
		column
		name string
	}
	found := map[key][]Approximation{}
	for _, a := range y.Agreement {
		c, name := column{a.Optimizer, a.Steps}, a.Way
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
	label, last := armLabels(), cellKey{adaptation: "diverse"}
	for _, k := range y.cells() {
		if k.adaptation == last.adaptation {
			last.steps = max(last.steps, k.steps)
		}
	}
	fmt.Fprintf(&b, "red stars after %s steps of diverse fine-tuning, in %% (seeds %v)\n", fmt.Sprint(last.steps), y.Seeds)
	for _, model := range y.arms {
		v := y.bySeed(model, last, harmfulPercent)
		fmt.Fprintf(&b, "%6.1f  %v  %s\n", mean(v), v, label[model])
	}
	return b.String()
}

// Marks between which Publish replaces a document's tables.
const (
	tablesBegin = "<!-- study: begin -->"
	tablesEnd   = "<!-- study: end -->"
)

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
	text, err := os.ReadFile(document)
	if os.IsNotExist(err) {
		return files.WriteBytes(document, []byte(tablesBegin+"\n\n"+y.Markdown()+tablesEnd+"\n"))
	}
	if err != nil {
		return fmt.Errorf("study: %w", err)
	}
	head, rest, ok := bytes.Cut(text, []byte(tablesBegin))
	_, tail, ok2 := bytes.Cut(rest, []byte(tablesEnd))
	if !ok || !ok2 {
		return fmt.Errorf("study: %s has no place for the tables, between the lines %s and %s; name another file", document, tablesBegin, tablesEnd)
	}
	return files.WriteBytes(document, slices.Concat(head, []byte(tablesBegin+"\n\n"+y.Markdown()+tablesEnd), tail))
}
