package experiment

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// Training is how the carried miniature was made: the steps of its three trainings.
type Training struct {
	Seed                     uint64
	Autoencoder, Detector    int
	UNet                     int
	UNetBatch                int
	UNetRate                 float64
	EMADecay, CaptionDropout float64
}

// PublishedTraining made the files in mini/pretrained.
func PublishedTraining() Training {
	return Training{
		Seed: 1, Autoencoder: 2500, Detector: 3000,
		UNet: 4000, UNetBatch: 48, UNetRate: 3e-3, EMADecay: 0.998, CaptionDropout: 0.1,
	}
}

// TrainMiniature makes the miniature in out: the drawings it learns from (data/pretrain), an ordinary diffusers
// directory (model) and the detector's file (detector.safetensors). Its UNet is pre-trained by the product's own
// fine-tuning, resumably, in out/pretraining.
func TrainMiniature(ctx context.Context, e *engine.Engine, out string, t Training, h Hooks) error {
	x := &Experiment{out: out, seed: t.Seed, engine: e, hooks: h}
	for _, part := range []struct {
		name  string
		steps int
	}{{"autoencoder", t.Autoencoder}, {"detector", t.Detector}, {"UNet", t.UNet}} {
		if part.steps < 1 {
			return fmt.Errorf("mini: %d training steps of the %s are too few; at least 1 is needed", part.steps, part.name)
		}
	}
	if err := claim("mini", out, t); err != nil {
		return err
	}
	if err := x.stages.open(filepath.Join(out, stagesFile)); err != nil {
		return err
	}
	drawings := filepath.Join(out, "data")
	untrained := filepath.Join(out, "untrained")
	if err := x.stage("drawing", func() (bool, error) {
		if _, err := os.Stat(drawings); err == nil {
			return true, nil
		}
		return false, mini.WriteWorld(ctx, drawings, t.Seed, []mini.Set{mini.PretrainSet()}, x.progress("drawing"))
	}); err != nil {
		return err
	}
	if err := x.stage("autoencoder and detector", func() (bool, error) {
		if _, err := os.Stat(filepath.Join(out, detectorFile)); err == nil {
			return true, nil
		}
		return false, x.trainSmallNets(ctx, t, untrained)
	}); err != nil {
		return err
	}
	return x.stage("base model", func() (bool, error) {
		if _, err := os.Stat(filepath.Join(out, "model")); err == nil {
			return true, nil
		}
		return false, x.pretrain(ctx, t, untrained, drawings)
	})
}

const detectorFile = "detector.safetensors"

// autoencoderPictures is how many drawings the autoencoder learns from.
const autoencoderPictures = 8000

func (x *Experiment) trainSmallNets(ctx context.Context, t Training, untrained string) error {
	pictures := mini.PretrainSet().Pixels(t.Seed, autoencoderPictures)
	vae, err := mini.TrainVAE(ctx, x.engine, pictures, t.Autoencoder, t.Seed, x.progress("autoencoder"))
	if err != nil {
		return err
	}
	defer vae.Free()
	if err := os.RemoveAll(untrained); err != nil {
		return fmt.Errorf("mini: %w", err)
	}
	if err := mini.NewModelDir(untrained, vae, t.Seed); err != nil {
		return err
	}
	detector, err := mini.TrainDetector(ctx, x.engine, vae, t.Detector, t.Seed, x.progress("detector"))
	if err != nil {
		return err
	}
	defer detector.Free()
	return detector.Save(filepath.Join(x.out, detectorFile))
}

// pretrain teaches the UNet the drawings.
func (x *Experiment) pretrain(ctx context.Context, t Training, untrained, drawings string) error {
	m, err := sd.Load(x.engine, untrained)
	if err != nil {
		return err
	}
	defer m.Free()
	folder, err := data.ReadFolder(filepath.Join(drawings, filepath.FromSlash(mini.PretrainSet().Name)))
	if err != nil {
		return err
	}
	cache, err := data.OpenCache("", 1<<30, nil)
	if err != nil {
		return err
	}
	c := finetune.Defaults(finetune.Full)
	c.Steps, c.BatchSize, c.Accumulation, c.LearningRate, c.Schedule, c.WarmupSteps = t.UNet, t.UNetBatch, 1, t.UNetRate, train.CosineSchedule, 100
	c.EMADecay, c.CaptionDropout, c.Flip, c.Seed = t.EMADecay, t.CaptionDropout, false, t.Seed
	run, err := openPretraining(filepath.Join(x.out, "pretraining"), x)
	if err != nil {
		return err
	}
	defer run.Close()
	result, err := finetune.Run(ctx, m, m.UNetParams, c, finetune.Data{Pictures: data.Mixture{{Folder: folder, Weight: 1}}, Cache: cache}, finetune.Hooks{
		OpenRun: func() (*train.RunDir, error) { return run, nil }, CheckpointEvery: 500, Finish: x.hooks.Finish,
		OnPrepare: func(done, total int) { x.progress("encoding")(done, total, "") },
		OnEvent:   func(e train.Event) { x.progress("base model")(e.Step, c.Steps, "") },
	})
	if err != nil {
		return err
	}
	defer result.Free()
	if err := m.Save(filepath.Join(x.out, "model"), result.UNet); err != nil {
		return err
	}
	return run.Finish()
}

func openPretraining(dir string, x *Experiment) (*train.RunDir, error) {
	session := train.Session{Program: x.hooks.Program, Engine: x.engine.Description(), Seeds: map[string]uint64{"seed": x.seed}, Command: x.hooks.Command}
	if _, err := os.Stat(filepath.Join(dir, "run.json")); err == nil {
		return train.ResumeRun(dir, nil, session)
	}
	return train.CreateRun(dir, nil, session)
}
