package unlearn

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// Where the noisy latents of the harmful loss come from.
const (
	FromPictures = "pictures" // harmful pictures, noised
	FromPrompts  = "prompts"  // prompts: the model under training denoises noise part of the way (Gandikota et al. 2023)
)

// Latents says which noisy latents the harmful loss is taken at.
type Latents struct {
	From     string   `toml:"from"`     // pictures or prompts; empty: pictures
	Prompts  []string `toml:"prompts"`  // what to forget; a step draws from them
	Steps    int      `toml:"steps"`    // of the DDIM sampler, if it went all the way
	Guidance float64  `toml:"guidance"` // on that way
	Batch    int      `toml:"batch"`
}

// defaultLatents are the constants of the code of Gandikota et al. 2023, for latents from prompts.
func defaultLatents() Latents { return Latents{From: FromPictures, Steps: 50, Guidance: 3, Batch: 1} }

func (l Latents) validate(v *validation, r Recipe) {
	v.oneOf("latents.from", cmp.Or(l.From, FromPictures), FromPictures, FromPrompts)
	if l.From != FromPrompts {
		return
	}
	v.check(r.Objective.Harm == ESD, "latents.from", "latents from prompts have no true noise, so that they need objective.harm = %q", ESD)
	v.check(len(l.Prompts) > 0, "latents.prompts", "is empty; give at least one prompt to forget")
	for i, p := range l.Prompts {
		v.present(fmt.Sprintf("latents.prompts[%d]", i), p)
	}
	v.check(l.Steps >= 1, "latents.steps", "%d must be at least 1", l.Steps)
	v.notNegative("latents.guidance", l.Guidance)
	v.check(l.Batch >= 1, "latents.batch", "%d must be at least 1", l.Batch)
}

// walker denoises partly, under the prompts of a recipe.
type walker struct {
	Latents
	embeddings []*sd.Embedding // of the prompts
	null       *sd.Embedding
	config     diffusion.Config
	side, h, w int // of pictures in pixels, and of latents
	total      int // timesteps of the schedule
}

// newWalker encodes the prompts and finds out whether the model's schedule can be walked.
func (t *trainer) newWalker(ctx context.Context) (*walker, error) {
	w := &walker{Latents: t.recipe.Latents, config: t.model.Scheduler, side: t.resolution(), total: t.model.Schedule.NumTrainTimesteps()}
	var err error
	if w.h, w.w, err = t.latentSize(); err != nil {
		return nil, err
	}
	if w.Steps > w.total {
		return nil, fmt.Errorf("recipe: latents.steps: %d is more than the model's %d timesteps", w.Steps, w.total)
	}
	if _, err := w.sampler(); err != nil {
		return nil, fmt.Errorf("recipe: latents.steps: %w", err)
	}
	if w.null, err = t.model.NegativeEmbedding(ctx, ""); err != nil {
		return nil, err
	}
	for i, prompt := range w.Prompts {
		e, err := t.model.EncodePrompt(ctx, prompt)
		if err != nil {
			return nil, fmt.Errorf("recipe: latents.prompts[%d]: %w", i, err)
		}
		if e.Cut != "" {
			t.warn(fmt.Sprintf("recipe: latents.prompts[%d] is longer than %d tokens; cut off: %q", i, e.Tokens, strings.TrimSpace(e.Cut)))
		}
		w.embeddings = append(w.embeddings, e)
	}
	return w, nil
}

func (w *walker) sampler() (diffusion.Sampler, error) {
	return diffusion.NewSampler(w.config, "ddim", w.Steps)
}

// conditions are the embeddings of a batch on the device, without latents and timesteps.
func (w *walker) conditions(xl bool, embeddings []*sd.Embedding) *denoise.Batch {
	var context, pooled, ids, weights []float32
	side := float32(w.side)
	n := len(embeddings)
	for _, e := range embeddings {
		context, pooled = append(context, e.Context...), append(pooled, e.Pooled...)
		ids = append(ids, side, side, 0, 0, side, side)
		weights = append(weights, 1/float32(n))
	}
	b := &denoise.Batch{Context: engine.Float32s(context, n, embeddings[0].Tokens, embeddings[0].Width), Weights: engine.Float32s(weights, n)}
	if xl {
		b.Pooled, b.TimeIDs = engine.Float32s(pooled, n, len(pooled)/n), engine.Float32s(ids, n, 6)
	}
	return b
}

