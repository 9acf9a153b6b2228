package finetune

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/sd"
)

// textual learns a word in a few steps.
func textual() Config {
	c := short(TextualInversion)
	c.Placeholder, c.Initializer, c.Vectors, c.LearningRate = "<zq>", "photo", 2, 0.05
	return c
}

// The new word lowers the loss on its pictures, and nothing else changes.
func TestTextualInversion(t *testing.T) {
	m, d := load(t), blue(t)
	config := textual()
	config.Steps, config.BatchSize = 20, 4
	unet, text := numbers(t, m.UNetParams.Tensors), numbers(t, m.Towers[0].Params.Tensors)
	start := config
	start.Steps = 0
	before, _ := tune(t, m, start, d, Hooks{})
	after, _ := tune(t, m, config, d, Hooks{})
	if after.UNet != m.UNetParams || !identical(unet, numbers(t, m.UNetParams.Tensors)) || !identical(text, numbers(t, m.Towers[0].Params.Tensors)) {
		t.Error("the model changed")
	}
	loss := func(c *sd.Concept) float64 {
		learnt := load(t)
		if err := learnt.Learn(c); err != nil {
			t.Fatal(err)
		}
		named, err := d.Pictures[0].Folder.WithCaption("a photo of <zq>")
		if err != nil {
			t.Fatal(err)
		}
		b := batch(t, learnt, only(named), cache(t), denoise.DatasetOptions{}, "unseen noise", 16)
		return lossOn(t, learnt, &Result{UNet: learnt.UNetParams}, b)
	}
	width := m.Towers[0].Encoder.Config.Width
	if c := before.Concept; c.Count != 2 || len(c.Vectors) != 2*width || !slices.Equal(c.Vectors[:width], c.Vectors[width:]) {
		t.Errorf("it starts from %d vectors of %d numbers", c.Count, len(c.Vectors))
	}
	if slices.Equal(after.Concept.Vectors[:width], after.Concept.Vectors[width:]) {
		t.Error("both vectors are the same in the end")
	}
	if was, is := loss(before.Concept), loss(after.Concept); !(is < was) {
		t.Errorf("the loss went from %v to %v", was, is)
	}
}

func TestTextualInversionRefuses(t *testing.T) {
	m, d := load(t), blue(t)
	for want, change := range map[string]func(c *Config){
		"lower case":           func(c *Config) { c.Placeholder = "<ZQ>" },
		"must contain":         func(c *Config) { c.InstancePrompt = "a photo" },
		"knows already":        func(c *Config) { c.Placeholder = "photo" },
		"use a word of one":    func(c *Config) { c.Initializer = "a circle" },
		"stands for 76 tokens": func(c *Config) { c.Vectors = 76 },
	} {
		c := textual()
		change(&c)
		if _, err := Run(t.Context(), m, m.UNetParams, c, d, Hooks{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}

// The job writes the word and no model.
func TestTextualInversionFiles(t *testing.T) {
	j, out := shortJob(t, TextualInversion), filepath.Join(t.TempDir(), "run")
	j.Config = textual()
	result, err := RunJob(context.Background(), openEngine(t), out, j, JobHooks{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := sd.ReadConcept(result.Embedding)
	if err != nil || c.Placeholder != "<zq>" || c.Count != 2 || result.Model != "" || filepath.Base(result.Embedding) != "learned_embeds.safetensors" {
		t.Errorf("result %+v, word %+v: %v", result, c, err)
	}
	absent(t, filepath.Join(out, "model"))
}

// Trained with its text encoder, a model starts from the same loss, both parts move, and both are saved.
func TestFullWithTextEncoder(t *testing.T) {
	m, d := load(t), blue(t)
	config := short(Full)
	_, plainEvents := tune(t, m, config, d, Hooks{})
	config.TrainTextEncoder = true
	text := numbers(t, m.Towers[0].Params.Tensors)
	r, events := tune(t, m, config, d, Hooks{})
	if a, b := number(t, events[0], "loss"), number(t, plainEvents[0], "loss"); math.Abs(a/b-1) > 1e-5 {
		t.Errorf("the first loss is %v, without the text encoder %v", a, b)
	}
	if !identical(text, numbers(t, m.Towers[0].Params.Tensors)) {
		t.Error("the given text encoder changed")
	}
	if identical(text, numbers(t, r.Text.Tensors)) || identical(numbers(t, m.UNetParams.Tensors), numbers(t, r.UNet.Tensors)) {
		t.Error("one of both was not trained")
	}

	j, out := shortJob(t, Full), filepath.Join(t.TempDir(), "run")
	j.TrainTextEncoder = true
	result, err := RunJob(t.Context(), openEngine(t), out, j, JobHooks{})
	if err != nil {
		t.Fatal(err)
	}
	saved, err := sd.Load(m.Engine, result.Model)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Free()
	if !identical(numbers(t, saved.Towers[0].Params.Tensors), numbers(t, r.Text.Tensors)) || !identical(numbers(t, saved.UNetParams.Tensors), numbers(t, r.UNet.Tensors)) {
		t.Error("the saved model is not the trained one")
	}
}

// Custom Diffusion learns a word together with the keys and values, and both together lower the loss.
func TestCustomDiffusionWithAWord(t *testing.T) {
	m, d := load(t), blue(t)
	config := textual()
	config.Method, config.LearningRate, config.Steps, config.BatchSize = Custom, 1e-2, 12, 4
	r, _ := tune(t, m, config, d, Hooks{})
	before, after := numbers(t, m.UNetParams.Tensors), numbers(t, r.UNet.Tensors)
	for i, s := range m.UNet.Specs() {
		is := strings.Contains(s.Name, "attn2.to_k") || strings.Contains(s.Name, "attn2.to_v")
		if moved := !slices.Equal(before[i], after[i]); moved != is {
			t.Errorf("%s: changed %v", s.Name, moved)
		}
	}
	learnt, err := sd.Load(m.Engine, tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer learnt.Free()
	if err := learnt.Learn(r.Concept); err != nil {
		t.Fatal(err)
	}
	named, err := d.Pictures[0].Folder.WithCaption("a photo of <zq>")
	if err != nil {
		t.Fatal(err)
	}
	b := batch(t, learnt, only(named), cache(t), denoise.DatasetOptions{}, "unseen noise", 16)
	if was, is := lossOn(t, learnt, &Result{UNet: learnt.UNetParams}, b), lossOn(t, m, r, b); !(is < 0.99*was) {
		t.Errorf("the loss went from %v to %v", was, is)
	}
	j, out := shortJob(t, Custom), filepath.Join(t.TempDir(), "run")
	j.Config = textual()
	j.Method = Custom
	result, err := RunJob(t.Context(), openEngine(t), out, j, JobHooks{})
	if err != nil {
		t.Fatal(err)
	}
	saved, err := sd.Load(m.Engine, result.Model)
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Free()
	if _, err := sd.ReadConcept(result.Embedding); err != nil {
		t.Error(err)
	}
}
