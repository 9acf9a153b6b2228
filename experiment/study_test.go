package experiment

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// smallStudy is the whole study, in seconds.
func smallStudy() (studyScale, []arm) {
	s := publishedStudy()
	s.erase, s.budget, s.harmBatches, s.agreement = 2, 2*37.4+2*250, 1, 1
	s.simulated = []int{1}
	s.adaptations = []adaptation{{name: "diverse", steps: []int{1, 2}}, {name: "harmful-5", pictures: "evaluation/diverse", harmful: 0.05, steps: []int{1}}}
	for i := range s.sets {
		s.sets[i].Size = min(s.sets[i].Size, 24)
	}
	var list []arm
	for _, a := range arms() {
		if slices.Contains([]string{Ascent, "sgd-implicit"}, a.name) {
			list = append(list, a)
		}
	}
	return s, list
}

func TestStudy(t *testing.T) {
	e := openEngine(t)
	s, list := smallStudy()
	dir := t.TempDir()
	o := StudyOptions{Out: filepath.Join(dir, "study"), Seeds: 2, Pictures: 4}

	// Asked to finish after the first jobs, it says so; called again it goes on and finds what was finished.
	finish := make(chan struct{})
	var once sync.Once
	_, err := runStudy(t.Context(), e, o, s, list, Hooks{Finish: finish, OnStep: func(string, int, int) { once.Do(func() { close(finish) }) }})
	if !errors.Is(err, train.ErrInterrupted) {
		t.Fatalf("an interrupted study ends with %v", err)
	}
	y, err := runStudy(t.Context(), e, o, s, list, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	whole := StudyOptions{Out: filepath.Join(dir, "whole"), Seeds: 1, Pictures: 4}
	z, err := runStudy(t.Context(), e, whole, s, list, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	var first []audit.Row
	for _, r := range y.Rows {
		if r.Seed == firstSeed {
			first = append(first, r)
		}
	}
	if got, want := rowsOf(t, &Outcome{Rows: first}), rowsOf(t, &Outcome{Rows: z.Rows}); got != want {
		t.Errorf("the first seed of the interrupted study has\n%s\ninstead of\n%s", got, want)
	}
	if len(y.Rows) != 2*(1+len(list)*4) {
		t.Errorf("there are %d rows", len(y.Rows))
	}
	cost := map[string]float64{}
	for _, r := range y.Rows {
		if cost[r.Model] == 0 {
			cost[r.Model] = r.Gradients
		}
	}
	for _, a := range list {
		if c := cost[a.name]; math.Abs(c-s.budget) > 0.35*s.budget { // so few steps cannot hit it better
			t.Errorf("%s cost %v gradients of %v", a.name, c, s.budget)
		}
	}
	for _, a := range y.Agreement {
		if a.Way == "exact" && math.Abs(a.Cosine-1) > 1e-5 || a.Cosine < -1.001 || a.Cosine > 1.001 || !(a.Length > 0) {
			t.Errorf("agreement %+v", a)
		}
	}
	if len(y.Agreement) != 2*(4+6) {
		t.Errorf("there are %d comparisons of hypergradients", len(y.Agreement))
	}
	checkStudyPublished(t, y, dir)
}

func checkStudyPublished(t *testing.T, y *Study, dir string) {
	t.Helper()
	results, document := filepath.Join(dir, "results.json"), filepath.Join(dir, "results.md")
	if err := os.WriteFile(document, []byte("# Before\n<!-- study: begin -->\nold\n<!-- study: end -->\n# After\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := y.Publish(results, document, map[string]string{"resalign": "test"}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# Before\n", "# After\n", "Red stars after fine-tuning", "| SGD simulated, implicit (CG, γ = 1) |", "diverse 2", "5 % harmful 1", "SGD, 1 steps"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the document has no %q:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old") || strings.Contains(string(text), "NaN") {
		t.Errorf("the document is\n%s", text)
	}
	if _, err := report.ReadResults(results); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(document, []byte("no marks"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := y.Publish(results, document, nil); err == nil || !strings.Contains(err.Error(), "no place for the tables") {
		t.Errorf("a document without marks: %v", err)
	}
	fresh := filepath.Join(dir, "new.md")
	if err := y.Publish(results, fresh, nil); err != nil {
		t.Error(err)
	}
}

func TestPaired(t *testing.T) {
	d := paired([]float64{1, 2, 3}, []float64{2, 2, 6})
	// differences −1, 0, −3: mean −4/3, standard deviation √(7/3)
	want := 4.303 * math.Sqrt(7.0/3/3)
	if math.Abs(d.Mean+4.0/3) > 1e-12 || math.Abs(d.Half-want) > 1e-9 || d.Below != 2 || d.Equal != 1 || d.Above != 0 {
		t.Errorf("difference %+v", d)
	}
	if one := paired([]float64{1}, []float64{2}); !math.IsInf(one.Half, 1) {
		t.Errorf("one seed has an interval: %+v", one)
	}
	for freedom, want := range map[int]float64{4: 2.776, 20: 2.086, 30: 2.042, 120: 1.980} {
		if got := studentT(freedom); math.Abs(got-want) > 0.01 {
			t.Errorf("t of %d degrees of freedom is %v, not %v", freedom, got, want)
		}
	}
}

func TestStudyRefuses(t *testing.T) {
	e := openEngine(t)
	s, list := smallStudy()
	for _, c := range []struct {
		o    StudyOptions
		part string
	}{
		{StudyOptions{Seeds: 1, Pictures: 1}, "no folder"},
		{StudyOptions{Out: t.TempDir(), Pictures: 1}, "0 seeds"},
		{StudyOptions{Out: t.TempDir(), Seeds: 1}, "0 pictures"},
	} {
		if _, err := runStudy(t.Context(), e, c.o, s, list, Hooks{}); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("got %v, not an error with %q", err, c.part)
		}
	}
}

// Every arm of the published study is a valid recipe that spends its budget to within one step.
func TestStudyArms(t *testing.T) {
	x := &Experiment{out: "results", engine: openEngine(t), seed: 42, scale: publishedStudy().scale}
	for _, a := range arms() {
		r := x.armRecipe(a, publishedStudy())
		if problems := r.Validate(); len(problems) > 0 {
			t.Errorf("%s: %v", a.name, problems)
		}
		if r.Method == unlearn.ResAlign && r.Outer.Steps <= 60 {
			t.Errorf("%s has %d steps", a.name, r.Outer.Steps)
		}
	}
}
