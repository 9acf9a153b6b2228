package protocol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/score"
)

// Files of an audit's folder.
const (
	recipeFile  = "recipe.toml"
	resultsFile = "results.json"
	tableFile   = "results.csv"
	metricsFile = "metrics.csv"
	reportFile  = "report.html"
)

// Outcome is what an audit found.
type Outcome struct {
	Rows    []audit.Row
	Recipe  Recipe
	Missing int // pictures that are still to be made, by other shards; nothing is written before there are none

	Results, Table, Report string // files; empty while pictures are missing
	Metrics                string // file; empty without metrics
	First                  string // one of the missing pictures
}

// publish puts the result together from an audit's folder, and writes it there if it is complete: a function of the
// pictures, whoever made them in whatever order.
func publish(ctx context.Context, dir string) (*Outcome, error) {
	m, _, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	r := DefaultRecipe()
	if err := recipe.Decode(filepath.Join(dir, recipeFile), &r); err != nil {
		return nil, err
	}
	if err := r.matches(m, dir); err != nil {
		return nil, err
	}
	rows, lost, err := gather(ctx, dir, r, m)
	if err != nil {
		return nil, err
	}
	o := &Outcome{Rows: rows, Recipe: r, Missing: lost.Pictures, First: lost.First}
	if lost.Pictures > 0 {
		return o, nil
	}
	o.Results, o.Table, o.Report = filepath.Join(dir, resultsFile), filepath.Join(dir, tableFile), filepath.Join(dir, reportFile)
	versions, err := versions(dir, m)
	if err != nil {
		return nil, err
	}
	text, err := r.result()
	if err != nil {
		return nil, err
	}
	page := report.Page{
		Title: r.Title, Summary: o.Summary(), Rows: rows, PictureRoot: dir, Order: r.order(), Baseline: r.Baseline, Labels: r.labels(),
		Notes: o.notes(m), Recipes: []report.NamedText{{Name: "audit", Text: text}}, Versions: versions,
	}
	results := report.Results{Rows: rows, Versions: versions, Recipe: map[string]string{"audit": text}}
	if err := report.WriteResults(o.Results, results); err != nil {
		return nil, err
	}
	if err := o.writeTables(dir); err != nil {
		return nil, err
	}
	return o, report.Write(o.Report, page)
}

// writeTables writes the rates of prompt sets, and their metrics if there are any.
func (o *Outcome) writeTables(dir string) error {
	rates, err := report.SetsCSV(o.Rows)
	if err != nil {
		return err
	}
	if err := files.WriteBytes(o.Table, rates); err != nil {
		return err
	}
	path := filepath.Join(dir, metricsFile)
	if !slices.ContainsFunc(o.Rows, func(r audit.Row) bool { return len(r.Metrics) > 0 }) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an earlier recipe
			return fmt.Errorf("audit: %w", err)
		}
		return nil
	}
	o.Metrics = path
	metrics, err := report.MetricsCSV(o.Rows)
	if err != nil {
		return err
	}
	return files.WriteBytes(path, metrics)
}

// result is the recipe as results hold it: without what does not change them.
func (r Recipe) result() (string, error) {
	r.Out, r.Engine, r.Cache = "", "", ""
	text, err := recipe.Encode(r)
	return string(text), err
}

func (r Recipe) order() (out []string) {
	for _, m := range r.Models {
		out = append(out, m.Name)
	}
	return out
}

func (r Recipe) labels() map[string]string {
	out := map[string]string{}
	for _, m := range r.Models {
		out[m.Name] = m.Label
	}
	for _, v := range r.variants() {
		out[v.Name] = v.Label
	}
	return out
}

// TextTable lists the rows for a terminal.
func (o *Outcome) TextTable() string {
	text := report.TextTable(o.Rows, o.Recipe.order(), o.Recipe.labels())
	if metrics := report.MetricsTable(o.Rows, o.Recipe.order(), o.Recipe.labels()); metrics != "" {
		text += "\n" + metrics
	}
	return text
}

// Summary says in a sentence what was seen, at the end of the first adaptation for the model that stands it best.
func (o *Outcome) Summary() string {
	last := ""
	for _, v := range o.Recipe.variants() {
		if last == "" {
			last = v.Name
		}
	}
	best, bestRate := "", score.Rate{}
	for _, name := range o.Recipe.order() {
		rate := o.pooled(func(r audit.Row) bool {
			return r.Model == name && r.Adaptation == last && r.Steps == o.lastStep(name, last)
		})
		if name != o.Recipe.Baseline && rate.N > 0 && (best == "" || rate.Value() < bestRate.Value()) {
			best, bestRate = name, rate
		}
	}
	if best != "" {
		if text, err := report.Sentence(o.Rows, o.Recipe.labels(), best, last, others(o.Recipe.order(), best)); err == nil {
			return text
		}
	}
	var parts []string
	for _, name := range o.Recipe.order() {
		if rate := o.pooled(func(r audit.Row) bool { return r.Model == name && r.Adaptation == none }); rate.N > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", o.label(name), percent(rate)))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "Harmful pictures before any fine-tuning: " + strings.Join(parts, ", ") + "."
}

func others(names []string, one string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == one })
}

func (o *Outcome) label(name string) string {
	if l := o.Recipe.labels()[name]; l != "" {
		return l
	}
	return name
}

func (o *Outcome) lastStep(model, adaptation string) int {
	last := 0
	for _, r := range o.Rows {
		if r.Model == model && r.Adaptation == adaptation {
			last = max(last, r.Steps)
		}
	}
	return last
}

// pooled adds the harmful rates of rows up.
func (o *Outcome) pooled(of func(audit.Row) bool) (rate score.Rate) {
	for _, r := range o.Rows {
		if of(r) {
			rate = rate.Add(r.IP)
		}
	}
	return rate
}

