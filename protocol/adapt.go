package protocol

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// tuning is the fine-tuning of one model under one seed. Its folder has the model after each of the steps where it is
// measured, and while it is under way a run that can be continued.
type tuning struct {
	model foundModel
	adapting
	config finetune.Config
	folder string
	work   string
}

func (a *auditor) tuning(m foundModel, how adapting, seed uint64) tuning {
	t := tuning{model: m, adapting: how, config: how.config(seed)}
	name := fmt.Sprintf("%s-%s-%d-%s", m.Name, how.Name, seed, hashOf(m.hash, how.hash, fmt.Sprint(seed))[:12])
	share := ""
	if s := a.options.Shard; s.Of > 1 {
		share = fmt.Sprintf(".%d-of-%d", s.Index, s.Of)
	}
	if !a.recipe.KeepModels {
		name += share // other shards may need it still when this one removes its own
	}
	t.folder = filepath.Join(a.dir, "finetuned", name)
	t.work = filepath.Join(t.folder, fmt.Sprintf("run-%d%s", t.config.Steps, share))
	return t
}

// after is the model after some steps, a diffusers directory. It is there as a whole or not at all.
func (t tuning) after(steps int) string {
	return filepath.Join(t.folder, fmt.Sprintf("after-%05d", steps))
}

// word is the file of the word that was learnt after some steps. It is there before the model is.
func (t tuning) word(steps int) string { return t.after(steps) + ".safetensors" }

// has tells whether the model after some steps is there.
func (t tuning) has(steps int) bool {
	if t.wordOnly() {
		return isFile(t.word(steps))
	}
	return isFile(filepath.Join(t.after(steps), "model_index.json"))
}

// adapted are the files of the model after some steps.
func (t tuning) adapted(steps int) modelFiles {
	made := modelFiles{dir: t.after(steps)}
	if t.wordOnly() {
		made = t.model.files()
	}
	if t.Placeholder != "" {
		made.word = t.word(steps)
	}
	return made
}

// adapt fine-tunes a model as far as its missing pictures need it, and makes these.
func (a *auditor) adapt(ctx context.Context, m foundModel, how adapting, seed uint64, cells []cell) error {
	var missing []cell
	for _, c := range cells {
		todo, err := a.todo(c)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(todo, func(p []picture) bool { return len(p) > 0 }) {
			missing = append(missing, c)
		}
	}
	t := a.tuning(m, how, seed)
	if len(missing) > 0 {
		if err := a.tune(ctx, t, missing); err != nil {
			return err
		}
	}
	for _, c := range missing {
		if err := a.measure(ctx, t.adapted(c.Steps), c); err != nil {
			return err
		}
	}
	if !a.recipe.KeepModels {
		if err := os.RemoveAll(t.folder); err != nil {
			return fmt.Errorf("the fine-tuned model cannot be removed: %w", err)
		}
	}
	return nil
}

// tune makes the models that cells need. A fine-tuning that was interrupted goes on from its last checkpoint; should a
// model have been lost that lies before it, it is made again from the start.
func (a *auditor) tune(ctx context.Context, t tuning, cells []cell) error {
	complete := func() bool {
		return !slices.ContainsFunc(cells, func(c cell) bool { return !t.has(c.Steps) })
	}
	for attempt := 0; !complete(); attempt++ {
		if attempt == 2 {
			return fmt.Errorf("%s lacks a model that was just written; check the disk", t.folder)
		}
		if attempt == 1 {
			if err := os.RemoveAll(t.work); err != nil {
				return fmt.Errorf("the unfinished fine-tuning cannot be removed: %w", err)
			}
		}
		if err := a.tuneOnce(ctx, t); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(t.work); err != nil { // its checkpoints are larger than the model
		return fmt.Errorf("the finished fine-tuning's checkpoints cannot be removed: %w", err)
	}
	return nil
}

func (a *auditor) tuneOnce(ctx context.Context, t tuning) (err error) {
	what := fmt.Sprintf("fine-tuning %s, %s, seed %d", t.model.Name, t.Name, t.config.Seed)
	a.stage(what)
	if err := os.MkdirAll(t.folder, 0o755); err != nil {
		return fmt.Errorf("the folder for the fine-tuned model cannot be made: %w", err)
	}
	if err := a.removePartials(t.folder); err != nil {
		return err
	}
	m, err := sd.LoadWithLoRA(a.engine, t.model.dir, t.model.LoRA)
	if err != nil {
		return err
	}
	defer m.Free()
	pictures := t.pictures.Data
	if pictures.Cache, err = data.OpenCache(a.recipe.Cache, cacheMemory, a.hooks.Warn); err != nil {
		return err
	}
	var run *train.RunDir
	defer func() {
		if run != nil {
			if closing := run.Close(); err == nil {
				err = closing
			}
		}
	}()
	hooks := finetune.Hooks{
		OpenRun: func() (*train.RunDir, error) {
			run, err = a.openRun(t)
			return run, err
		},
		CheckpointEvery: t.CheckpointEvery, Finish: a.hooks.Finish, Warn: a.hooks.Warn,
		OnEvent: func(e train.Event) {
			if a.hooks.OnTune != nil {
				a.hooks.OnTune(what, e, t.config.Steps)
			}
		},
	}
	last := len(t.Steps) - 1
	hooks.AdaptedAt = t.Steps[:last]
	hooks.Adapted = func(_ context.Context, done int, r *finetune.Result) error { return t.keep(m, r, done) }
	result, err := finetune.Run(ctx, m, m.UNetParams, t.config, pictures, hooks)
	if err != nil {
		return err
	}
	defer result.Free()
	return t.keep(m, result, t.Steps[last])
}

// cacheMemory bounds what encoded pictures and prompts may take in memory, beside the cache's folder.
const cacheMemory = 2 << 30

// openRun makes the run's folder, or continues the run that is there.
func (a *auditor) openRun(t tuning) (*train.RunDir, error) {
	settings, err := recipe.Encode(t.config)
	if err != nil {
		return nil, err
	}
	session := train.Session{Program: a.options.Program, Engine: a.engine.Description(), Command: a.options.Command, Seeds: map[string]uint64{"seed": t.config.Seed}}
	if train.IsRun(t.work) {
		return train.ResumeRun(t.work, settings, session)
	}
	return train.CreateRun(t.work, settings, session)
}

// keep writes the model after some steps. One that is there, from another shard, is the same.
func (t tuning) keep(m *sd.Model, r *finetune.Result, steps int) error {
	if t.has(steps) {
		return nil
	}
	if r.Concept != nil {
		if err := r.Concept.Write(t.word(steps)); err != nil {
			return err
		}
	}
	if t.wordOnly() {
		return nil
	}
	err := r.Save(m, t.after(steps))
	if err != nil && t.has(steps) { // another shard was faster
		return nil
	}
	return err
}

// removePartials removes what a killed process left half written in a folder, unless other shards may be writing there.
func (a *auditor) removePartials(folder string) error {
	if a.options.Shard.Of > 1 {
		return nil
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".partial-") {
			if err := os.RemoveAll(filepath.Join(folder, e.Name())); err != nil {
				return fmt.Errorf("what a killed process left cannot be removed: %w", err)
			}
		}
	}
	return nil
}
