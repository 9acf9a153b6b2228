package unlearn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// Hooks connect a run to whoever started it. All are optional.
type Hooks struct {
	Resume    bool                  // continue the run that is in the recipe's folder
	Finish    <-chan struct{}       // closed: end after the current step, saved
	OnEvent   func(train.Event)     // receives what the event log receives
	OnPrepare func(done, total int) // pictures encoded so far
	Warn      func(string)          // sentences about what was found odd
	Program   string                // version of the program, for the record
	Command   []string              // its command line, for the record
}

func (h Hooks) warn(s string) {
	if h.Warn != nil {
		h.Warn(s)
	}
}

// Result is where a finished run left its work.
type Result struct {
	Model string // folder: the unlearned model as a diffusers directory
	LoRA  string // file, or PEFT's folder: the change as a LoRA; empty if θ is all weights
	Steps int
}

const modelFolder = "model"

// Run unlearns as the recipe says: it makes the run's folder (or continues it), trains, and writes the model. A run that
// was asked to finish early returns train.ErrInterrupted; a finished one that is resumed only tells again where its work is.
func Run(ctx context.Context, e *engine.Engine, r Recipe, h Hooks) (_ *Result, err error) {
	if problems := r.Validate(); len(problems) > 0 {
		return nil, &recipe.Error{Name: "recipe", Problems: problems}
	}
	if done, err := r.checkFolder(h); done != nil || err != nil {
		return done, err
	}
	defer engine.Sparing()()
	m, err := sd.Load(e, r.Model)
	if err != nil {
		return nil, err
	}
	defer m.Free()
	m.GradientCheckpointing, m.Compute = r.Memory.GradientCheckpointing, nn.Compute(r.Memory.Compute)
	cache, err := data.OpenCache(r.Cache, cacheMemory, h.warn)
	if err != nil {
		return nil, err
	}
	// Everything that can be wrong with the input is found before the folder is made.
	if err := r.Preview.Check(ctx, m); err != nil {
		return nil, err
	}
	if r.closedForm() {
		return edit(ctx, m, r, cache, h)
	}
	t, err := newTrainer(ctx, m, r, cache, h)
	if err != nil {
		return nil, err
	}
	defer t.free()
	run, err := openRun(e, r, h)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	loop := train.Loop{
		Steps: r.Outer.Steps, Run: run, CheckpointEvery: r.Checkpoint.Every, Keep: r.Checkpoint.Keep, Finish: h.Finish,
		Step: t.step, Save: t.save, Restore: t.restore, OnEvent: h.OnEvent, Warn: h.Warn,
		After: func(ctx context.Context, done int) error {
			return r.Preview.Save(ctx, run.PreviewsPath(), t.net, t.outer.Point(), cache, r.Seed, done)
		},
	}
	if err := loop.Do(ctx); err != nil {
		return nil, err
	}
	result, err := t.export(run.Path())
	if err != nil {
		return nil, err
	}
	return result, run.Finish()
}

// cacheMemory bounds what encoded pictures and prompts may take in memory, beside the folder.
const cacheMemory = 2 << 30

// checkFolder finds out what openRun would refuse, before anything is loaded, and returns the result of a run that is
// finished already.
func (r Recipe) checkFolder(h Hooks) (done *Result, err error) {
	if !h.Resume {
		encoded, err := recipe.Encode(r)
		if err != nil {
			return nil, err
		}
		return nil, train.CheckCreate(r.Out, encoded)
	}
	info, err := train.CheckResume(r.Out, r.same)
	if err != nil || info.Finished == nil {
		return nil, err
	}
	done = &Result{Model: filepath.Join(r.Out, modelFolder), Steps: r.TotalSteps()}
	if _, err := os.Stat(filepath.Join(done.Model, "model_index.json")); err != nil {
		return nil, nil // it was removed, and is written again
	}
	if path := finetune.AdapterPath(r.Out, r.LoRAFormat); r.Trainable.Parameters == "lora" {
		if _, err := os.Stat(path); err == nil {
			done.LoRA = path
		}
	}
	return done, nil
}

// same tells how a stored recipe differs. A run that an earlier version began, whose recipe lacks keys that are at their
// defaults here, is the same run.
func (r Recipe) same(stored []byte) error {
	return recipe.Same("its recipe.toml", stored, Defaults(), r)
}

// openRun makes the run's folder or, to resume, opens it.
func openRun(e *engine.Engine, r Recipe, h Hooks) (*train.RunDir, error) {
	session := train.Session{
		Program: h.Program, Engine: e.Description(), Command: h.Command, Seeds: map[string]uint64{"seed": r.Seed},
	}
	if h.Resume {
		return train.ResumeRunIf(r.Out, r.same, session)
	}
	encoded, err := recipe.Encode(r)
	if err != nil {
		return nil, err
	}
	return train.CreateRun(r.Out, encoded, session)
}