// choice is what a batch of partial denoising draws beside noise.
type choice struct {
	level   int   // the stretch of the way; 0 is the last
	prompts []int // of each sample
	times   []int // timestep of each, within the stretch
}

// choose draws a stretch, and for each sample a prompt, unless prompts are given, and a timestep in the stretch.
func (w *walker) choose(draws *random.Stream, prompts []int) choice {
	c := choice{level: draws.IntN(w.Steps), prompts: prompts}
	low, high := c.level*w.total/w.Steps, (c.level+1)*w.total/w.Steps
	for range w.Batch {
		if prompts == nil {
			c.prompts = append(c.prompts, draws.IntN(len(w.embeddings)))
		}
		c.times = append(c.times, low+draws.IntN(high-low))
	}
	return c
}

// chosen is the choice of a step.
func (w *walker) chosen(seed uint64, step int) choice {
	return w.choose(random.New(seed, "partial denoising", step), nil)
}

// partlyDenoised is the batch of a step: prompts of the recipe, with latents that the model under training makes under
// them from noise, walked to a random place on the way, and a timestep of the stretch in which the way goes on there.
// The batch has no target yet.
func (t *trainer) partlyDenoised(ctx context.Context, step int) (*denoise.Batch, error) {
	return t.denoisedTo(ctx, t.walker.chosen(t.recipe.Seed, step), "partial denoising, noise", step)
}

// denoisedTo denoises as far as a choice says, from noise that is drawn under a purpose.
func (t *trainer) denoisedTo(ctx context.Context, c choice, purpose string, keys ...any) (*denoise.Batch, error) {
	w := t.walker
	sampler, err := w.sampler()
	if err != nil {
		return nil, err
	}
	var embeddings []*sd.Embedding
	var x, times []float32
	size := t.model.UNet.Config.InChannels * w.h * w.w
	for i, prompt := range c.prompts {
		embeddings, times = append(embeddings, w.embeddings[prompt]), append(times, float32(c.times[i]))
		for _, z := range random.New(t.recipe.Seed, slices.Concat([]any{purpose}, keys, []any{i})...).Normals(size) {
			x = append(x, float32(float64(z)*sampler.InitNoiseSigma()))
		}
	}
	if x, err = t.walk(ctx, sampler, embeddings, x, w.Steps-1-c.level); err != nil {
		return nil, err
	}
	b := w.conditions(t.model.XL, embeddings)
	b.Noisy = engine.Float32s(x, w.Batch, t.model.UNet.Config.InChannels, w.h, w.w)
	b.Timesteps = engine.Float32s(times, w.Batch)
	return b, nil
}

// walk takes some steps of a sampler with the model under training.
func (t *trainer) walk(ctx context.Context, sampler diffusion.Sampler, embeddings []*sd.Embedding, x []float32, steps int) ([]float32, error) {
	w := t.walker
	guided := w.Guidance != 1
	all := embeddings
	if guided {
		all = append(slices.Repeat([]*sd.Embedding{w.null}, len(embeddings)), embeddings...)
	}
	b := w.conditions(t.model.XL, all)
	defer b.Free()
	for i, at := range sampler.Timesteps()[:steps] {
		in := sampler.ScaleModelInput(x, i)
		if guided {
			in = slices.Concat(in, in)
		}
		output, err := t.predictValues(ctx, b, in, at, len(all))
		if err != nil {
			return nil, err
		}
		if guided {
			n := len(output) / 2
			for k, u := range output[:n] {
				output[k] = u + float32(w.Guidance)*(output[n+k]-u)
			}
			output = output[:n]
		}
		x = sampler.Step(output, i, x)
	}
	return x, nil
}

// predictValues is one call of the model under training on given conditions.
func (t *trainer) predictValues(ctx context.Context, conditions *denoise.Batch, x []float32, at float64, rows int) ([]float32, error) {
	b := *conditions
	b.Noisy = engine.Float32s(x, rows, t.model.UNet.Config.InChannels, t.walker.h, t.walker.w)
	b.Timesteps = engine.Float32s(slices.Repeat([]float32{float32(at)}, rows), rows)
	defer engine.Free(b.Noisy, b.Timesteps)
	net, point := t.net, t.outer.Point()
	if t.adversary != nil {
		net, point = t.teacher, t.reference // its UNet is not trained, and prompts are seen as they were
	}
	out, err := net.Predict(ctx, point, &b)
	if err != nil {
		return nil, err
	}
	defer engine.Free(out)
	t.gradients += predictionCost * float64(rows)
	return engine.Values(out)
}
