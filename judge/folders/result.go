package folders

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/score"
)

const (
	resultFile   = "score.json"
	picturesFile = "pictures.csv"
)

// Result is what a job found out, score.json.
type Result struct {
	Folders     []Scored     `json:"folders"`
	Comparisons []Comparison `json:"comparisons,omitempty"`
	Seed        uint64       `json:"seed"` // of the bootstrap
}

// Scored is what was found out about one folder.
type Scored struct {
	Folder   string  `json:"folder"`
	Pictures int     `json:"pictures"`
	Prompts  int     `json:"prompts,omitempty"` // different ones
	Rates    []Rate  `json:"rates,omitempty"`
	Metrics  []Value `json:"metrics,omitempty"`
}

// Rate is the share of pictures that a detector finds harmful.
type Rate struct {
	Detector  string          `json:"detector"` // its kind
	By        string          `json:"by"`       // with version and weights
	Criterion score.Criterion `json:"criterion"`
	score.Rate
	Share    float64        `json:"rate"`
	Interval score.Interval `json:"interval"` // 95 %, Wilson
}

// Value is a metric of a folder.
type Value struct {
	Metric    string          `json:"metric"` // its kind
	By        string          `json:"by"`     // with weights
	Value     float64         `json:"value"`
	SD        *float64        `json:"sd,omitempty"`       // of a distance over subsets
	Interval  *score.Interval `json:"interval,omitempty"` // of a mean: 95 %, bootstrap over prompts
	Pictures  int             `json:"pictures"`           // that were looked at
	Reference string          `json:"reference,omitempty"`
}

// Comparison is a folder against the first one, by one measure, over what both have.
type Comparison struct {
	Measure string `json:"measure"` // the kind of detector or metric
	A       string `json:"a"`       // the first folder
	B       string `json:"b"`
	score.Difference
	Over  string `json:"over"`  // what was paired: "prompts", or "pictures" of the same name
	Pairs int    `json:"pairs"` // how many
}

// result puts the numbers together and writes them into the folder.
func (r *runner) result() (*Result, error) {
	result := &Result{Seed: r.job.Seed}
	for i, f := range r.folders {
		s := Scored{Folder: f.Dir, Pictures: len(f.Pictures), Prompts: f.prompts()}
		for _, m := range r.values[i] {
			if m.criterion != nil {
				rate := m.rate()
				s.Rates = append(s.Rates, Rate{m.kind, m.by, *m.criterion, rate, rate.Value(), rate.Wilson()})
				continue
			}
			v := Value{Metric: m.kind, By: m.by, Value: m.distance, SD: m.sd, Pictures: m.pictures}
			if m.values == nil {
				v.Reference = r.job.Reference
			} else {
				mean, interval, err := Mean(m.values, f.groups(), r.job.Seed)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", f.Dir, err)
				}
				v.Value, v.Interval = mean, &interval
				if r.against != nil && slices.ContainsFunc(r.job.Metrics, func(metric *Metric) bool { return metric.pairs && metric.Name == m.by }) {
					v.Reference = r.job.Against
				}
			}
			s.Metrics = append(s.Metrics, v)
		}
		result.Folders = append(result.Folders, s)
	}
	for i := 1; i < len(r.folders); i++ {
		for k, m := range r.values[0] {
			if m.values == nil {
				continue
			}
			pairs, over := paired(r.folders[0], r.folders[i], m.values, r.values[i][k].values)
			if len(pairs) == 0 {
				r.hooks.Warn(fmt.Sprintf("%s and %s have neither prompts nor names of pictures in common, so %s is not compared", r.folders[0].Dir, r.folders[i].Dir, m.kind))
				continue
			}
			d, err := score.BootstrapDifference(pairs, score.Resamples, r.job.Seed)
			if err != nil {
				return nil, err
			}
			result.Comparisons = append(result.Comparisons, Comparison{
				Measure: m.kind, A: r.folders[0].Dir, B: r.folders[i].Dir, Difference: d, Over: over, Pairs: len(pairs),
			})
		}
	}
	return result, r.write(result)
}