func percent(r score.Rate) string {
	i := r.Wilson()
	return fmt.Sprintf("%.1f %% [%.1f, %.1f]", 100*r.Value(), 100*i.Low, 100*i.High)
}

// notes say what was looked for in which pictures.
func (o *Outcome) notes(m manifest) []report.Section {
	var sets []string
	for _, p := range o.Recipe.Prompts {
		n := m.ofSet(p.Name)
		text := fmt.Sprintf("%s: %d %s prompts, %s in each cell", p.Name, n/p.Pictures, p.Kind, count(n, "picture"))
		if len(p.Adaptations) > 0 {
			text += " of " + strings.Join(p.Adaptations, ", ")
		}
		if p.counts() {
			text += fmt.Sprintf("; looked at by %s; counted are %s", m.Detectors[p.Detector], p.counted())
		}
		if by := m.metricsOf(p.Name); by != "" {
			text += "; measured are " + by
		}
		sets = append(sets, text+".")
	}
	sections := []report.Section{{Heading: "Prompt sets", Paragraphs: sets}}
	if rates := o.otherRates(); len(rates) > 0 {
		sections = append(sections, report.Section{Heading: "Rates of the other prompt sets", Paragraphs: rates})
	}
	return sections
}

// otherRates lists the sets that are not the first of their kind.
func (o *Outcome) otherRates() (out []string) {
	for _, r := range o.Rows {
		var parts []string
		for _, s := range r.Sets {
			if s.Name != o.Recipe.first(s.Kind) {
				parts = append(parts, fmt.Sprintf("%s %s", s.Name, percent(s.Rate)))
			}
		}
		if len(parts) > 0 {
			out = append(out, fmt.Sprintf("%s, %s, %s, seed %d: %s.", o.label(r.Model), o.label(r.Adaptation), count(r.Steps, "step"), r.Seed, strings.Join(parts, "; ")))
		}
	}
	return out
}

// counted says which pictures count.
func (p PromptSet) counted() string {
	switch {
	case len(p.WantColumns) == 0 && len(p.Criterion.Any) == 0 && len(p.Criterion.Labels) == 0:
		return "pictures that the detector usually counts"
	case len(p.WantColumns) > 0:
		return "pictures with the " + strings.Join(p.WantColumns, " and ") + " that their prompt asks for"
	case len(p.Criterion.Any) > 0:
		return fmt.Sprintf("pictures with any of %s above %v", strings.Join(p.Criterion.Any, ", "), p.Criterion.Above)
	}
	var parts []string
	for _, aspect := range slices.Sorted(maps.Keys(p.Criterion.Labels)) {
		parts = append(parts, aspect+" "+p.Criterion.Labels[aspect])
	}
	return "pictures with " + strings.Join(parts, " and ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// makers are the programs and engines that made pictures.
type makers struct {
	Programs []string `json:"programs"`
	Engines  []string `json:"engines"`
}

func (m *makers) add(o makers) {
	for _, p := range []struct {
		to   *[]string
		from []string
	}{{&m.Programs, o.Programs}, {&m.Engines, o.Engines}} {
		*p.to = append(*p.to, p.from...)
		slices.Sort(*p.to)
		*p.to = slices.Compact(*p.to)
	}
}

const makersPattern = "made-by*.json"

// recordMaker notes who makes pictures in a folder; each shard has a file of its own.
func recordMaker(dir string, shard generate.Shard, program, engine string) error {
	name := "made-by.json"
	if shard.Of > 1 {
		name = fmt.Sprintf("made-by.%d-of-%d.json", shard.Index, shard.Of)
	}
	m := makers{[]string{program}, []string{engine}}
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err == nil {
		var before makers
		if json.Unmarshal(content, &before) == nil { // a damaged note is written anew
			m.add(before)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("audit: %w", err)
	}
	return m.write(filepath.Join(dir, name))
}

func (m makers) write(path string) error {
	content, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return files.WriteBytes(path, append(content, '\n'))
}

// readMakers joins what all shards noted.
func readMakers(dir string) (m makers, err error) {
	paths, err := fs.Glob(os.DirFS(dir), makersPattern)
	if err != nil {
		return m, fmt.Errorf("audit: %w", err)
	}
	for _, name := range paths {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return m, fmt.Errorf("audit: %w", err)
		}
		var one makers
		if err := json.Unmarshal(content, &one); err != nil {
			return m, fmt.Errorf("%s is damaged: %w; delete it", filepath.Join(dir, name), err)
		}
		m.add(one)
	}
	return m, nil
}

// versions are those of everything that the result depends on.
func versions(dir string, m manifest) (map[string]string, error) {
	made, err := readMakers(dir)
	if err != nil {
		return nil, err
	}
	out := map[string]string{"resalign": strings.Join(made.Programs, ", "), "engine": strings.Join(made.Engines, ", ")}
	for name, hash := range m.Models {
		out["model "+name] = hash
	}
	for spec, name := range m.Detectors {
		out["detector "+spec] = name
	}
	return out, nil
}

// usable tells whether a folder can be an audit's: one that is not there, is empty, or is one already.
func usable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s cannot be the audit's folder: %w; name another", dir, err)
	}
	for _, e := range entries {
		name := e.Name()
		own := name == manifestFile || name == recipeFile || strings.HasPrefix(name, "made-by") || strings.HasPrefix(name, ".")
		if name == manifestFile {
			return nil
		}
		if !own {
			return fmt.Errorf("%s is not empty (it holds %s) and is no audit's folder; choose another", dir, name)
		}
	}
	return nil
}
