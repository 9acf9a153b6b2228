package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
)

// bench is what every test here measures: the carried miniature, its detector and some drawings.
type bench struct {
	engine   *engine.Engine
	detector *mini.Labeller
	root     string // model/ and detector.safetensors
	harm     data.Mixture
	benign   data.Mixture
}

func newBench(t *testing.T) *bench {
	t.Helper()
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	b := &bench{engine: e, root: t.TempDir()}
	if err := mini.WritePretrained(b.root); err != nil {
		t.Fatal(err)
	}
	if b.detector, err = mini.OpenDetector(e, filepath.Join(b.root, "detector.safetensors")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.detector.Free)
	var sets []mini.Set
	for _, s := range mini.Sets() {
		if s.Name == "evaluation/harm" || s.Name == "evaluation/diverse" {
			s.Size = 8
			sets = append(sets, s)
		}
	}
	if err := mini.WriteWorld(t.Context(), filepath.Join(b.root, "data"), 1, sets, nil); err != nil {
		t.Fatal(err)
	}
	b.harm, b.benign = b.mixture(t, "harm"), b.mixture(t, "diverse")
	return b
}

func (b *bench) mixture(t *testing.T, name string) data.Mixture {
	t.Helper()
	folder, err := data.ReadFolder(filepath.Join(b.root, "data", "evaluation", name))
	if err != nil {
		t.Fatal(err)
	}
	return data.Mixture{{Folder: folder, Weight: 1}}
}

// plan measures the base model on n pictures of each set.
func (b *bench) plan(n int) Plan {
	list := func(from []mini.Prompt) (out []Prompt) {
		for _, p := range from {
			out = append(out, Prompt{Text: p.Text, Want: score.Labels{"shape": p.Shape, "colour": p.Colour}})
		}
		return out
	}
	return Plan{
		Models:   []Model{{Name: "base", Dir: filepath.Join(b.root, "model"), Gradients: 12}},
		Harm:     Prompts{List: list(mini.HarmPrompts(1, mini.Core)), Pictures: n},
		Benign:   Prompts{List: list(mini.BenignPrompts(1, mini.Core)), Pictures: n},
		Harmful:  score.Criterion{Labels: score.Labels{"shape": mini.HarmShape, "colour": mini.HarmColour}},
		Generate: generate.Options{Steps: 8, Guidance: 4, Scheduler: "ddim", Batch: min(16, n)},
		Seed:     42, Keep: 2, HarmData: b.harm, HarmBatches: 1, HarmBatch: 8,
	}
}

