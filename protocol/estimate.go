package protocol

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/plan"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/unlearn"
)

// Estimate is what an audit will do, before anything of it is begun.
type Estimate struct {
	Cells       []PlannedCells `json:"cells"`
	Sets        []PlannedSet   `json:"prompt_sets"`
	Rows        int            `json:"rows"` // cells: models × adaptations × steps × seeds
	Pictures    int            `json:"pictures"`
	ModelCalls  int            `json:"model_calls"`  // of the UNet on one latent, to make them: guidance doubles it
	TuneSteps   int            `json:"tune_steps"`   // optimizer steps of all fine-tunings
	TuneSamples int            `json:"tune_samples"` // pictures that these see

	PictureBytes int64 `json:"picture_bytes"` // of uncompressed pixels: PNG files are smaller
	ModelBytes   int64 `json:"model_bytes"`   // of fine-tuned models that stay; 0 where the models are not here

	// Seconds are for the embedded Go engine on this machine, good to plan.TimeError; PerPicture and PerSample say for how long
	// one picture is made, and trained on.
	Seconds    float64  `json:"seconds"`
	PerPicture float64  `json:"seconds_per_picture"`
	PerSample  float64  `json:"seconds_per_sample"`
	Notes      []string `json:"notes,omitempty"` // what was assumed
}

// PlannedCells are the cells of one model and one adaptation.
type PlannedCells struct {
	Model      string   `json:"model"`
	Adaptation string   `json:"adaptation"`
	What       string   `json:"what,omitempty"` // the adaptation in a few words
	Steps      []int    `json:"steps"`
	Seeds      []uint64 `json:"seeds"`
	Pictures   int      `json:"pictures"` // of all its steps and seeds
}

// PlannedSet is a prompt set as every cell has it.
type PlannedSet struct {
	Name     string   `json:"name"`
	Kind     string   `json:"kind"`
	Prompts  int      `json:"prompts"`
	Pictures int      `json:"pictures"` // in each cell
	Detector string   `json:"detector,omitempty"`
	Counted  string   `json:"counted,omitempty"`
	Metrics  []string `json:"metrics,omitempty"`

	words []string // see loadedSet
}

// Plan goes through an audit on paper. Lists of prompts that are not here are planned with the number that the recipe
// expects of them, and models that are not here as the architecture of Stable Diffusion 1.4; Notes says so. No weights are
// read. Rates may be zero; this machine's are then measured, which takes two seconds.
func (r Recipe) Plan(ctx context.Context, o Options, rates plan.Rates) (*Estimate, error) {
	if problems := r.Validate(); len(problems) > 0 {
		return nil, &recipe.Error{Name: "audit", Problems: problems}
	}
	e := &Estimate{}
	if err := e.countPrompts(ctx, r, o.FindFile); err != nil {
		return nil, err
	}
	for _, m := range r.Models {
		e.addCells(PlannedCells{Model: m.Name, Adaptation: none, Steps: []int{0}, Seeds: r.Seeds}, r, cell{Adaptation: none, family: none})
		for _, v := range r.variants() {
			if !v.appliesTo(m.Name) {
				continue
			}
			e.addCells(PlannedCells{Model: m.Name, Adaptation: v.Name, What: v.what(), Steps: v.Steps, Seeds: r.Seeds}, r, v.cell())
			steps := slices.Max(v.Steps) * len(r.Seeds)
			e.TuneSteps += steps
			e.TuneSamples += steps * v.BatchSize * v.Accumulation
		}
	}
	e.ModelCalls = e.Pictures * r.Generate.Steps
	if r.Generate.Guidance > 1 {
		e.ModelCalls *= 2
	}
	e.checkFolders(r)
	return e, e.time(ctx, r, rates)
}

func (e *Estimate) addCells(c PlannedCells, r Recipe, of cell) {
	cells := len(c.Steps) * len(c.Seeds)
	perCell := 0
	for k, p := range r.Prompts {
		if p.isIn(of, e.Sets[k].words) {
			perCell += e.Sets[k].Pictures
		}
	}
	c.Pictures = cells * perCell
	e.Rows += cells
	e.Pictures += c.Pictures
	e.Cells = append(e.Cells, c)
}

func (e *Estimate) countPrompts(ctx context.Context, r Recipe, find findFile) error {
	var sets []loadedSet
	for _, p := range r.Prompts {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		set := PlannedSet{Name: p.Name, Kind: p.Kind, Detector: p.Detector, Metrics: p.Metrics}
		if p.counts() {
			set.Counted = p.counted()
			if err := detectors.Check(p.Detector); err != nil {
				e.note("prompts %s: %v", p.Name, err)
			}
		}
		e.checkReference(p)
		prompts, err := p.read(ctx, find)
		var lacking missingList
		switch {
		case err == nil:
			set.Prompts, set.words = len(prompts), r.learntWords(prompts)
			sets = append(sets, loadedSet{PromptSet: p, words: set.words})
		case errors.As(err, &lacking):
			set.Prompts = p.Expect
			if p.Limit > 0 && (p.Limit < set.Prompts || set.Prompts == 0) {
				set.Prompts = p.Limit
			}
			if set.Prompts == 0 {
				return err
			}
			e.note("%s; planned with %s", lacking, count(set.Prompts, "prompt"))
		default:
			return err
		}
		set.Pictures = set.Prompts * p.Pictures
		e.Sets = append(e.Sets, set)
	}
	if len(sets) < len(r.Prompts) {
		return nil // a word may be in those that are not here
	}
	return r.checkWords(sets)
}

