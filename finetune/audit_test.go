package finetune

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/sd"
)

const xlModel = "../testdata/references/sdxl-small/model"

// everyMethod is a configuration of each method that visibly changes pictures of the prompt in a few steps.
func everyMethod() map[string]Config {
	adapting := func(method string, rate float64) Config {
		c := short(method)
		c.LearningRate = rate
		return c
	}
	out := map[string]Config{
		"dreambooth": adapting(DreamBooth, 3e-3), "lora": adapting(LoRA, 3e-2), "svdiff": adapting(SVDiff, 0.1),
		"textual inversion": textual(), "custom with a word": textual(),
		"full with text encoder": adapting(Full, 3e-3),
	}
	edit := func(name string, f func(c *Config)) {
		c := out[name]
		f(&c)
		out[name] = c
	}
	edit("full with text encoder", func(c *Config) { c.TrainTextEncoder = true })
	edit("custom with a word", func(c *Config) { c.Method = Custom })
	edit("textual inversion", func(c *Config) { c.LearningRate = 0.5 })
	edit("lora", func(c *Config) { c.LoRADropout, c.Targets = 0.5, []string{"attention", "feed-forward", "convolutions"} })
	return out
}

// What the hook of a fine-tuning draws with the network and the point that it is given is what the exported model draws:
// with the trained text encoder, the new word, the adapter, the shifts.
func TestPreviewsAreOfTheAdaptedModel(t *testing.T) {
	m := load(t)
	for name, c := range everyMethod() {
		t.Run(name, func(t *testing.T) { comparePreview(t, m, c) })
	}
	xl, err := sd.Load(m.Engine, xlModel)
	if err != nil {
		t.Fatal(err)
	}
	defer xl.Free()
	c := everyMethod()["full with text encoder"]
	t.Run("two text encoders", func(t *testing.T) { comparePreview(t, xl, c) })
}

func comparePreview(t *testing.T, m *sd.Model, c Config) {
	prompt := "a photo of a ball"
	if c.Placeholder != "" {
		prompt = "a photo of " + c.Placeholder
	}
	options := generate.Options{Steps: 2, Guidance: 3, Scheduler: "ddim"}
	draw := func(net *denoise.Network, p denoise.Point) *data.RGB {
		g, err := generate.New(t.Context(), net, p, options, cache(t))
		if err != nil {
			t.Fatal(err)
		}
		picture, err := g.Picture(t.Context(), prompt, generate.Seed{Run: 1})
		if err != nil {
			t.Fatal(err)
		}
		return picture.Image
	}
	dir := t.TempDir()
	var seen *data.RGB
	result, _ := tune(t, m, c, blue(t), Hooks{
		Preview: func(_ context.Context, net *denoise.Network, p denoise.Point, done int) error {
			if done == c.Steps {
				seen = draw(net, p)
			}
			return nil
		},
		AdaptedAt: []int{c.Steps},
		Adapted:   func(_ context.Context, _ int, r *Result) error { return r.Save(m, filepath.Join(dir, "half way")) },
	})
	if err := result.Save(m, filepath.Join(dir, "end")); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"end", "half way"} {
		saved, err := sd.Load(m.Engine, filepath.Join(dir, folder))
		if err != nil {
			t.Fatal(err)
		}
		defer saved.Free()
		if result.Concept != nil {
			if err := saved.Learn(result.Concept); err != nil {
				t.Fatal(err)
			}
		}
		net := denoise.NewNetwork(saved)
		defer net.Free()
		drawn := draw(net, denoise.Point(saved.UNetParams.Tensors))
		plain := denoise.NewNetwork(m)
		defer plain.Free()
		before := draw(plain, denoise.Point(m.UNetParams.Tensors))
		off, changed := apart(seen, drawn), apart(before, drawn)
		if !(off <= 2) || !(changed > 4*off+4) {
			t.Errorf("%s: the preview differs from the saved model's picture by up to %d, that from the base model's by %d", folder, off, changed)
		}
	}
}

// apart is the largest difference of two pictures.
func apart(a, b *data.RGB) int {
	largest := 0
	for i, v := range a.Pix {
		largest = max(largest, max(int(v), int(b.Pix[i]))-min(int(v), int(b.Pix[i])))
	}
	return largest
}

// A fine-tuning through both text encoders of SDXL moves both.
func TestTwoTextEncodersAreTrained(t *testing.T) {
	m, err := sd.Load(load(t).Engine, xlModel)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	c := short(Full)
	c.TrainTextEncoder, c.Steps = true, 4
	r, _ := tune(t, m, c, blue(t), Hooks{})
	for i, text := range []*sd.Params{r.Text, r.Text2} {
		before, after := numbers(t, m.Towers[i].Params.Tensors), numbers(t, text.Tensors)
		moved := 0
		for k := range before {
			if !slices.Equal(before[k], after[k]) {
				moved++
			}
		}
		// The first encoder's last layer has no part in the prediction, and must not decay.
		last := i == 0
		if moved == 0 || last == (moved == len(before)) {
			t.Errorf("encoder %d: %d of %d parameters moved", i+1, moved, len(before))
		}
	}
	if len(r.UNet.Tensors) != len(m.UNetParams.Tensors) {
		t.Errorf("%d tensors of the UNet", len(r.UNet.Tensors))
	}
}