// adapted is a small plan with an adaptation that is measured after each of two steps.
func (b *bench) adapted(t *testing.T) Plan {
	t.Helper()
	cache, err := data.OpenCache("", 16<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := finetune.Defaults(finetune.Full)
	c.BatchSize, c.Accumulation, c.LearningRate, c.Flip = 4, 1, 5e-4, false
	p := b.plan(2)
	p.Generate.Steps = 2
	p.Adaptations = []Adaptation{{Name: "diverse", Config: c, Data: finetune.Data{Pictures: b.benign, Cache: cache}, Steps: []int{1, 2}}}
	return p
}

// watched notes what was measured and what was found.
type watched struct{ made, found []string }

func (w *watched) row(r Row, found bool) {
	if found {
		w.found = append(w.found, r.cell())
	} else {
		w.made = append(w.made, r.cell())
	}
}

func (b *bench) run(t *testing.T, p Plan, dir string) (rows string, w *watched) {
	t.Helper()
	w = &watched{}
	found, err := Run(t.Context(), b.engine, p, b.detector, dir, Hooks{OnRow: w.row})
	if err != nil {
		t.Fatal(err)
	}
	return text(t, found), w
}

func text(t *testing.T, rows []Row) string {
	t.Helper()
	b, err := json.MarshalIndent(rows, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var allCells = []string{"base-none-0", "base-diverse-1", "base-diverse-2"}

func TestBaseModel(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	p := b.plan(16)
	w := &watched{}
	rows, err := Run(t.Context(), b.engine, p, b.detector, dir, Hooks{OnRow: w.row})
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || !slices.Equal(w.made, allCells[:1]) {
		t.Fatalf("%d rows; made %v", len(rows), w.made)
	}
	r := rows[0]
	if r.Model != "base" || r.Adaptation != none || r.Steps != 0 || r.Seed != 42 || r.Gradients != 12 {
		t.Errorf("the row is of %s, %s, %d steps, seed %d, %v gradients", r.Model, r.Adaptation, r.Steps, r.Seed, r.Gradients)
	}
	if r.IP.N != 16 || r.IP.K < 13 || r.Benign.N != 16 || r.Benign.K < 14 {
		t.Errorf("%d of %d harmful prompts gave a red star, %d of %d others what they asked for", r.IP.K, r.IP.N, r.Benign.K, r.Benign.N)
	}
	if r.IPInterval != r.IP.Wilson() || r.BenignInterval != r.Benign.Wilson() || r.IPInterval.Low <= 0.5 {
		t.Errorf("intervals %v and %v", r.IPInterval, r.BenignInterval)
	}
	if !(r.HarmMSE > 0 && r.HarmMSE < 1) {
		t.Errorf("the error on harmful pictures is %v", r.HarmMSE)
	}
	if len(r.Pictures) != 4 {
		t.Fatalf("%d pictures were kept", len(r.Pictures))
	}
	for i, k := range r.Pictures {
		content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(k.File)))
		if err != nil {
			t.Fatal(err)
		}
		picture, err := data.Decode(k.File, content)
		if err != nil {
			t.Fatal(err)
		}
		found, err := b.detector.Detect(t.Context(), []*data.RGB{picture})
		if err != nil || found[0].Labels["shape"] != k.Labels["shape"] || found[0].Labels["colour"] != k.Labels["colour"] {
			t.Errorf("%s is labelled %v, and now %v (%v)", k.File, k.Labels, found, err)
		}
		set, list := "harm", p.Harm.List
		if i >= 2 {
			set, list = "benign", p.Benign.List
		}
		if k.Set != set || k.Prompt != list[i%2].Text || k.Flagged != p.Harmful.Holds(k.Finding) {
			t.Errorf("picture %d is %+v", i, k)
		}
	}
	t.Run("no error on harmful pictures asked for", func(t *testing.T) {
		p := b.plan(1)
		p.Generate.Steps, p.HarmData = 1, nil
		rows, err := Run(t.Context(), b.engine, p, b.detector, t.TempDir(), Hooks{})
		if err != nil || rows[0].HarmMSE != 0 {
			t.Errorf("%v, %v", rows, err)
		}
	})
}

func TestAdaptation(t *testing.T) {
	b := newBench(t)
	p := b.adapted(t)
	whole := t.TempDir()
	rows, w := b.run(t, p, whole)
	if !slices.Equal(w.made, allCells) || len(w.found) != 0 {
		t.Fatalf("made %v, found %v", w.made, w.found)
	}
	var decoded []Row
	if err := json.Unmarshal([]byte(rows), &decoded); err != nil {
		t.Fatal(err)
	}
	mse := map[float64]bool{}
	for i, r := range decoded {
		if r.cell() != allCells[i] || r.IP.N != 2 {
			t.Errorf("row %d is %+v", i, r)
		}
		mse[r.HarmMSE] = true
	}
	if len(mse) != 3 {
		t.Errorf("fine-tuning did not change the error on harmful pictures: %v", mse)
	}
	if text(t, decoded) != rows {
		t.Error("rows do not survive JSON")
	}

	t.Run("found", func(t *testing.T) {
		again, w := b.run(t, p, whole)
		if again != rows || len(w.made) != 0 || !slices.Equal(w.found, allCells) {
			t.Errorf("made %v, found %v:\n%s", w.made, w.found, again)
		}
	})
	t.Run("further", func(t *testing.T) {
		p := p
		p.Adaptations = slices.Clone(p.Adaptations)
		p.Adaptations[0].Steps = []int{1, 2, 3} // earlier cells do not depend on how far it goes
		_, w := b.run(t, p, copied(t, whole))
		if !slices.Equal(w.made, []string{"base-diverse-3"}) || !slices.Equal(w.found, allCells) {
			t.Errorf("made %v, found %v", w.made, w.found)
		}
	})
	t.Run("other cost", func(t *testing.T) {
		p := p
		p.Models = []Model{{Name: "base", Dir: p.Models[0].Dir, Gradients: 99}}
		again, w := b.run(t, p, whole)
		if len(w.made) != 0 || again != strings.ReplaceAll(rows, `"gradients": 12`, `"gradients": 99`) {
			t.Errorf("made %v:\n%s", w.made, again)
		}
	})
	t.Run("damaged", func(t *testing.T) {
		dir := copied(t, whole)
		cell := filepath.Join(dir, "cells", allCells[1]+".json")
		content, err := os.ReadFile(cell)
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range map[string]func() error{
			"cut short": func() error { return os.WriteFile(cell, content[:len(content)/2], 0o644) },
			"empty":     func() error { return os.WriteFile(cell, nil, 0o644) },
			"another's": func() error {
				return os.WriteFile(cell, bytes.Replace(content, []byte(`"steps": 1`), []byte(`"steps": 2`), 1), 0o644)
			},
			"gone":         func() error { return os.Remove(cell) },
			"picture gone": func() error { return os.Remove(filepath.Join(dir, "pictures", allCells[1]+"-harm-00001.png")) },
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			again, w := b.run(t, p, dir)
			if again != rows || !slices.Equal(w.made, allCells[1:2]) {
				t.Errorf("%s: made %v:\n%s", name, w.made, again)
			}
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		for _, stop := range allCells[:2] {
			dir := t.TempDir()
			finish := make(chan struct{})
			w := &watched{}
			_, err := Run(t.Context(), b.engine, p, b.detector, dir, Hooks{Finish: finish, OnRow: func(r Row, found bool) {
				w.row(r, found)
				if r.cell() == stop {
					close(finish)
				}
			}})
			if !errors.Is(err, train.ErrInterrupted) || w.made[len(w.made)-1] != stop {
				t.Errorf("stopped after %s: %v; made %v", stop, err, w.made)
			}
			b.completes(t, p, dir, rows, w.made)
		}
		finish := make(chan struct{})
		close(finish)
		dir := t.TempDir()
		if _, err := Run(t.Context(), b.engine, p, b.detector, dir, Hooks{Finish: finish}); !errors.Is(err, train.ErrInterrupted) {
			t.Errorf("an audit that is to end at once says %v", err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		w := &watched{}
		_, err := Run(ctx, b.engine, p, b.detector, dir, Hooks{OnRow: w.row, OnStep: func(_, what string) {
			if what == "measuring "+allCells[1] {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) || !slices.Equal(w.made, allCells[:1]) {
			t.Errorf("killed: %v; made %v", err, w.made)
		}
		b.completes(t, p, dir, rows, w.made)
	})
}

// completes continues an audit and compares its rows.
func (b *bench) completes(t *testing.T, p Plan, dir, rows string, before []string) {
	t.Helper()
	again, w := b.run(t, p, dir)
	if again != rows || !slices.Equal(w.found, before) || !slices.Equal(w.made, allCells[len(before):]) {
		t.Errorf("after %v it found %v and made %v:\n%s", before, w.found, w.made, again)
	}
}

func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestModelsOfAnAdaptation(t *testing.T) {
	b := newBench(t)
	p := b.adapted(t)
	p.Models = append(p.Models, Model{Name: "other", Dir: p.Models[0].Dir})
	p.Adaptations[0].Models, p.Adaptations[0].Steps = []string{"other"}, []int{1}
	p.Benign.Pictures, p.HarmBatches = 0, 0
	_, w := b.run(t, p, t.TempDir())
	if want := []string{"base-none-0", "other-none-0", "other-diverse-1"}; !slices.Equal(w.made, want) {
		t.Errorf("made %v, not %v", w.made, want)
	}
}

func TestInvalidPlans(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(t.TempDir(), "audit")
	for part, change := range map[string]func(p *Plan){
		"no model to measure":          func(p *Plan) { p.Models = nil },
		`name "base" must be`:          func(p *Plan) { p.Models = append(p.Models, p.Models[0]) },
		`name "" must be`:              func(p *Plan) { p.Models[0].Name = "" },
		`name "a/b" must be`:           func(p *Plan) { p.Models[0].Name = "a/b" },
		`name ".." must be`:            func(p *Plan) { p.Models[0].Name = ".." },
		`name "none" must be`:          func(p *Plan) { p.Adaptations[0].Name = none },
		"steps [] must grow":           func(p *Plan) { p.Adaptations[0].Steps = nil },
		"steps [0 1] must grow":        func(p *Plan) { p.Adaptations[0].Steps = []int{0, 1} },
		"steps [2 1] must grow":        func(p *Plan) { p.Adaptations[0].Steps = []int{2, 1} },
		"steps [2 2] must grow":        func(p *Plan) { p.Adaptations[0].Steps = []int{2, 2} },
		`no model "nobody"`:            func(p *Plan) { p.Adaptations[0].Models = []string{"nobody"} },
		"batch_size: 0":                func(p *Plan) { p.Adaptations[0].Config.BatchSize = 0 },
		"ema_decay = 0.9":              func(p *Plan) { p.Adaptations[0].Config.EMADecay = 0.9 },
		"of harm prompts, but there":   func(p *Plan) { p.Harm.List = nil },
		"of benign prompts, but there": func(p *Plan) { p.Benign.List = nil },
		"-3 pictures of harm prompts":  func(p *Plan) { p.Harm.Pictures = -3 },
		"no pictures are asked for":    func(p *Plan) { p.Harm.Pictures, p.Benign.Pictures = 0, 0 },
		"does not say which labels":    func(p *Plan) { p.Benign.List[1].Want = nil },
		"nothing is said to be":        func(p *Plan) { p.Harmful = score.Criterion{} },
		"1 batches of 0 pictures":      func(p *Plan) { p.HarmBatch = 0 },
		"-1 batches of 8 pictures":     func(p *Plan) { p.HarmBatches = -1 },
		"both be kept as base-x-diverse-1": func(p *Plan) {
			p.Models = append(p.Models, Model{Name: "base-x", Dir: p.Models[0].Dir})
			second := p.Adaptations[0]
			second.Name = "x-diverse"
			p.Adaptations = append(p.Adaptations, second)
		},
	} {
		p := b.adapted(t)
		change(&p)
		_, err := Run(t.Context(), b.engine, p, b.detector, dir, Hooks{})
		if err == nil || !strings.HasPrefix(err.Error(), "audit: ") || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, not an error with %q", err, part)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a refused plan made its folder")
	}
}

func TestFailures(t *testing.T) {
	b := newBench(t)
	large := b.plan(1)
	large.Generate.Height, large.Generate.Width, large.Generate.Steps = 32, 32, 1
	missing := b.plan(1)
	missing.Models[0].Dir = filepath.Join(b.root, "nowhere")
	scheduler := b.plan(1)
	scheduler.Generate.Scheduler = "fast"
	short := b.plan(2)
	short.Generate.Steps = 1
	for _, c := range []struct {
		plan     Plan
		detector score.Detector
		part     string
	}{
		{large, b.detector, "looks at pictures of 16×16 pixels, not 32×32"},
		{missing, b.detector, "nowhere"},
		{scheduler, b.detector, `"fast"`},
		{short, lazy{}, "labelled 1 of 2 pictures"},
	} {
		dir := t.TempDir()
		_, err := Run(t.Context(), b.engine, c.plan, c.detector, dir, Hooks{})
		if err == nil || !strings.HasPrefix(err.Error(), "audit: model base: ") || !strings.Contains(err.Error(), c.part) {
			t.Errorf("got %v, not an error with %q", err, c.part)
		}
		if cells, err := os.ReadDir(filepath.Join(dir, "cells")); err != nil || len(cells) > 0 {
			t.Errorf("a failure left cells: %v %v", cells, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), b.engine, b.plan(1), b.detector, file, Hooks{}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("an audit in a file gives %v", err)
	}
}

// lazy is a detector that looks at the first picture only.
type lazy struct{}

func (lazy) Name() string { return "lazy" }

func (lazy) Detect(context.Context, []*data.RGB) ([]score.Finding, error) {
	return []score.Finding{{Labels: score.Labels{"shape": mini.HarmShape}}}, nil
}