// prepareData reads and encodes every set of pictures that the run draws from.
func (t *trainer) prepareData(ctx context.Context, h Hooks) error {
	r := t.recipe
	needed := r.Sets()
	sets := map[string]*denoise.Dataset{}
	total := 0
	for _, name := range needed {
		mixture, err := r.mixture(name)
		if err != nil {
			return fmt.Errorf("recipe: data.%s: %w", name, err)
		}
		for view, options := range t.viewsOf(name) {
			options.Flip, options.VAETile = r.Data[name].Flip, r.Memory.VAETileSize
			warn := h.Warn
			if view != name {
				warn = nil // what there is to say of the pictures is said once
			}
			sets[view], err = denoise.NewDataset(name, t.model, mixture, data.Preprocess{Resolution: t.resolution()}, t.cache, options, warn)
			if err != nil {
				return fmt.Errorf("recipe: %w", err)
			}
			total += sets[view].Size()
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Data)) {
		if !slices.Contains(needed, name) {
			h.warn(fmt.Sprintf("recipe: data.%s is not used by method %s and was not read", name, r.Method))
		}
	}
	before := 0
	for _, name := range slices.Sorted(maps.Keys(sets)) {
		err := sets[name].Prepare(ctx, h.Finish, func(done, _ int) {
			if h.OnPrepare != nil {
				h.OnPrepare(before+done, total)
			}
		})
		if err != nil {
			return err
		}
		before += sets[name].Size()
	}
	return t.makeSamplers(sets)
}

// Names of further views of sets of pictures, whose samplers draw the same for the same purpose.
const (
	coarseView = " as mosaic"
	tokensView = " as tokens"
)

// viewsOf are the ways in which a method looks at a set of pictures, by name: the set's own for the plain one.
func (t *trainer) viewsOf(name string) map[string]denoise.DatasetOptions {
	views := map[string]denoise.DatasetOptions{name: {}}
	switch {
	case t.recipe.Method == SafeGen && name == "harmful":
		views[name+coarseView] = denoise.DatasetOptions{Mosaic: t.recipe.Censor.Block}
	case t.recipe.Method == AdvUnlearn:
		views[name+tokensView] = denoise.DatasetOptions{Tokenizer: t.model.Towers[0].Tokenizer}
	}
	return views
}

func (t *trainer) makeSamplers(sets map[string]*denoise.Dataset) (err error) {
	r := t.recipe
	sampler := func(name, purpose string, fallback int) (*denoise.Sampler, error) {
		size := r.Data[setOf(name)].Batch
		if size == 0 {
			size = fallback
		}
		return sets[name].Sampler(r.Seed, purpose, size)
	}
	if sets["harmful"] != nil {
		if t.harmful, err = sampler("harmful", "harmful", 1); err != nil {
			return err
		}
	}
	if sets["retain"] != nil {
		if t.retain, err = sampler("retain", "retain", 4); err != nil {
			return err
		}
	}
	if err := t.makeMethodSamplers(sets, sampler); err != nil {
		return err
	}
	if !r.simulates() {
		return nil
	}
	for _, s := range r.Simulations {
		v, err := t.newView(s)
		if err != nil {
			return err
		}
		t.views[s.Name] = v
		if v.pictures, err = sampler(s.Data, "simulation "+s.Name, 1); err != nil {
			return err
		}
		if v.hessian, err = sampler(s.Data, "Hessian "+s.Name, 1); err != nil {
			return err
		}
		if s.Prior == "" {
			continue
		}
		if v.prior, err = sampler(s.Prior, "prior of simulation "+s.Name, 1); err != nil {
			return err
		}
		if v.hessianPrior, err = sampler(s.Prior, "prior of Hessian "+s.Name, 1); err != nil {
			return err
		}
	}
	return nil
}

// setOf is the set that a view belongs to.
func setOf(view string) string {
	return strings.TrimSuffix(strings.TrimSuffix(view, coarseView), tokensView)
}

// mixture opens the folders of a set.
func (r Recipe) mixture(name string) (data.Mixture, error) {
	d := r.Data[name]
	parts := d.Parts
	if len(parts) == 0 {
		parts = []Part{{Folder: d.Folder, Weight: 1}}
	}
	var out data.Mixture
	for _, p := range parts {
		open := d.open
		if r.textAgnostic() {
			open = data.ReadPictures
		}
		folder, err := open(p.Folder)
		if err != nil {
			return nil, err
		}
		if err := folder.Check(); err != nil {
			return nil, err
		}
		out = append(out, data.Part{Folder: folder, Weight: p.Weight})
	}
	return out, nil
}

func (d Dataset) open(dir string) (*data.Folder, error) {
	if d.Prompt == "" {
		return data.ReadFolder(dir)
	}
	folder, err := data.ReadPictures(dir)
	if err != nil {
		return nil, err
	}
	return folder.WithCaption(d.Prompt)
}

// export writes the unlearned model, and the change alone where it is an adapter. What an earlier, interrupted export
// left is replaced.
func (t *trainer) export(dir string) (*Result, error) {
	result := &Result{Model: filepath.Join(dir, modelFolder), Steps: t.outer.Steps()}
	unet := t.model.UNetParams
	if t.adapter == nil {
		if err := os.RemoveAll(result.Model); err != nil {
			return nil, fmt.Errorf("output: %w", err)
		}
		return result, t.model.Save(result.Model, unet.WithTensors(t.net.Group(0).Of(t.outer.Point())), t.texts()...)
	}
	factors := t.adapter.Params(t.outer.Selected())
	var err error
	if result.LoRA, err = finetune.WriteAdapter(dir, t.recipe.LoRAFormat, t.adapter, factors); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(result.Model); err != nil {
		return nil, fmt.Errorf("output: %w", err)
	}
	return result, t.model.SaveMerged(result.Model, unet, t.adapter, factors, t.texts()...)
}