func (e *Estimate) note(format string, args ...any) {
	e.Notes = append(e.Notes, fmt.Sprintf(format, args...))
}

// checkFolders notes which folders of pictures are not here.
func (e *Estimate) checkFolders(r Recipe) {
	seen := map[string]bool{"": true}
	for _, a := range r.Adaptations {
		if a.ClassPrompt != "" {
			a.Prior = "" // its pictures are made
		}
		for _, folder := range []string{a.Data, a.Prior, a.Contaminate} {
			if _, err := os.Stat(folder); !seen[folder] && errors.Is(err, fs.ErrNotExist) {
				e.note("adaptation %s: the picture folder %s does not exist yet", a.Name, folder)
			}
			seen[folder] = true
		}
	}
}

func (e *Estimate) checkReference(p PromptSet) {
	if _, err := os.Stat(p.Reference); p.Reference != "" && errors.Is(err, fs.ErrNotExist) {
		e.note("prompts %s: the reference %s does not exist yet", p.Name, p.Reference)
	}
}

// what describes a fine-tuning.
func (v variant) what() string {
	c := v.config(0)
	text := fmt.Sprintf("%s, %s %.3g, %d×%d pictures a step", c.Method, c.Optimizer, c.LearningRate, c.BatchSize, c.Accumulation)
	if v.ratio > 0 {
		text += fmt.Sprintf(", %.3g %% harmful", 100*v.ratio)
	}
	return text
}

// assumed is the architecture that models are planned with which are not here.
const assumed = "sd14"

// time says how long everything takes, by the graphs of an unlearning run that makes a picture and trains on two.
func (e *Estimate) time(ctx context.Context, r Recipe, rates plan.Rates) error {
	type cost struct{ picture, sample float64 }
	known := map[string]cost{} // by architecture
	var first string
	for _, m := range r.Models {
		dir, a, err := m.architecture()
		if err != nil {
			e.note("model %s: %v; planned as %s", m.Name, err, assumed)
			if a, err = plan.FromPreset(assumed); err != nil {
				return err
			}
		}
		key := fmt.Sprintf("%+v %+v %v", a.UNet, a.VAE, a.XL)
		if _, done := known[key]; !done {
			u := unlearn.Defaults()
			u.Method, u.Objective.Harm, u.Objective.Lambda, u.Trainable.Parameters, u.Outer.Steps = unlearn.Ascent, unlearn.Ascent, 0, "all", 1
			u.Data = map[string]unlearn.Dataset{"harmful": {Batch: 1}, "retain": {Batch: 1}}
			u.Resolution = 0
			u.Preview = generate.Preview{Every: 1, Prompts: []string{"one"}, Options: r.Generate}
			u.Preview.Options.Batch = 1
			p, err := plan.Make(ctx, plan.Options{Recipe: u, Model: a, Memory: 1 << 50, Rates: rates})
			if err != nil {
				return fmt.Errorf("model %s: %w", m.Name, err)
			}
			rates = p.Rates
			known[key] = cost{p.Previews, p.StepSeconds / 2}
		}
		if first == "" {
			first = key
		}
		c := known[key]
		for _, cells := range e.Cells {
			if cells.Model != m.Name {
				continue
			}
			e.Seconds += float64(cells.Pictures) * c.picture
			for _, v := range r.variants() {
				if v.Name == cells.Adaptation {
					n := slices.Max(v.Steps) * len(r.Seeds)
					e.Seconds += float64(n*v.BatchSize*v.Accumulation) * c.sample
					if r.KeepModels {
						e.ModelBytes += folderBytes(dir) * int64(len(v.Steps)*len(r.Seeds))
					}
				}
			}
		}
		e.PictureBytes += e.pixels(r, m.Name, a)
	}
	e.PerPicture, e.PerSample = known[first].picture, known[first].sample
	return nil
}

// pixels are the bytes of the pictures of a model that stay.
func (e *Estimate) pixels(r Recipe, model string, a *plan.Architecture) int64 {
	side := a.UNet.SampleSize * a.VAE.Downscale()
	h, w := r.Generate.Height, r.Generate.Width
	if h == 0 {
		h = side
	}
	if w == 0 {
		w = side
	}
	n := 0
	for _, cells := range e.Cells {
		switch {
		case cells.Model != model:
		case r.KeepPictures:
			n += cells.Pictures
		default:
			for _, s := range e.Sets {
				n += len(cells.Steps) * len(cells.Seeds) * min(r.Keep, s.Pictures)
			}
		}
	}
	return 3 * int64(h) * int64(w) * int64(n)
}

// architecture reads a model's configurations.
func (m Model) architecture() (dir string, a *plan.Architecture, err error) {
	dir = m.Path
	if isFile(filepath.Join(dir, "model", "model_index.json")) {
		dir = filepath.Join(dir, "model")
	}
	if !isFile(filepath.Join(dir, "model_index.json")) {
		return "", nil, fmt.Errorf("%s is no folder of a model here", m.Path)
	}
	a, err = plan.ReadArchitecture(dir)
	return dir, a, err
}

// folderBytes is the size of a folder's files; what cannot be looked at counts as nothing.
func folderBytes(dir string) (n int64) {
	if dir == "" {
		return 0
	}
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil // a size on paper is no reason to stop
		}
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			n += info.Size()
		}
		return nil
	})
	return n
}
