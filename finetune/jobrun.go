package finetune

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// JobHooks connect a job to whoever started it. All are optional.
type JobHooks struct {
	Resume    bool                               // continue the run that is in the folder
	Finish    <-chan struct{}                    // closed: break the preparation off, or end after the step under way, saved
	OnEvent   func(train.Event)                  // receives what the event log receives
	OnPrepare func(done, total int)              // pictures encoded so far
	OnBuckets func([]data.BucketCount)           // sizes of the pictures, where they keep their aspect ratios
	OnWork    func(what string, done, total int) // other preparations, such as "making prior pictures"
	Warn      func(string)                       // sentences about what was found odd
	Program   string                             // version of the program, for the record
	Command   []string                           // its command line, for the record
}

// JobResult is where a finished job left its work.
type JobResult struct {
	Model     string // folder: the adapted model as a diffusers directory; empty where it was not asked for or did not change
	LoRA      string // file, or PEFT's folder: the adapter; empty unless one was trained
	Embedding string // file: the new word's embeddings; empty unless they were trained
	Shifts    string // file: shifts of singular values, which Model contains; empty unless they were trained
	Log       string // file: what happened in each step
	Steps     int
}

const (
	modelFolder = "model"
	conceptFile = "learned_embeds.safetensors" // the name that diffusers looks for
	shiftsFile  = "spectral_shifts.safetensors"
)

// cacheMemory bounds what encoded pictures and prompts may take in memory, beside the cache's folder.
const cacheMemory = 2 << 30

// runningJob is a job under way.
type runningJob struct {
	Job
	engine *engine.Engine
	out    string
	hooks  JobHooks
	cache  *data.Cache
	run    *train.RunDir
}

// RunJob carries a job out: it makes the run's folder out (or continues it), trains, and writes the model. What can be
// wrong with the input shows before the folder is made. A job that was asked to finish early returns
// train.ErrInterrupted; a finished one that is resumed only tells again where its work is.
func RunJob(ctx context.Context, e *engine.Engine, out string, j Job, h JobHooks) (_ *JobResult, err error) {
	if problems := j.Validate(); len(problems) > 0 {
		return nil, &recipe.Error{Name: "fine-tuning", Problems: problems}
	}
	r := &runningJob{Job: j, engine: e, out: out, hooks: h}
	defer func() {
		if r.run != nil {
			err = errors.Join(err, r.run.Close())
		}
	}()
	if h.Resume {
		run, err := r.open()
		if err != nil {
			return nil, err
		}
		if run.Info().Finished != nil {
			return r.result(), nil
		}
	} else if err := r.checkFolder(); err != nil {
		return nil, err
	}
	pictures, err := j.pictures()
	if err != nil {
		return nil, err
	}
	if r.cache, err = data.OpenCache(j.Cache, cacheMemory, h.Warn); err != nil {
		return nil, err
	}
	pictures.Cache = r.cache
	m, err := sd.LoadWithLoRA(e, j.Model, j.LoRA)
	if err != nil {
		return nil, err
	}
	defer m.Free()
	if err := j.Preview.Check(ctx, m); err != nil {
		return nil, err
	}
	result, err := Run(ctx, m, m.UNetParams, j.Config, pictures, r.tuningHooks())
	if err != nil {
		return nil, err
	}
	defer result.Free()
	if err := r.export(m, result); err != nil {
		return nil, err
	}
	return r.result(), r.run.Finish()
}

func (r *runningJob) tuningHooks() Hooks {
	h := Hooks{
		OpenRun: r.open, CheckpointEvery: r.CheckpointEvery, Finish: r.hooks.Finish,
		OnEvent: r.hooks.OnEvent, OnPrepare: r.hooks.OnPrepare, OnBuckets: r.hooks.OnBuckets, OnWork: r.hooks.OnWork, Warn: r.hooks.Warn,
		GiveUpStart: true, // the model is read for this run alone
	}
	if r.Preview.Every > 0 {
		h.Preview = func(ctx context.Context, net *denoise.Network, p denoise.Point, done int) error {
			return r.Preview.Save(ctx, r.run.PreviewsPath(), net, p, r.cache, r.Seed, done)
		}
	}
	return h
}

// checkFolder finds out whether open would refuse the folder of a new run, before anything is loaded.
func (r *runningJob) checkFolder() error {
	encoded, err := recipe.Encode(r.Job)
	if err != nil {
		return err
	}
	return train.CheckCreate(r.out, encoded)
}

// open makes the run's folder or, to resume, opens it, unless it is open already. A run that an earlier version began,
// whose recipe lacks keys that are at their defaults here, is the same run.
func (r *runningJob) open() (_ *train.RunDir, err error) {
	if r.run != nil {
		return r.run, nil
	}
	session := train.Session{
		Program: r.hooks.Program, Engine: r.engine.Description(), Command: r.hooks.Command, Seeds: map[string]uint64{"seed": r.Seed},
	}
	if r.hooks.Resume {
		same := func(stored []byte) error {
			return recipe.Same("its recipe.toml", stored, DefaultJob(r.Method), r.Job)
		}
		r.run, err = train.ResumeRunIf(r.out, same, session)
		return r.run, err
	}
	encoded, err := recipe.Encode(r.Job)
	if err != nil {
		return nil, err
	}
	r.run, err = train.CreateRun(r.out, encoded, session)
	return r.run, err
}

func (r *runningJob) result() *JobResult {
	result := &JobResult{Log: r.run.EventsPath(), Steps: r.Steps}
	if r.merges() {
		result.Model = filepath.Join(r.out, modelFolder)
	}
	if r.Method == LoRA {
		result.LoRA = AdapterPath(r.out, r.LoRAFormat)
	}
	if r.learns() {
		result.Embedding = filepath.Join(r.out, conceptFile)
	}
	if r.Method == SVDiff {
		result.Shifts = filepath.Join(r.out, shiftsFile)
	}
	return result
}

// export writes the adapter, the embedding and the model. A model that is there was written whole by an earlier process of this run.
func (r *runningJob) export(m *sd.Model, tuned *Result) error {
	to := r.result()
	if tuned.Adapter != nil {
		if _, err := WriteAdapter(r.out, r.LoRAFormat, tuned.Adapter, tuned.Factors); err != nil {
			return err
		}
	}
	if tuned.Concept != nil {
		if err := tuned.Concept.Write(to.Embedding); err != nil {
			return err
		}
	}
	if tuned.Spectrum != nil {
		if err := tuned.Spectrum.WriteShifts(to.Shifts, tuned.Shifts); err != nil {
			return err
		}
	}
	if !r.merges() {
		return nil
	}
	if _, err := os.Stat(to.Model); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return tuned.Save(m, to.Model)
}
