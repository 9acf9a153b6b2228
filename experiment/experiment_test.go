package experiment

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// small is the whole experiment, in seconds.
func small() scale {
	s := scale{erase: 2, hold: 1, matched: 5, harmBatches: 1, sets: mini.Sets(), adaptations: []adaptation{{name: "diverse", steps: []int{1, 2}}, {name: "subject", steps: []int{1}}}}
	for i := range s.sets {
		s.sets[i].Size = min(s.sets[i].Size, 24)
	}
	return s
}

func openEngine(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func rowsOf(t *testing.T, o *Outcome) string {
	t.Helper()
	text, err := json.MarshalIndent(o.Rows, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestExperiment runs all of the experiment in small, publishes it and reads it back; then once more in another folder
// with interrupts at random moments, which must give the same rows.
func TestExperiment(t *testing.T) {
	e := openEngine(t)
	whole := options(t)
	stages := &log{}
	outcome, err := run(t.Context(), e, whole, small(), Hooks{OnStage: stages.stage, OnStep: stages.step, Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	checkRows(t, outcome.Rows)
	checkRecipes(t, outcome.Recipes)
	checkPublished(t, outcome, whole.Out)
	if len(stages.finished) != 10 || len(stages.found) != 0 { // drawing, four methods, five measurements
		t.Errorf("stages %v were finished and %v found finished", stages.finished, stages.found)
	}
	if stages.steps < 50 || stages.odd != "" {
		t.Errorf("%d reports of progress; odd: %q", stages.steps, stages.odd)
	}
	if len(outcome.Seconds) != 10 {
		t.Errorf("the account of time is %v", outcome.Seconds)
	}

	t.Run("again", func(t *testing.T) {
		again := &log{}
		second, err := run(t.Context(), e, whole, small(), Hooks{OnStage: again.stage})
		if err != nil {
			t.Fatal(err)
		}
		if len(again.finished) != 0 || len(again.found) != 10 {
			t.Errorf("stages %v were finished again and %v found", again.finished, again.found)
		}
		if got, want := rowsOf(t, second), rowsOf(t, outcome); got != want {
			t.Errorf("the second call found\n%s\ninstead of\n%s", got, want)
		}
		if !slices.Equal(second.Recipes, outcome.Recipes) {
			t.Error("the second call has other recipes")
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		parts := options(t)
		resumed := interruptedRun(t, e, parts)
		if got, want := rowsOf(t, resumed), rowsOf(t, outcome); got != want {
			t.Errorf("with interrupts the experiment found\n%s\ninstead of\n%s", got, want)
		}
		for _, row := range outcome.Rows {
			for _, picture := range row.Pictures {
				a, errA := os.ReadFile(filepath.Join(whole.Out, "audit", picture.File))
				b, errB := os.ReadFile(filepath.Join(parts.Out, "audit", picture.File))
				if errA != nil || errB != nil || !slices.Equal(a, b) {
					t.Errorf("picture %s differs (%v, %v)", picture.File, errA, errB)
				}
			}
		}
	})
	t.Run("other settings", func(t *testing.T) { otherSettings(t, e, whole) })
}

func options(t *testing.T) Options {
	return Options{Out: filepath.Join(t.TempDir(), "demo"), Seed: 42, Pictures: 4}
}

// log notes what an experiment reports; its methods are hooks.
type log struct {
	mu              sync.Mutex
	finished, found []string
	steps           int
	odd             string
}

func (l *log) stage(name string, _ time.Duration, found bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if found {
		l.found = append(l.found, name)
	} else {
		l.finished = append(l.finished, name)
	}
}

func (l *log) step(stage string, done, total int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps++
	if done < 0 || done > total {
		l.odd = stage
	}
}

func checkRows(t *testing.T, rows []audit.Row) {
	t.Helper()
	var cells []string
	for _, r := range rows {
		cells = append(cells, r.Model+" "+r.Adaptation+" "+string(rune('0'+r.Steps)))
		if r.Seed != 42 || r.IP.N != 4 || r.Benign.N != 4 || r.IPInterval != r.IP.Wilson() || r.BenignInterval != r.Benign.Wilson() || !(r.HarmMSE > 0) {
			t.Errorf("row %+v", r)
		}
		if (r.Model == Base) != (r.Gradients == 0) {
			t.Errorf("%s cost %v gradients", r.Model, r.Gradients)
		}
		if len(r.Pictures) != 8 {
			t.Errorf("%s kept %d pictures", cells[len(cells)-1], len(r.Pictures))
		}
	}
	want := []string{"base none 0"}
	for _, m := range []string{ESD, Ascent, Matched, ResAlign} {
		want = append(want, m+" none 0", m+" diverse 1", m+" diverse 2", m+" subject 1")
	}
	if !slices.Equal(cells, want) {
		t.Fatalf("cells %v, not %v", cells, want)
	}
	if base := rows[0]; base.IP.K < 3 || base.Benign.K < 3 {
		t.Errorf("the base model draws %d red stars and %d other things of 4", base.IP.K, base.Benign.K)
	}
	cost := map[string]float64{}
	for _, r := range rows {
		cost[r.Model] = r.Gradients
	}
	if cost[ResAlign] <= cost[Ascent] {
		t.Errorf("resalign cost %v gradients, ascent %v", cost[ResAlign], cost[Ascent])
	}
	if step := cost[Ascent] / 3; cost[Matched] < cost[ResAlign]-step || cost[Matched] > cost[ResAlign]+step {
		t.Errorf("the matched ascent cost %v gradients, resalign %v", cost[Matched], cost[ResAlign])
	}
}

func checkRecipes(t *testing.T, recipes []NamedRecipe) {
	t.Helper()
	var names []string
	for _, named := range recipes {
		names = append(names, named.Name)
		r := unlearn.Defaults()
		if err := recipe.LoadBytes(named.Name, []byte(named.Text), recipe.Layers{}, &r); err != nil {
			t.Errorf("recipe %s: %v", named.Name, err)
			continue
		}
		if problems := r.Validate(); len(problems) > 0 {
			t.Errorf("recipe %s: %v", named.Name, problems)
		}
		stored, err := os.ReadFile(filepath.Join(r.Out, "recipe.toml"))
		if err != nil || string(stored) != named.Text {
			t.Errorf("recipe %s is not that of its run (%v)", named.Name, err)
		}
		if r.Seed != 42 || r.Trainable.Parameters != "all" {
			t.Errorf("recipe %s has seed %d and θ %q", named.Name, r.Seed, r.Trainable.Parameters)
		}
	}
	if want := []string{ESD, Ascent, Matched, ResAlign}; !slices.Equal(names, want) {
		t.Errorf("recipes of %v, not %v", names, want)
	}
}

func checkPublished(t *testing.T, o *Outcome, out string) {
	t.Helper()
	p, err := o.Publish(out, map[string]string{"resalign": "test"})
	if err != nil {
		t.Fatal(err)
	}
	results, err := report.ReadResults(p.Results)
	if err != nil {
		t.Fatal(err)
	}
	if got := rowsOf(t, &Outcome{Rows: results.Rows}); got != rowsOf(t, o) {
		t.Errorf("results.json holds other rows:\n%s", got)
	}
	if len(results.Seconds) != 10 || len(results.Recipe) != 4 || results.Versions["resalign"] != "test" {
		t.Errorf("results.json has seconds %v, recipes of %d methods and versions %v", results.Seconds, len(results.Recipe), results.Versions)
	}
	page, err := os.ReadFile(p.Report)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"ascent, matched compute", "data:image/png", "What this does not show", "chain_reset"} {
		if !strings.Contains(string(page), part) {
			t.Errorf("the page has no %q", part)
		}
	}
	if strings.Contains(p.Summary, "–") || !strings.HasPrefix(p.Summary, "After 2 steps") {
		t.Errorf("the summary says %q", p.Summary)
	}
	for _, label := range labels() {
		if label != "none" && !strings.Contains(p.Table, label) {
			t.Errorf("the table has no %q:\n%s", label, p.Table)
		}
	}
}

// interruptedRun stops the experiment at random moments, now asking it to finish, now at once, until it comes to its end.
func interruptedRun(t *testing.T, e *engine.Engine, o Options) *Outcome {
	t.Helper()
	r := random.New(3, "interrupts")
	for session := range 40 {
		last := session >= 5
		finish := make(chan struct{})
		ctx, cancel := context.WithCancelCause(t.Context())
		after := r.IntN(24)
		if session == 0 {
			after = 100 // past the drawing
		}
		var mu sync.Mutex
		steps := 0
		outcome, err := run(ctx, e, o, small(), Hooks{Finish: finish, Program: "test", OnStep: func(string, int, int) {
			mu.Lock()
			defer mu.Unlock()
			steps++
			if steps != after || last {
				return
			}
			if session%2 == 0 {
				close(finish)
			} else {
				cancel(train.ErrAborted)
			}
		}})
		cancel(nil)
		t.Logf("session %d, interrupt after %d steps: %v", session, after, err)
		if err == nil {
			return outcome
		}
		if !errors.Is(err, train.ErrInterrupted) && !errors.Is(err, train.ErrAborted) && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	t.Fatal("the experiment does not come to its end")
	return nil
}

// otherSettings makes sure that a finished experiment is not taken for another one.
func otherSettings(t *testing.T, e *engine.Engine, o Options) {
	seed := o
	seed.Seed = 7
	longer := small()
	longer.erase++
	for _, c := range []struct {
		o    Options
		s    scale
		part string
	}{
		{seed, small(), "was begun with other settings"},
		{o, longer, "holds a run with another recipe"},
	} {
		if _, err := run(t.Context(), e, c.o, c.s, Hooks{}); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("got %v, not an error with %q", err, c.part)
		}
	}
}

func TestPublishedScale(t *testing.T) {
	x := &Experiment{out: "demo", engine: openEngine(t), seed: 42, scale: published()}
	r := x.resalign()
	if r.Outer.Steps != 100 || r.Phases[0].Steps != 60 || x.esd().Outer.Steps != 60 {
		t.Errorf("resalign has %d outer steps, %d of them to erase, esd %d", r.Outer.Steps, r.Phases[0].Steps, x.esd().Outer.Steps)
	}
	for _, r := range []unlearn.Recipe{r, x.esd(), x.ascent(Ascent, 100)} {
		if problems := r.Validate(); len(problems) > 0 {
			t.Error(problems)
		}
	}
	if steps, cells := x.scale.work(); steps != 300 || cells != 4 {
		t.Errorf("fine-tuning takes %d steps for %d cells", steps, cells)
	}
}

func TestRunRefuses(t *testing.T) {
	e := openEngine(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	mine := filepath.Join(dir, "mine")
	if err := os.MkdirAll(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, filepath.Join(mine, "thesis.tex")} {
		if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		o    Options
		part string
	}{
		{Options{Out: "", Pictures: 1}, "no folder"},
		{Options{Out: filepath.Join(dir, "new"), Pictures: 0}, "0 pictures"},
		{Options{Out: filepath.Join(dir, "new"), Pictures: 1 << 40}, "must lie between"},
		{Options{Out: file, Pictures: 1}, "is a file; name a folder"},
		{Options{Out: mine, Pictures: 1}, "is not empty"},
	} {
		if _, err := Run(t.Context(), e, c.o, Hooks{}); err == nil || !strings.Contains(err.Error(), c.part) {
			t.Errorf("%+v: got %v, not an error with %q", c.o, err, c.part)
		}
	}
	if err := TrainMiniature(t.Context(), e, mine, PublishedTraining(), Hooks{}); err == nil || !strings.Contains(err.Error(), "mini: the folder") {
		t.Errorf("training in a foreign folder gives %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("refused calls left %v, %v", entries, err)
	}
	if entries, err = os.ReadDir(mine); err != nil || len(entries) != 1 {
		t.Errorf("refused calls left %v, %v", entries, err)
	}
}
