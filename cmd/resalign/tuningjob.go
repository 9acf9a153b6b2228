package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// cacheMemory bounds what encoded pictures and prompts may take in memory, beside the cache's folder.
const cacheMemory = 2 << 30

// tuningJob is a fine-tuning with a folder of its own.
type tuningJob struct {
	engine  *engine.Engine
	tuning  tuning
	out     string
	resume  bool
	session train.Session
	finish  <-chan struct{}
	warn    func(string)

	onPrepare func(done, total int)
	onEvent   func(train.Event)

	cache *data.Cache
}

// tuned is where a finished fine-tuning left its work.
type tuned struct {
	Out   string `json:"out"`
	Model string `json:"model,omitempty"`
	LoRA  string `json:"lora,omitempty"`
	Log   string `json:"log"`
	Steps int    `json:"steps"`
}

// run carries the job out. What can be wrong with the input shows before the folder is made.
func (j *tuningJob) run(ctx context.Context) (_ tuned, err error) {
	pictures, err := j.tuning.pictures()
	if err != nil {
		return tuned{}, err
	}
	if j.cache, err = data.OpenCache(j.tuning.Cache, cacheMemory, j.warn); err != nil {
		return tuned{}, err
	}
	pictures.Cache = j.cache
	m, err := loadModel(j.engine, j.tuning.Model, j.tuning.LoRA)
	if err != nil {
		return tuned{}, err
	}
	defer m.Free()
	if o := j.tuning.Preview; o.Every > 0 {
		if _, err := diffusion.NewSampler(m.Scheduler, o.Options.Scheduler, o.Options.Steps); err != nil {
			return tuned{}, fmt.Errorf("preview: %w", err)
		}
	}
	if !j.resume {
		if err := j.rehearse(ctx, m, pictures); err != nil {
			return tuned{}, err
		}
	}
	run, err := j.openRun()
	if err != nil {
		return tuned{}, err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	if run.Info().Finished != nil {
		return j.finished(), nil
	}
	hooks := finetune.Hooks{
		Run: run, CheckpointEvery: j.tuning.CheckpointEvery, Finish: j.finish, OnEvent: j.onEvent, Warn: j.warn,
	}
	if j.resume { // otherwise the rehearsal has shown it
		hooks.OnPrepare = j.onPrepare
	}
	if j.tuning.Preview.Every > 0 {
		hooks.Preview = func(ctx context.Context, net *denoise.Network, p denoise.Point, done int) error {
			return j.preview(ctx, run.PreviewsPath(), net, p, done)
		}
	}
	result, err := finetune.Run(ctx, m, m.UNetParams, j.tuning.Config, pictures, hooks)
	if err != nil {
		return tuned{}, err
	}
	defer result.Free()
	if err := j.export(m, result); err != nil {
		return tuned{}, err
	}
	return j.finished(), run.Finish()
}

// rehearse is the fine-tuning without a step: it encodes all pictures, into the cache, and lays the network out, so that
// whatever is wrong with the input shows before the run's folder exists.
func (j *tuningJob) rehearse(ctx context.Context, m *sd.Model, pictures finetune.Data) error {
	config := j.tuning.Config
	config.Steps = 0
	result, err := finetune.Run(ctx, m, m.UNetParams, config, pictures, finetune.Hooks{OnPrepare: j.onPrepare, Warn: j.warn})
	if err != nil {
		return err
	}
	result.Free()
	return nil
}

func (j *tuningJob) openRun() (*train.RunDir, error) {
	encoded, err := recipe.Encode(j.tuning)
	if err != nil {
		return nil, err
	}
	if j.resume {
		return train.ResumeRun(j.out, encoded, j.session)
	}
	return train.CreateRun(j.out, encoded, j.session)
}

func (j *tuningJob) modelPath() string { return filepath.Join(j.out, "model") }
func (j *tuningJob) loraPath() string  { return filepath.Join(j.out, "lora.safetensors") }
func (j *tuningJob) merges() bool      { return j.tuning.Method != finetune.LoRA || !j.tuning.NoMerge }

func (j *tuningJob) finished() tuned {
	t := tuned{Out: j.out, Log: filepath.Join(j.out, "events.jsonl"), Steps: j.tuning.Steps}
	if j.merges() {
		t.Model = j.modelPath()
	}
	if j.tuning.Method == finetune.LoRA {
		t.LoRA = j.loraPath()
	}
	return t
}

// export writes the adapter and the model. A model that is there was written whole by an earlier process of this run.
func (j *tuningJob) export(m *sd.Model, r *finetune.Result) error {
	unet := r.UNet
	if r.Adapter != nil {
		lora, err := r.Adapter.LoRA(r.Factors)
		if err != nil {
			return err
		}
		if err := weights.WriteLoRA(j.loraPath(), lora, weights.F32, nil); err != nil {
			return err
		}
	}
	if !j.merges() {
		return nil
	}
	if _, err := os.Stat(j.modelPath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.Adapter != nil {
		merged, made, err := m.Merge(unet, r.Adapter, r.Factors)
		defer engine.Free(made...)
		if err != nil {
			return err
		}
		unet = merged
	}
	return m.Save(j.modelPath(), unet)
}

// preview draws one picture for each prompt with the weights as they are now.
func (j *tuningJob) preview(ctx context.Context, dir string, net *denoise.Network, p denoise.Point, done int) error {
	if done%j.tuning.Preview.Every != 0 {
		return nil
	}
	g, err := generate.New(ctx, net, p, j.tuning.Preview.Options, j.cache)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	var pictures []*data.RGB
	for i, prompt := range j.tuning.Preview.Prompts {
		picture, err := g.Picture(ctx, prompt, generate.Seed{Run: j.tuning.Seed, Prompt: i})
		if err != nil {
			return fmt.Errorf("preview: %w", err)
		}
		pictures = append(pictures, picture.Image)
	}
	grid, err := data.Grid(pictures, 4, j.tuning.Preview.Prompts)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	return data.SavePNG(filepath.Join(dir, fmt.Sprintf("step-%08d.png", done)), grid)
}
