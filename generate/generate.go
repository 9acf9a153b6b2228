// Package generate makes pictures from prompts.
package generate

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// Options are the settings of a generation.
type Options struct {
	Steps     int     `toml:"steps"`     // model calls per picture, about
	Guidance  float64 `toml:"guidance"`  // guidance scale; 1 or less makes no use of the negative prompt
	Scheduler string  `toml:"scheduler"` // a sampler of package diffusion; empty: the model's own
	Negative  string  `toml:"negative_prompt"`
	Height    int     `toml:"height"` // pixels; 0: the size the model was trained on
	Width     int     `toml:"width"`
}

// Defaults are the settings of the published evaluation: 30 steps, guidance 7.5, the model's own scheduler and size.
func Defaults() Options { return Options{Steps: 30, Guidance: 7.5} }

// Generator makes pictures with one point of a network. Pictures are made one at a time, each from its own seed, so that
// a picture is a pure function of the point, the options, the prompt and the seed: batches, shards and order do not
// change it.
type Generator struct {
	net      *denoise.Network
	point    denoise.Point
	options  Options
	negative *sd.Embedding
	cache    *data.Cache
	h, w     int // of the latents
}

// New prepares a generator. The cache keeps text embeddings; nil computes them anew.
func New(ctx context.Context, net *denoise.Network, point denoise.Point, o Options, cache *data.Cache) (*Generator, error) {
	m := net.Model
	if o.Height == 0 {
		o.Height = m.Resolution()
	}
	if o.Width == 0 {
		o.Width = m.Resolution()
	}
	g := &Generator{net: net, point: point, options: o, cache: cache}
	var err error
	if g.h, g.w, err = m.LatentSize(o.Height, o.Width); err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	if _, err := diffusion.NewSampler(m.Scheduler, o.Scheduler, o.Steps); err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	if g.guided() {
		if g.negative, err = m.NegativeEmbedding(ctx, o.Negative); err != nil {
			return nil, fmt.Errorf("generate: negative prompt: %w", err)
		}
	}
	return g, nil
}

func (g *Generator) guided() bool { return g.options.Guidance > 1 }

// Picture is a finished picture.
type Picture struct {
	Image *data.RGB
	Cut   string // the end of the prompt that the text encoder could not take; "" if it took all
}

// Seed says which noise a picture starts from: the run's seed and the positions of the prompt and of the picture among
// those of the prompt.
type Seed struct {
	Run           uint64
	Prompt, Image int
}

func (s Seed) stream(purpose string) *random.Stream {
	return random.New(s.Run, purpose, s.Prompt, s.Image)
}

// Picture makes one picture.
func (g *Generator) Picture(ctx context.Context, prompt string, seed Seed) (*Picture, error) {
	e, err := g.embedding(ctx, prompt)
	if err != nil {
		return nil, fmt.Errorf("generate: prompt %q: %w", prompt, err)
	}
	noise := seed.stream("picture").Normals(g.net.Model.UNet.Config.InChannels * g.h * g.w)
	latents, err := g.Denoise(ctx, e, noise, seed)
	if err != nil {
		return nil, err
	}
	pixels, err := g.net.Model.Decode(ctx, latents, g.h, g.w)
	if err != nil {
		return nil, err
	}
	image, err := data.FromPixels(pixels, g.options.Width, g.options.Height)
	if err != nil {
		return nil, fmt.Errorf("generate: prompt %q: %w", prompt, err)
	}
	return &Picture{Image: image, Cut: e.Cut}, nil
}

func (g *Generator) embedding(ctx context.Context, prompt string) (*sd.Embedding, error) {
	if g.cache == nil {
		return g.net.Model.EncodePrompt(ctx, prompt)
	}
	return denoise.CachedEmbedding(ctx, g.net.Model, g.cache, prompt)
}

// Denoise walks from standard normal noise [channels, h, w] to scaled latents under the guidance of the options. The
// seed is used by samplers that add noise on the way.
func (g *Generator) Denoise(ctx context.Context, e *sd.Embedding, noise []float32, seed Seed) ([]float32, error) {
	again := func(i, n int) []float32 {
		return random.New(seed.Run, "ancestral", seed.Prompt, seed.Image, i).Normals(n)
	}
	sampler, err := diffusion.NewSampler(g.net.Model.Scheduler, g.options.Scheduler, g.options.Steps, diffusion.WithNoise(again))
	if err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	conditions := g.conditions(e)
	defer conditions.Free()
	x := make([]float32, len(noise))
	for i, v := range noise {
		x[i] = float32(float64(v) * sampler.InitNoiseSigma())
	}
	for i, t := range sampler.Timesteps() {
		output, err := g.predict(ctx, conditions, sampler.ScaleModelInput(x, i), t)
		if err != nil {
			return nil, err
		}
		x = sampler.Step(output, i, x)
	}
	return x, nil
}

// conditions puts what does not change between steps on the device: the negative embedding first, where one is used.
func (g *Generator) conditions(e *sd.Embedding) *denoise.Batch {
	context, pooled, size := e.Context, e.Pooled, 1
	if g.guided() {
		context = append(append([]float32(nil), g.negative.Context...), context...)
		pooled = append(append([]float32(nil), g.negative.Pooled...), pooled...)
		size = 2
	}
	b := &denoise.Batch{Context: engine.Float32s(context, size, e.Tokens, e.Width)}
	if g.net.Model.XL {
		height, width := float32(g.options.Height), float32(g.options.Width)
		var ids []float32
		for range size {
			ids = append(ids, height, width, 0, 0, height, width)
		}
		b.Pooled = engine.Float32s(pooled, size, len(pooled)/size)
		b.TimeIDs = engine.Float32s(ids, size, 6)
	}
	return b
}

// predict is one call of the model, with guidance: u + s·(c − u).
func (g *Generator) predict(ctx context.Context, conditions *denoise.Batch, x []float32, t float64) ([]float32, error) {
	size := 1
	times := []float32{float32(t)}
	if g.guided() {
		size = 2
		x = append(append(make([]float32, 0, 2*len(x)), x...), x...)
		times = append(times, times[0])
	}
	b := *conditions
	b.Noisy = engine.Float32s(x, size, g.net.Model.UNet.Config.InChannels, g.h, g.w)
	b.Timesteps = engine.Float32s(times, size)
	defer engine.Free(b.Noisy, b.Timesteps)
	out, err := g.net.Predict(ctx, g.point, &b)
	if err != nil {
		return nil, err
	}
	defer engine.Free(out)
	values, err := engine.Values(out)
	if err != nil || size == 1 {
		return values, err
	}
	n := len(values) / 2
	mixed := make([]float32, n)
	scale := float32(g.options.Guidance)
	for i := range mixed {
		u, c := values[i], values[n+i]
		mixed[i] = u + scale*(c-u)
	}
	return mixed, nil
}
