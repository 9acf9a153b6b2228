package unlearn

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// methodRecipe is a short run of a method on the tiny model.
func methodRecipe(t testing.TB, method string) Recipe {
	r := tinyRecipe(t, t.TempDir())
	r.Method = method
	r.Outer.Steps, r.Checkpoint.Every = 2, 100
	switch method {
	case ESDX, ESDU:
		r.Objective.Harm, r.Trainable.Parameters = ESD, "all"
		r.Latents.From, r.Latents.Prompts, r.Latents.Steps = FromPrompts, []string{"a red ball"}, 4
		r.Outer.Optimizer, r.Outer.WeightDecay = train.Adam, 0
		r.Resolution, r.Data = 32, nil
	case SalUn:
		r.Objective.Harm, r.Objective.Retain, r.Trainable.Parameters = Relabel, Denoising, "all"
		r.Outer.Optimizer, r.Outer.WeightDecay = train.Adam, 0
	case MetaUnlearn:
		r.Objective.Retain = Denoising
		r.Data["related"] = r.Data["benign"]
		r.Simulations = []Simulation{{Name: "relearning", Data: "harmful", Steps: 1, Optimizer: train.SGD, LearningRate: 1e-2}}
	case SafeGen:
		r.Objective.Harm, r.Objective.Retain, r.Trainable.Parameters = Mosaic, Denoising, "all"
		r.Censor.Block = 16
	case AdvUnlearn:
		r.Objective.Harm, r.Trainable.Parameters = ESD, TextEncoder
		r.Attack = Attack{Warmup: 1, Steps: 2, Tokens: 2, LearningRate: 1e-2}
	case LCFDSDNG, LCFDSDLT:
		r.Objective.Harm, r.Objective.Retain = ContrastLoss, Denoising
		r.Contrast.Weight, r.Contrast.Margin, r.Contrast.Ascent = 1e-2, 0.5, 0.25
	case UCE, RECE:
		r.Edit.Erase, r.Edit.Preserve, r.Edit.Epochs = []string{"a red ball", "red"}, []string{"a green ball"}, 2
		r.Data = nil
	}
	if problems := r.Validate(); len(problems) > 0 {
		t.Fatal(problems)
	}
	return r
}

// stopping runs a recipe to its end, in one go or stopped after every step.
func stopping(t *testing.T, e *engine.Engine, r Recipe, stops bool) (*Result, []train.Event) {
	t.Helper()
	var events []train.Event
	for at := 1; ; at++ {
		finish := make(chan struct{})
		result, err := Run(context.Background(), e, r, Hooks{Resume: at > 1, Finish: finish, OnEvent: func(ev train.Event) {
			events = append(events, ev)
			if stops {
				close(finish)
			}
		}})
		if err == nil {
			return result, events
		}
		if !errors.Is(err, train.ErrInterrupted) {
			t.Fatal(err)
		}
	}
}

// changed lists the parameters of the UNet and the text encoder that a run changed.
func changed(t *testing.T, dir string) map[string]bool {
	t.Helper()
	out := changedIn(t, dir, "unet", sd.UNetWeightsName)
	maps.Copy(out, changedIn(t, dir, "text_encoder", "model"))
	return out
}

