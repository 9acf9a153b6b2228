package finetune

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
)

// The loss on noise that training has not seen falls, for what each method learns from.
func TestEveryMethodLowersTheLoss(t *testing.T) {
	m := load(t)
	pictures := drawn(t, "a blue ball", [3]uint8{40, 60, 230}, 4)
	class := drawn(t, "a green ball", [3]uint8{30, 200, 60}, 4)
	cases := map[string]struct {
		method string
		prior  bool
	}{"full": {Full, false}, "lora": {LoRA, false}, "dreambooth": {DreamBooth, false}, "dreambooth with prior": {DreamBooth, true}}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			config := short(c.method)
			config.Steps, config.BatchSize, config.LearningRate = 12, 4, 3e-3
			d := Data{Pictures: only(pictures), Cache: cache(t)}
			learnt := map[string]data.Mixture{"pictures": d.Pictures}
			if c.method == DreamBooth {
				subject, err := pictures.WithCaption(config.InstancePrompt)
				if err != nil {
					t.Fatal(err)
				}
				learnt["pictures"] = only(subject)
			}
			if c.prior {
				d.Prior = only(class)
				learnt["prior"] = d.Prior
			}
			if c.method == LoRA {
				config.LearningRate = 2e-2
			}
			result, events := tune(t, m, config, d, Hooks{})
			for what, mixture := range learnt {
				b := batch(t, m, mixture, d.Cache, denoise.DatasetOptions{}, "unseen noise", 16)
				before, after := lossOn(t, m, &Result{UNet: m.UNetParams}, b), lossOn(t, m, result, b)
				if !(after < 0.95*before) {
					t.Errorf("loss on %s went from %v to %v", what, before, after)
				}
			}
			if len(events) != config.Steps || !(number(t, events[0], "gradient_norm") > 0) {
				t.Errorf("%d events, the first one %v", len(events), events[0])
			}
		})
	}
}

func TestLoRAStartsAtTheModelAndLeavesItsWeightsAlone(t *testing.T) {
	m, d := load(t), blue(t)
	config := short(LoRA)
	config.Steps = 0
	start, _ := tune(t, m, config, d, Hooks{})
	config.Steps = 3
	end, _ := tune(t, m, config, d, Hooks{})
	b := batch(t, m, d.Pictures, d.Cache, denoise.DatasetOptions{}, "unseen noise", 4)
	predict := func(r *Result) []float32 {
		net, point := network(t, m, r)
		out, err := net.Predict(context.Background(), point, b)
		if err != nil {
			t.Fatal(err)
		}
		return numbers(t, []*engine.Tensor{out})[0]
	}
	base := predict(&Result{UNet: m.UNetParams})
	if !slices.Equal(base, predict(start)) {
		t.Error("a fresh adapter changes the prediction")
	}
	if slices.Equal(base, predict(end)) {
		t.Error("training the adapter changes nothing")
	}
	if start.UNet != m.UNetParams || end.UNet != m.UNetParams {
		t.Error("an adapter comes with other weights than the model's")
	}
	if identical(trained(t, start), trained(t, end)) {
		t.Error("the factors did not move")
	}
}

func TestAlphaScalesTheAdapter(t *testing.T) {
	m, d := load(t), blue(t)
	for alpha, want := range map[float64]float64{0: 1, 4: 1, 8: 2, 1: 0.25} {
		config := short(LoRA)
		config.Steps, config.Alpha = 0, alpha
		r, _ := tune(t, m, config, d, Hooks{})
		if r.Adapter.Scale != want || r.Adapter.Rank != 4 {
			t.Errorf("alpha %v: scale %v, rank %d", alpha, r.Adapter.Scale, r.Adapter.Rank)
		}
	}
	config := short(LoRA)
	config.Steps, config.Targets = 0, []string{"attn2.to_v"}
	r, _ := tune(t, m, config, d, Hooks{})
	for _, l := range r.Adapter.Layers {
		if !strings.Contains(l.Path, "attn2.to_v") {
			t.Errorf("layer %s was not asked for", l.Path)
		}
	}
}

func TestDreamBoothTakesThePromptAndThePriorWeight(t *testing.T) {
	m := load(t)
	run := func(caption string, prior data.Mixture, weight float64) [][]float32 {
		config := plain(DreamBooth)
		config.Steps, config.PriorWeight = 1, weight
		d := Data{Pictures: only(drawn(t, caption, [3]uint8{40, 60, 230}, 4)), Prior: prior, Cache: cache(t)}
		r, _ := tune(t, m, config, d, Hooks{})
		return trained(t, r)
	}
	class := only(drawn(t, "a ball", [3]uint8{30, 200, 60}, 4))
	start := numbers(t, m.UNetParams.Tensors)
	alone := run("a blue ball", nil, 1)
	if !identical(alone, run("something else", nil, 1)) {
		t.Error("the captions of the subject's pictures matter")
	}
	moved := distance(alone, start)
	if d := distance(run("a blue ball", class, 0), alone); !(d < 1e-4*moved) {
		t.Errorf("a prior of weight 0 moves the weights by %v of %v", d, moved)
	}
	// A step of gradient descent is linear in the weight of a loss.
	one, two := distance(run("a blue ball", class, 1), alone), distance(run("a blue ball", class, 2), alone)
	if !(one > 1e-2*moved) || math.Abs(two/one-2) > 1e-3 {
		t.Errorf("priors of weight 1 and 2 move the weights by %v and %v of %v", one, two, moved)
	}
}

func TestCaptionDropout(t *testing.T) {
	m := load(t)
	run := func(caption string, dropout float64) [][]float32 {
		config := short(Full)
		config.CaptionDropout = dropout
		d := Data{Pictures: only(drawn(t, caption, [3]uint8{40, 60, 230}, 4)), Cache: cache(t)}
		r, _ := tune(t, m, config, d, Hooks{})
		return trained(t, r)
	}
	never, half, always := run("a blue ball", 0), run("a blue ball", 0.5), run("a blue ball", 1)
	if !identical(always, run("a red square", 1)) {
		t.Error("captions matter although all are dropped")
	}
	if identical(never, run("a red square", 0)) {
		t.Error("captions do not matter although none is dropped")
	}
	if identical(half, never) || identical(half, always) {
		t.Error("dropping half of the captions equals dropping none or all")
	}
}

func TestWhatCannotBeUsedIsRefusedInOneSentence(t *testing.T) {
	m := load(t)
	broken := drawn(t, "a ball", [3]uint8{1, 2, 3}, 2)
	if err := os.WriteFile(filepath.Join(broken.Dir, "01.png"), []byte("\x89PNG\r\n\x1a\nbroken"), 0o644); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		config func(c *Config)
		data   func(d *Data)
		want   string
	}{
		"prior without dreambooth": {nil, func(d *Data) { d.Prior = d.Pictures }, "prior"},
		"unknown target":           {func(c *Config) { c.Targets = []string{"attn3"} }, nil, "attn3"},
		"rank above the layers":    {func(c *Config) { c.Rank = 4096 }, nil, "rank 4096"},
		"wrong resolution":         {func(c *Config) { c.Resolution = 20 }, nil, "multiple"},
		"broken picture":           {nil, func(d *Data) { d.Pictures = only(broken) }, "01.png"},
		"no pictures":              {nil, func(d *Data) { d.Pictures = nil }, "pictures"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			config, d := short(LoRA), blue(t)
			if c.config != nil {
				c.config(&config)
			}
			if c.data != nil {
				c.data(&d)
			}
			_, err := Run(context.Background(), m, m.UNetParams, config, d, Hooks{})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v", err)
			}
		})
	}
}
