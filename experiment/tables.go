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
	"github.com/resalign/resalign/score"
)

// grid is what was measured: models × cells × seeds.
type grid struct {
	rows  []audit.Row
	seeds []uint64
}

// cellKey is a column of a table: a model after some steps of an adaptation.
type cellKey struct {
	adaptation string
	steps      int
}

// before is the cell of a model as it is.
var before = cellKey{"none", 0}

// cells lists the columns in the order in which they were measured.
func (g grid) cells() (out []cellKey) {
	for _, r := range g.rows {
		if k := (cellKey{r.Adaptation, r.Steps}); !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// of are the rows of a cell, one for each seed, in the order of the seeds.
func (g grid) of(model string, k cellKey) (out []audit.Row) {
	for _, seed := range g.seeds {
		for _, r := range g.rows {
			if r.Model == model && r.Seed == seed && (cellKey{r.Adaptation, r.Steps}) == k {
				out = append(out, r)
			}
		}
	}
	return out
}

// bySeed are the values of a cell, one for each seed.
func (g grid) bySeed(model string, k cellKey, of func(audit.Row) float64) []float64 {
	var out []float64
	for _, r := range g.of(model, k) {
		out = append(out, of(r))
	}
	return out
}

func harmfulPercent(r audit.Row) float64 { return 100 * r.IP.Value() }
func benignPercent(r audit.Row) float64  { return 100 * r.Benign.Value() }

func harmfulRate(r audit.Row) score.Rate { return r.IP }
func benignRate(r audit.Row) score.Rate  { return r.Benign }

func mean(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// halfWidth is half the width of the 95 % t-interval of the mean; infinite for one value.
func halfWidth(v []float64) float64 {
	if len(v) < 2 {
		return math.Inf(1)
	}
	m, square := mean(v), 0.0
	for _, x := range v {
		square += (x - m) * (x - m)
	}
	n := float64(len(v))
	return studentT(len(v)-1) * math.Sqrt(square/(n-1)/n)
}

// overSeeds is a rate's mean over seeds in percent, and an interval for it: Student's over the seeds, within 0 … 100, and no
// narrower than Wilson's over all pictures, which seeds that happen to agree do not shrink.
func overSeeds(rates []score.Rate) (centre float64, i score.Interval) {
	var percent []float64
	var all score.Rate
	for _, r := range rates {
		percent, all = append(percent, 100*r.Value()), all.Add(r)
	}
	wilson := all.Wilson()
	i = score.Interval{Low: 100 * wilson.Low, High: 100 * wilson.High}
	centre = mean(percent)
	if half := halfWidth(percent); len(percent) > 1 {
		i.Low, i.High = max(0, min(i.Low, centre-half)), min(100, max(i.High, centre+half))
	}
	return centre, i
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
	out.Mean, out.Half = mean(d), halfWidth(d)
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

// writeTable writes a table in Markdown.
func writeTable(b *strings.Builder, head []string, rows [][]string) {
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(head)
	line(slices.Repeat([]string{"---"}, len(head)))
	for _, r := range rows {
		line(r)
	}
	b.WriteString("\n")
}

// list writes numbers for a sentence.
func list[T any](v []T) string {
	return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(v)), ", "), "[]")
}

// splice writes tables to a Markdown file: into the part of an existing document between two marks that bear the name, or
// as a whole new file.
func splice(document, name, tables string) error {
	begin, end := "<!-- "+name+": begin -->", "<!-- "+name+": end -->"
	part := begin + "\n\n" + tables + end
	text, err := os.ReadFile(document)
	if os.IsNotExist(err) {
		return files.WriteBytes(document, []byte(part+"\n"))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	head, rest, ok := bytes.Cut(text, []byte(begin))
	_, tail, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		return fmt.Errorf("%s: %s has no place for the tables, between the lines %s and %s; name another file", name, document, begin, end)
	}
	return files.WriteBytes(document, slices.Concat(head, []byte(part), tail))
}