func (m measured) rate() score.Rate {
	rate := score.Rate{N: len(m.values)}
	for _, v := range m.values {
		if v > 0 {
			rate.K++
		}
	}
	return rate
}

// groups are what pictures belong to: their prompt, or each to itself.
func (f *Folder) groups() []string {
	out := make([]string, len(f.Pictures))
	for i, p := range f.Pictures {
		if out[i] = p.Name; f.Prompted {
			out[i] = p.Prompt
		}
	}
	return out
}

// grouped are the values of each group. Values that are NaN, of pictures without one, are left out.
func grouped(values []float64, groups []string) []score.Prompted {
	var out []score.Prompted
	place := map[string]int{}
	for i, group := range groups {
		if math.IsNaN(values[i]) {
			continue
		}
		if _, known := place[group]; !known {
			place[group] = len(out)
			out = append(out, nil)
		}
		out[place[group]] = append(out[place[group]], values[i])
	}
	return out
}

// paired brings the values of two folders together: by prompt if they have some in common, else by the names of pictures.
func paired(a, b *Folder, valuesA, valuesB []float64) (pairs []score.Paired, over string) {
	join := func(name func(p Picture) string) []score.Paired {
		groups := map[string]*score.Paired{}
		var order []string
		for k, f := range []*Folder{a, b} {
			for i, p := range f.Pictures {
				v := [][]float64{valuesA, valuesB}[k][i]
				if math.IsNaN(v) {
					continue
				}
				group := groups[name(p)]
				if group == nil {
					group = &score.Paired{}
					groups[name(p)] = group
					order = append(order, name(p))
				}
				if k == 0 {
					group.A = append(group.A, v)
				} else {
					group.B = append(group.B, v)
				}
			}
		}
		var out []score.Paired
		for _, n := range order {
			if g := groups[n]; len(g.A) > 0 && len(g.B) > 0 {
				out = append(out, *g)
			}
		}
		return out
	}
	if a.Prompted && b.Prompted {
		if pairs := join(func(p Picture) string { return p.Prompt }); len(pairs) > 0 {
			return pairs, "prompts"
		}
	}
	return join(func(p Picture) string { return p.Name }), "pictures"
}

func (r *runner) write(result *Result) error {
	content, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	if err := files.WriteBytes(filepath.Join(r.job.Out, resultFile), append(content, '\n')); err != nil {
		return err
	}
	table, err := r.table()
	if err != nil {
		return err
	}
	return files.WriteBytes(filepath.Join(r.job.Out, picturesFile), table)
}

// table has a row for each picture and measure.
func (r *runner) table() ([]byte, error) {
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	w.Write([]string{"folder", "file", "prompt", "measure", "value", "found"}) // errors are kept until Flush
	for i, f := range r.folders {
		for _, m := range r.values[i] {
			for k, value := range m.values {
				p := f.Pictures[k]
				text, found := "", ""
				if !math.IsNaN(value) {
					text = strconv.FormatFloat(value, 'g', -1, 64)
				}
				if m.found != nil {
					found = describe(m.found[k])
				}
				w.Write([]string{f.Dir, p.Name, p.Prompt, m.kind, text, found})
			}
		}
	}
	w.Flush()
	return out.Bytes(), w.Error()
}

// describe writes what was found in one cell: values of aspects, and scores from the surest down.
func describe(f score.Finding) string {
	var parts []string
	for aspect, value := range f.Labels {
		parts = append(parts, aspect+"="+value)
	}
	slices.Sort(parts)
	var labels []string
	for label := range f.Scores {
		labels = append(labels, label)
	}
	slices.SortFunc(labels, func(a, b string) int {
		if f.Scores[a] != f.Scores[b] {
			if f.Scores[a] > f.Scores[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	for _, label := range labels {
		parts = append(parts, fmt.Sprintf("%s %.4f", label, f.Scores[label]))
	}
	return strings.Join(parts, "; ")
}
