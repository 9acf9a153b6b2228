package finetune

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/train"
)

// samples are those that a fine-tuning sees.
func samples(t *testing.T, d Data, o denoise.DatasetOptions) []denoise.Sample {
	t.Helper()
	m := load(t)
	set, err := denoise.NewDataset("test", m, d.Pictures, data.Preprocess{Resolution: m.Resolution()}, d.Cache, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := set.Sampler(42, "fine-tuning pictures", 8)
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.Samples(t.Context(), 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Min-SNR changes the weights of samples and nothing else, a noise offset the noise: one number for each channel.
func TestLossOptionsReachTheSamples(t *testing.T) {
	d, m := blue(t), load(t)
	plain := samples(t, d, denoise.DatasetOptions{})
	weighted := samples(t, d, denoise.DatasetOptions{SNRGamma: 0.5})
	offset := samples(t, d, denoise.DatasetOptions{NoiseOffset: 0.5})
	below := 0
	for i, s := range plain {
		signal, noise, err := m.Schedule.Coefficients(s.Timestep)
		if err != nil {
			t.Fatal(err)
		}
		want := s.Weight * denoise.MinSNR(m.Scheduler.PredictionType, signal, noise, 0.5)
		w, o := weighted[i], offset[i]
		if w.Weight != want || w.Timestep != s.Timestep || !slices.Equal(w.Noise, s.Noise) {
			t.Errorf("sample %d: weight %v at timestep %d, want %v", i, w.Weight, s.Timestep, want)
		}
		if w.Weight < s.Weight {
			below++
		}
		if o.Weight != s.Weight || o.Timestep != s.Timestep || !slices.Equal(o.Latents, s.Latents) {
			t.Errorf("sample %d: the noise offset changes more than the noise", i)
		}
		plane := len(s.Noise) / m.UNet.Config.InChannels
		for k := range s.Noise {
			first := k / plane * plane
			if shift := o.Noise[first] - s.Noise[first]; shift == 0 || math.Abs(float64(o.Noise[k]-s.Noise[k]-shift)) > 1e-5 {
				t.Fatalf("sample %d: noise %d moved by %v, the first of its channel by %v", i, k, o.Noise[k]-s.Noise[k], shift)
			}
		}
	}
	if below == 0 {
		t.Error("no timestep is weighted down")
	}
}

// In a fine-tuning the weights of min-SNR make the logged loss.
func TestMinSNRInTheLoss(t *testing.T) {
	m, d := load(t), blue(t)
	config := plain(Full)
	config.Steps, config.SNRGamma = 1, 2
	_, events := tune(t, m, config, d, Hooks{})
	b := batch(t, m, d.Pictures, d.Cache, denoise.DatasetOptions{SNRGamma: 2}, "fine-tuning pictures", config.BatchSize)
	want := lossOn(t, m, &Result{UNet: m.UNetParams}, b)
	if got := number(t, events[0], "loss"); math.Abs(got/want-1) > 1e-6 {
		t.Errorf("loss %v, want %v", got, want)
	}
}

func TestCustomDiffusionTrainsKeysAndValuesOfCrossAttention(t *testing.T) {
	m, d := load(t), blue(t)
	config := short(Custom)
	config.LearningRate = 1e-2
	r, _ := tune(t, m, config, d, Hooks{})
	before, after := numbers(t, m.UNetParams.Tensors), numbers(t, r.UNet.Tensors)
	changed := 0
	for i, s := range m.UNet.Specs() {
		is := strings.Contains(s.Name, "attn2.to_k") || strings.Contains(s.Name, "attn2.to_v")
		if moved := !slices.Equal(before[i], after[i]); moved != is {
			t.Errorf("%s: changed %v", s.Name, moved)
		} else if moved {
			changed++
		}
	}
	if changed == 0 {
		t.Error("nothing was trained")
	}
	b := batch(t, m, d.Pictures, d.Cache, denoise.DatasetOptions{}, "unseen noise", 16)
	if was, is := lossOn(t, m, &Result{UNet: m.UNetParams}, b), lossOn(t, m, r, b); !(is < was) {
		t.Errorf("the loss went from %v to %v", was, is)
	}
}

// The record of contaminating draws is that of the pictures trained on, whether the run was interrupted or not.
func TestContaminationIsRecorded(t *testing.T) {
	e, j := openEngine(t), shortJob(t, LoRA)
	j.Contaminate, j.Ratio = drawn(t, "a red star", [3]uint8{230, 30, 30}, 4).Dir, 0.4
	j.Steps, j.Accumulation, j.NoMerge = 4, 2, true
	whole, parts := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "parts")
	if _, err := RunJob(t.Context(), e, whole, j, JobHooks{}); err != nil {
		t.Fatal(err)
	}
	finish := make(chan struct{})
	_, err := RunJob(t.Context(), e, parts, j, JobHooks{Finish: finish, OnEvent: func(e train.Event) {
		if e.Step == 2 {
			close(finish)
		}
	}})
	if !errors.Is(err, train.ErrInterrupted) {
		t.Fatal(err)
	}
	record, early := content(t, filepath.Join(whole, ContaminationFile)), content(t, filepath.Join(parts, ContaminationFile))
	if early == record || !strings.HasPrefix(record, early) {
		t.Errorf("after two steps the record is\n%sand after four\n%s", early, record)
	}
	if _, err := RunJob(context.Background(), e, parts, j, JobHooks{Resume: true}); err != nil {
		t.Fatal(err)
	}
	if content(t, filepath.Join(parts, ContaminationFile)) != record {
		t.Error("a resumed run has another record")
	}
	pictures, err := j.pictures()
	if err != nil {
		t.Fatal(err)
	}
	batches, err := data.NewBatches(j.Seed, "fine-tuning pictures", j.BatchSize, j.Flip, pictures.Pictures.Sources()...)
	if err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(bytes.NewReader([]byte(record)))
	for at := range j.Steps * j.Accumulation {
		for place, d := range batches.At(at) {
			if d.Source == 0 {
				continue
			}
			var got ContaminatingDraw
			if err := lines.Decode(&got); err != nil {
				t.Fatal(err)
			}
			want := ContaminatingDraw{Step: at/2 + 1, Batch: at%2 + 1, Place: place + 1, Picture: pictures.Pictures[1].Folder.Path(d.Index)}
			if got != want {
				t.Errorf("recorded %+v, want %+v", got, want)
			}
		}
	}
	if lines.More() {
		t.Error("the record has more draws than were made")
	}
}
