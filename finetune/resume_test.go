package finetune

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/resalign/resalign/train"
)

func createRun(t testing.TB, path string) *train.RunDir {
	t.Helper()
	run, err := train.CreateRun(path, []byte("a test\n"), train.Session{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Close() })
	return run
}

// in gives a run to the hooks of a fine-tuning.
func in(run *train.RunDir) func() (*train.RunDir, error) {
	return func() (*train.RunDir, error) { return run, nil }
}

// Stopped before the first and after every single step, a fine-tuning ends with the very bits of one that was never stopped.
func TestResumedEqualsUninterrupted(t *testing.T) {
	m, d := load(t), blue(t)
	configs := map[string]Config{}
	full := short(Full)
	full.Steps, full.EMADecay, full.Accumulation, full.Schedule, full.CaptionDropout = 4, 0.5, 2, train.CosineSchedule, 0.3
	configs["full, AdamW, average"] = full
	lora := short(LoRA)
	lora.Steps, lora.Optimizer, lora.Momentum, lora.Nesterov, lora.LearningRate, lora.WarmupSteps = 4, train.SGD, 0.9, true, 0.1, 1
	configs["LoRA, momentum"] = lora
	adam := short(DreamBooth)
	adam.Steps, adam.Optimizer = 3, train.Adam
	configs["DreamBooth, Adam"] = adam
	lora.Compute = "bfloat16"
	configs["LoRA, momentum, bfloat16"] = lora
	lion := short(LoRA)
	lion.Optimizer, lion.SNRGamma, lion.NoiseOffset = train.Lion, 5, 0.1
	configs["LoRA, Lion, min-SNR, noise offset"] = lion
	factor := short(Full)
	factor.Optimizer = train.Adafactor
	configs["full, Adafactor"] = factor
	custom := short(Custom)
	custom.EMADecay = 0.5
	configs["Custom Diffusion, average"] = custom
	text := short(DreamBooth)
	text.TrainTextEncoder, text.EMADecay = true, 0.5
	configs["DreamBooth with text encoder, average"] = text
	word := textual()
	word.EMADecay = 0.5
	configs["Textual Inversion, average"] = word
	both := textual()
	both.Method, both.LearningRate = Custom, 1e-2
	configs["Custom Diffusion with a word"] = both
	spectral := short(SVDiff)
	spectral.EMADecay = 0.5
	configs["SVDiff, average"] = spectral
	dropping := short(LoRA)
	dropping.LoRADropout, dropping.Buckets = 0.5, true
	configs["LoRA, dropout, buckets"] = dropping
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			whole, events := tune(t, m, config, d, Hooks{})
			path := filepath.Join(t.TempDir(), "run")
			run := createRun(t, path)
			for stop := range config.Steps {
				finish := make(chan struct{})
				if stop == 0 {
					close(finish)
				}
				_, err := Run(context.Background(), m, m.UNetParams, config, d, Hooks{OpenRun: in(run), Finish: finish, OnEvent: func(e train.Event) {
					if e.Step == stop {
						close(finish)
					}
				}})
				if !errors.Is(err, train.ErrInterrupted) {
					t.Fatal(err)
				}
				run.Close()
				if run, err = train.ResumeRun(path, nil, train.Session{}); err != nil {
					t.Fatal(err)
				}
				defer run.Close()
			}
			parts, _ := tune(t, m, config, d, Hooks{OpenRun: in(run)})
			if !identical(trained(t, whole), trained(t, parts)) {
				t.Error("the weights differ")
			}
			log, err := train.ReadEvents(run.EventsPath())
			if err != nil {
				t.Fatal(err)
			}
			if len(log) != config.Steps {
				t.Fatalf("the log has %d events for %d steps", len(log), config.Steps)
			}
			for i, e := range log {
				if a, b := number(t, e, "loss"), number(t, events[i], "loss"); a != b || e.Step != i+1 {
					t.Errorf("step %d: loss %v, uninterrupted %v", e.Step, a, b)
				}
			}
			// A finished run gives its result again without a step.
			again, more := tune(t, m, config, d, Hooks{OpenRun: in(run)})
			if len(more) != 0 || !identical(trained(t, whole), trained(t, again)) {
				t.Error("a finished run does not give its result again")
			}
		})
	}
}

// A loss that is not a number ends the run before the optimizer moves; what was saved stays.
func TestNonFiniteLossStopsBeforeTheStep(t *testing.T) {
	m, d := load(t), blue(t)
	before := numbers(t, m.UNetParams.Tensors)
	config := plain(Full)
	config.Steps, config.LearningRate = 5, 1e30
	run := createRun(t, filepath.Join(t.TempDir(), "run"))
	var steps []int
	_, err := Run(context.Background(), m, m.UNetParams, config, d, Hooks{
		OpenRun: in(run), CheckpointEvery: 1, OnEvent: func(e train.Event) { steps = append(steps, e.Step) },
	})
	var bad *train.ErrNonFinite
	if !errors.As(err, &bad) || bad.Step != 2 || bad.What != "loss" {
		t.Fatalf("error %v", err)
	}
	checkpoints, err := train.OpenCheckpoints(run.CheckpointsPath(), 2)
	if err != nil {
		t.Fatal(err)
	}
	latest, skipped, err := checkpoints.Latest()
	if err != nil || latest == nil || latest.Step != 1 || len(skipped) != 0 || !slices.Equal(steps, []int{1}) {
		t.Errorf("checkpoint %v, skipped %v, logged %v: %v", latest, skipped, steps, err)
	}
	if !identical(before, numbers(t, m.UNetParams.Tensors)) {
		t.Error("the given weights changed")
	}
}

// A checkpoint of another adapter is refused by name instead of being trained on.
func TestCheckpointOfAnotherShapeIsRefused(t *testing.T) {
	m, d := load(t), blue(t)
	run := createRun(t, filepath.Join(t.TempDir(), "run"))
	config := short(LoRA)
	tune(t, m, config, d, Hooks{OpenRun: in(run)})
	config.Rank, config.Steps = 2, 5
	if _, err := Run(context.Background(), m, m.UNetParams, config, d, Hooks{OpenRun: in(run)}); err == nil {
		t.Error("a checkpoint of rank 4 was continued at rank 2")
	}
	config.Rank, config.EMADecay = 4, 0.9
	if _, err := Run(context.Background(), m, m.UNetParams, config, d, Hooks{OpenRun: in(run)}); err == nil {
		t.Error("a checkpoint without an average was continued with one")
	}
}