func changedIn(t *testing.T, dir, component, base string) map[string]bool {
	t.Helper()
	open := func(dir string) weights.FileSource {
		s, err := weights.OpenComponent(filepath.Join(dir, component), base)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := open(tinyModel), open(dir)
	out := map[string]bool{}
	for _, name := range a.Names() {
		x, errX := a.Tensor(name)
		y, errY := b.Tensor(name)
		if err := errors.Join(errX, errY); err != nil {
			t.Fatal(err)
		}
		u, errU := x.Float32()
		v, errV := y.Float32()
		if err := errors.Join(errU, errV); err != nil {
			t.Fatal(err)
		}
		out[component+"."+name] = !slices.Equal(u, v)
	}
	return out
}

// keyBias are biases of keys, which add the same to all scores of a query: their gradient is rounding.
const keyBias = "k_proj.bias"

func textBytes(t *testing.T, r Recipe) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Out, modelFolder, "text_encoder", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every method runs, changes what it may change, all of it and nothing else, and ends at the same bytes when it is
// stopped and resumed after every step.
func TestMethodsEndToEnd(t *testing.T) {
	e := openEngine(t)
	text := func(name string) bool { return strings.HasPrefix(name, "text_encoder.") }
	cross := func(name string) bool { return strings.Contains(name, ".attn2.") }
	fixed := func(name string) bool {
		return strings.HasPrefix(name, "unet.conv_out") || strings.HasPrefix(name, "unet.conv_norm_out") || strings.HasPrefix(name, "unet.time_embedding")
	}
	keyOrValue := func(name string) bool {
		return strings.HasSuffix(name, ".attn2.to_k.weight") || strings.HasSuffix(name, ".attn2.to_v.weight")
	}
	for method, may := range map[string]func(name string) bool{
		ESDX: cross,
		ESDU: func(name string) bool { return !cross(name) && !fixed(name) && !text(name) },
		UCE:  keyOrValue, RECE: keyOrValue,
		SalUn: nil, MetaUnlearn: nil,
		SafeGen: func(name string) bool { return strings.Contains(name, ".attn1.") },
		AdvUnlearn: func(name string) bool {
			return text(name) && !strings.Contains(name, "embedding") && !strings.Contains(name, keyBias)
		},
		LCFDSDNG: nil, LCFDSDLT: nil,
	} {
		t.Run(method, func(t *testing.T) {
			whole, parts := methodRecipe(t, method), methodRecipe(t, method)
			result, events := stopping(t, e, whole, false)
			if len(events) != whole.TotalSteps() || result.Steps != len(events) {
				t.Errorf("%d events for %d steps", len(events), whole.TotalSteps())
			}
			stopping(t, e, parts, true)
			if !bytes.Equal(modelBytes(t, whole), modelBytes(t, parts)) || !bytes.Equal(textBytes(t, whole), textBytes(t, parts)) {
				t.Error("a run that was stopped after every step ends elsewhere than one that was not")
			}
			names := changed(t, result.Model)
			for name, is := range names {
				if may != nil && is != may(name) && !strings.Contains(name, keyBias) {
					t.Errorf("%s: changed is %v", name, is)
				}
			}
			if !slices.Contains(slices.Collect(maps.Values(names)), true) {
				t.Error("nothing changed")
			}
			m, err := sd.Load(e, result.Model)
			if err != nil {
				t.Fatal(err)
			}
			m.Free()
		})
	}
}

func methodTrainer(t *testing.T, e *engine.Engine, r Recipe) *trainer {
	t.Helper()
	m, err := sd.Load(e, r.Model)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	cache, err := data.OpenCache("", cacheMemory, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := newTrainer(context.Background(), m, r, cache, Hooks{Warn: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.free)
	return tr
}

func hostValues(t *testing.T, x *engine.Tensor) []float32 {
	t.Helper()
	v, err := engine.Values(x)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func near(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d numbers, not %d", what, len(got), len(want))
	}
	off, whole := 0.0, 0.0
	for i := range got {
		off, whole = off+math.Pow(float64(got[i]-want[i]), 2), whole+math.Pow(float64(want[i]), 2)
	}
	if !(math.Sqrt(off) <= tolerance*math.Sqrt(whole)) || whole == 0 {
		t.Errorf("%s: off by %v of %v", what, math.Sqrt(off), math.Sqrt(whole))
	}
}

// Each method's loss against its equation, at the latents of one step.
func TestMethodLosses(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	t.Run("esd-x walks as the generator does", func(t *testing.T) {
		tr := methodTrainer(t, e, methodRecipe(t, ESDX))
		w := tr.walker
		g, err := generate.New(ctx, tr.net, tr.outer.Point(), generate.Options{Steps: w.Steps, Guidance: w.Guidance, Scheduler: "ddim", Height: 32, Width: 32}, nil)
		if err != nil {
			t.Fatal(err)
		}
		noise := random.New(1, "noise").Normals(4 * w.h * w.w)
		want, err := g.Denoise(ctx, w.embeddings[:1], noise, []generate.Seed{{}})
		if err != nil {
			t.Fatal(err)
		}
		sampler, err := w.sampler()
		if err != nil {
			t.Fatal(err)
		}
		got, err := tr.walk(ctx, sampler, w.embeddings[:1], noise, w.Steps)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "latents", got, want, 1e-5)
	})
	t.Run("esd-x steps back from the concept", func(t *testing.T) {
		tr := methodTrainer(t, e, methodRecipe(t, ESDX))
		for step := range 6 {
			h, err := tr.harmBatch(ctx, step)
			if err != nil {
				t.Fatal(err)
			}
			at := float64(hostValues(t, h.batch.Timesteps)[0])
			if at < 0 || at >= 1000 || at != math.Trunc(at) {
				t.Errorf("timestep %v", at)
			}
			h.free()
		}
		h, err := tr.harmBatch(ctx, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer h.free()
		under := func(e *sd.Embedding) []float32 {
			b := h.batch.WithPrompt(e, 1)
			defer engine.Free(b.Context)
			out, err := tr.teacher.Predict(ctx, tr.reference, b)
			if err != nil {
				t.Fatal(err)
			}
			defer engine.Free(out)
			return hostValues(t, out)
		}
		empty, concept := under(tr.null), under(tr.walker.embeddings[0])
		want := make([]float32, len(empty))
		for i := range want {
			want[i] = empty[i] - (concept[i] - empty[i])
		}
		near(t, "target", hostValues(t, h.batch.Target), want, 1e-5)
	})
	t.Run("salun relabels and masks", func(t *testing.T) {
		r := methodRecipe(t, SalUn)
		r.Data["retain"] = Dataset{Folder: r.Data["retain"].Folder, Prompt: "a green ball", Batch: 2}
		tr := methodTrainer(t, e, r)
		h, err := tr.harmBatch(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer h.free()
		other, err := tr.model.EncodePrompt(ctx, "a green ball")
		if err != nil {
			t.Fatal(err)
		}
		b := h.batch.WithPrompt(other, h.size)
		defer engine.Free(b.Context)
		out, err := tr.net.Predict(ctx, tr.outer.Point(), b)
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Free(out)
		near(t, "target", hostValues(t, h.batch.Target), hostValues(t, out), 1e-6)
		ones, total := 0.0, 0
		for _, x := range tr.salient.mask {
			for _, v := range hostValues(t, x) {
				ones += float64(v)
				total++
			}
		}
		if share := ones / float64(total); math.Abs(share-0.5) > 0.01 {
			t.Errorf("the mask covers %v of the parameters", share)
		}
		all := append([]float32{}, hostValues(t, h.batch.Noisy)...)
		kept, err := (&trainer{space: tr.space, salient: &salient{mask: denoise.Vector{h.batch.Target}}}).masked(
			denoise.Vector{engine.Float32s(all, engine.Shape(h.batch.Noisy)...)})
		if err != nil {
			t.Fatal(err)
		}
		defer kept.Free()
		for i, m := range hostValues(t, h.batch.Target) {
			all[i] *= m
		}
		near(t, "masked gradient", hostValues(t, kept[0]), all, 1e-6)
		before := make([][]float32, tr.theta.Len())
		for i, x := range tr.outer.Selected() {
			before[i] = hostValues(t, x)
		}
		if _, err := tr.step(ctx, 0); err != nil {
			t.Fatal(err)
		}
		for i, x := range tr.outer.Selected() {
			mask := hostValues(t, tr.salient.mask[i])
			for k, v := range hostValues(t, x) {
				if mask[k] == 0 && v != before[i][k] {
					t.Fatalf("tensor %d, number %d is masked and moved", i, k)
				}
			}
		}
	})
	t.Run("meta-unlearn is the gradient after one step", func(t *testing.T) {
		r := methodRecipe(t, MetaUnlearn)
		tr := methodTrainer(t, e, r)
		v := tr.views["relearning"]
		got, err := tr.againstRelearning(ctx, 0, 0, v, &result{})
		if err != nil {
			t.Fatal(err)
		}
		defer got.Free()
		gradient := func(p denoise.Point, s *denoise.Sampler) denoise.Vector {
			b, err := s.Batch(ctx, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Free()
			_, g, err := tr.net.Gradient(ctx, p, tr.theta, denoise.Loss{}, b)
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		start := tr.outer.Point()
		moved, err := tr.space.Mix(1, tr.outer.Selected(), -v.sim.LearningRate, gradient(start, v.pictures))
		if err != nil {
			t.Fatal(err)
		}
		end := tr.theta.Put(start, moved)
		want, err := tr.space.Combine(
			term(r.Meta.Related, gradient(start, tr.meta.related)), term(-r.Meta.HarmfulAfter, gradient(end, tr.meta.harmfulAfter)),
			term(-r.Meta.RelatedAfter, gradient(end, tr.meta.relatedAfter)), term(-r.Meta.RetainedAfter, gradient(end, tr.meta.retainAfter)))
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if x := hostValues(t, want[i]); slices.ContainsFunc(x, func(v float32) bool { return v != 0 }) {
				near(t, "gradient", hostValues(t, got[i]), x, 1e-4)
			}
		}
	})
}

func TestSalienceThreshold(t *testing.T) {
	s := random.New(3, "salience")
	for _, share := range []float64{0.001, 0.5, 0.73, 1} {
		values := [][]float32{s.Normals(700), s.Normals(301)}
		values[1][5] = values[0][9] // a tie
		var all []float32
		for _, v := range values {
			for _, x := range v {
				all = append(all, abs32(x))
			}
		}
		slices.Sort(all)
		want := all[len(all)-int(math.Ceil(share*float64(len(all))))]
		if got, err := salienceThreshold(values, share); err != nil || got != want {
			t.Errorf("share %v: %v, not %v (%v)", share, got, want, err)
		}
	}
	if _, err := salienceThreshold([][]float32{{1, float32(math.NaN())}}, 0.5); err == nil {
		t.Error("a gradient that is not a number has salient parameters")
	}
}

func TestMethodRecipesAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		change func(r *Recipe)
		want   string
	}{
		"esd-x with an adapter":     {ESDX, func(r *Recipe) { r.Trainable.Parameters = "lora" }, "trainable.parameters"},
		"esd-x without a prompt":    {ESDX, func(r *Recipe) { r.Latents.Prompts = nil }, "latents.prompts"},
		"esd-u by ascent":           {ESDU, func(r *Recipe) { r.Objective.Harm = Ascent }, "objective.harm"},
		"no such latents":           {ESDU, func(r *Recipe) { r.Latents.From = "noise" }, "latents.from"},
		"salun with decay":          {SalUn, func(r *Recipe) { r.Outer.WeightDecay = 0.1 }, "outer.weight_decay"},
		"salun, all masked":         {SalUn, func(r *Recipe) { r.Saliency.Share = 0 }, "saliency.share"},
		"salun without others":      {SalUn, func(r *Recipe) { delete(r.Data, "retain") }, "data.retain"},
		"meta without relatives":    {MetaUnlearn, func(r *Recipe) { delete(r.Data, "related") }, "data.related"},
		"meta without relearning":   {MetaUnlearn, func(r *Recipe) { r.Simulations = nil }, "simulation"},
		"uce of nothing":            {UCE, func(r *Recipe) { r.Edit.Erase = nil }, "edit.erase"},
		"uce without a bound":       {UCE, func(r *Recipe) { r.Edit.Lambda = 0 }, "edit.lambda"},
		"rece without an epoch":     {RECE, func(r *Recipe) { r.Edit.Epochs = 0 }, "edit.epochs"},
		"relabelling by resalign":   {ResAlign, func(r *Recipe) { r.Objective.Harm = Relabel }, "objective.harm"},
		"a retain loss of no sort":  {ResAlign, func(r *Recipe) { r.Objective.Retain = "distill" }, "objective.retain"},
		"safegen of an adapter":     {SafeGen, func(r *Recipe) { r.Trainable.Parameters = "lora" }, "trainable.parameters"},
		"safegen without squares":   {SafeGen, func(r *Recipe) { r.Censor.Block = 1 }, "censor.block"},
		"safegen under a prompt":    {SafeGen, func(r *Recipe) { r.Data["harmful"] = Dataset{Folder: "x", Prompt: "y"} }, "data.harmful.prompt"},
		"safegen, nothing to keep":  {SafeGen, func(r *Recipe) { delete(r.Data, "retain") }, "data.retain"},
		"advunlearn of the UNet":    {AdvUnlearn, func(r *Recipe) { r.Trainable.Parameters = "all" }, "trainable.parameters"},
		"the text encoder for all":  {Ascent, func(r *Recipe) { r.Trainable.Parameters = TextEncoder }, "trainable.parameters"},
		"advunlearn, no search":     {AdvUnlearn, func(r *Recipe) { r.Attack.Steps = 0 }, "attack.steps"},
		"advunlearn, no words":      {AdvUnlearn, func(r *Recipe) { r.Attack.Tokens = 0 }, "attack.tokens"},
		"lcfdsd without a weight":   {LCFDSDLT, func(r *Recipe) { r.Contrast.Weight = 0 }, "contrast.weight"},
		"lcfdsd that distils":       {LCFDSDNG, func(r *Recipe) { r.Objective.Retain = Distillation }, "objective.retain"},
		"a mosaic by ascent":        {Ascent, func(r *Recipe) { r.Objective.Harm = Mosaic }, "objective.harm"},
		"a method that is not here": {ResAlign, func(r *Recipe) { r.Method = "esd-y" }, "method"},
	} {
		t.Run(name, func(t *testing.T) {
			r := methodRecipe(t, c.method)
			c.change(&r)
			found := false
			for _, p := range r.Validate() {
				found = found || p.Key == c.want
			}
			if !found {
				t.Errorf("problems are %v", r.Validate())
			}
		})
	}
}

// The edits against a reference from PyTorch and transformers (scripts/edits.py).
func TestEditsMatchReference(t *testing.T) {
	reference, err := weights.Open("testdata/edits.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	m, err := sd.Load(openEngine(t), tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	r := methodRecipe(t, RECE)
	r.Edit.Erase, r.Edit.ReplaceWith, r.Edit.Preserve = []string{"a red ball", "nudity"}, "a cat", []string{"a green ball"}
	r.Edit.PreserveScale, r.Edit.Epochs = 0.1, 2
	ed, err := newEditor(context.Background(), m, r, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	for step := range r.TotalSteps() {
		if _, err := ed.step(context.Background(), step); err != nil {
			t.Fatal(err)
		}
		prefix := map[int]string{0: "uce.", r.Edit.Epochs: "rece."}[step]
		if prefix == "" {
			continue
		}
		for k, i := range ed.index {
			name := prefix + m.UNetParams.Specs[i].Name
			want, err := reference.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			values, err := want.Float32()
			if err != nil {
				t.Fatal(err)
			}
			near(t, name, ed.current[k].float32s(), values, 3e-5)
		}
	}
}
