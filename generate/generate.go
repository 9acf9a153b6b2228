// Package generate makes pictures from prompts.
package generate

import (
	"context"
	"fmt"
	"math"
	"slices"

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
	// Batch is how many pictures go through the model at once; 0: one. Other numbers may change the last bits of a
	// picture, as matrix products are then cut differently; which pictures keep it company never does.
	Batch int `toml:"batch"`

	// VAESlicing decodes the pictures of a batch one at a time: less memory, the same pictures but for the last bits.
	VAESlicing bool `toml:"vae_slicing"`
	// VAETiling decodes pictures larger than a tile by overlapping tiles, one at a time: memory is bounded whatever their
	// size. Pictures change a little; see sd.VAEMemory.
	VAETiling bool `toml:"vae_tiling"`
	// VAETileSize is the side of a tile in pixels; 0: the size the VAE was trained on.
	VAETileSize int `toml:"vae_tile_size"`
}

// Defaults are the settings of the published evaluation: 30 steps, guidance 7.5, the model's own scheduler and size.
func Defaults() Options { return Options{Steps: 30, Guidance: 7.5} }

// Generator makes pictures with one point of a network. A picture is a pure function of the point, the options, the
// prompt and the seed: shards, order and the other pictures do not change it.
type Generator struct {
	net      *denoise.Network
	point    denoise.Point
	options  Options
	negative *sd.Embedding
	cache    *data.Cache
	h, w     int // of the latents
	memory   sd.VAEMemory
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
	if o.Batch < 0 || o.Batch > maxBatch {
		return nil, fmt.Errorf("generate: batch = %d must lie between 0 and %d", o.Batch, maxBatch)
	}
	if !(o.Guidance >= 0) || math.IsInf(o.Guidance, 0) {
		return nil, fmt.Errorf("generate: guidance = %v must be a finite number, not below 0", o.Guidance)
	}
	if o.Height > 0 && o.Width > data.MaxPixels/o.Height {
		return nil, fmt.Errorf("generate: height = %d and width = %d ask for more than %d pixels; choose a smaller picture", o.Height, o.Width, data.MaxPixels)
	}
	o.Batch = max(1, o.Batch)
	g := &Generator{net: net, point: point, options: o, cache: cache}
	var err error
	if g.h, g.w, err = m.LatentSize(o.Height, o.Width); err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	if g.memory, err = o.memory(m); err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	if _, err := g.sampler(nil); err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	if g.guided() {
		if g.negative, err = net.NegativeEmbedding(ctx, point, o.Negative); err != nil {
			return nil, fmt.Errorf("generate: negative prompt: %w", err)
		}
	}
	return g, nil
}

func (o Options) memory(m *sd.Model) (sd.VAEMemory, error) {
	s := sd.VAEMemory{Slicing: o.VAESlicing}
	if !o.VAETiling {
		if o.VAETileSize != 0 {
			return s, fmt.Errorf("vae_tile_size = %d is for tiles; turn vae_tiling on as well", o.VAETileSize)
		}
		return s, nil
	}
	var err error
	if s.Tile, err = m.TileSize(o.VAETileSize); err != nil {
		return s, fmt.Errorf("vae_tile_size: %w", err)
	}
	return s, nil
}

// maxBatch bounds what a typing mistake can ask of the memory.
const maxBatch = 1024

func (g *Generator) guided() bool { return g.options.Guidance > 1 }

// Picture is a finished picture.
type Picture struct {
	Image *data.RGB
	Cut   string // the end of the prompt that the text encoder could not take; "" if it took all
}

// Request asks for one picture.
type Request struct {
	Prompt string
	Seed   Seed
}

// Seed says which noise a picture starts from: the run's seed and the positions of the prompt and of the picture among
// those of the prompt.
type Seed struct {
	Run           uint64
	Prompt, Image int
}

// Picture makes one picture.
func (g *Generator) Picture(ctx context.Context, prompt string, seed Seed) (*Picture, error) {
	pictures, err := g.Pictures(ctx, []Request{{Prompt: prompt, Seed: seed}})
	if err != nil {
		return nil, err
	}
	return pictures[0], nil
}

// Pictures makes pictures, as many at once as the options say.
func (g *Generator) Pictures(ctx context.Context, requests []Request) ([]*Picture, error) {
	var out []*Picture
	for chunk := range slices.Chunk(requests, g.options.Batch) {
		pictures, err := g.batch(ctx, chunk)
		if err != nil {
			return nil, err
		}
		out = append(out, pictures...)
	}
	return out, nil
}

// batch makes at most Batch pictures. A smaller number is filled up, so that the model always sees arrays of one size
// and rounds in one way.
func (g *Generator) batch(ctx context.Context, requests []Request) ([]*Picture, error) {
	size := g.net.Model.UNet.Config.InChannels * g.h * g.w
	embeddings := make([]*sd.Embedding, g.options.Batch)
	seeds := make([]Seed, g.options.Batch)
	var noise []float32
	for i := range g.options.Batch {
		r := requests[min(i, len(requests)-1)]
		e, err := g.embedding(ctx, r.Prompt)
		if err != nil {
			return nil, fmt.Errorf("generate: prompt %q: %w", r.Prompt, err)
		}
		embeddings[i], seeds[i] = e, r.Seed
		noise = append(noise, random.New(r.Seed.Run, "picture", r.Seed.Prompt, r.Seed.Image).Normals(size)...)
	}
	latents, err := g.Denoise(ctx, embeddings, noise, seeds)
	if err != nil {
		return nil, err
	}
	pixels, err := g.net.Model.DecodeSparing(ctx, latents, g.options.Batch, g.h, g.w, g.memory)
	if err != nil {
		return nil, err
	}
	area := len(pixels) / g.options.Batch
	out := make([]*Picture, len(requests))
	for i, r := range requests {
		image, err := data.FromPixels(pixels[i*area:(i+1)*area], g.options.Width, g.options.Height)
		if err != nil {
			return nil, fmt.Errorf("generate: prompt %q: %w", r.Prompt, err)
		}
		out[i] = &Picture{Image: image, Cut: embeddings[i].Cut}
	}
	return out, nil
}

func (g *Generator) embedding(ctx context.Context, prompt string) (*sd.Embedding, error) {
	return g.net.Embedding(ctx, g.point, g.cache, prompt)
}

// sampler makes a fresh sampler. One that adds noise on the way draws it for each picture from the picture's own seed.
func (g *Generator) sampler(seeds []Seed) (diffusion.Sampler, error) {
	again := func(i, n int) []float32 {
		var out []float32
		for _, s := range seeds {
			out = append(out, random.New(s.Run, "ancestral", s.Prompt, s.Image, i).Normals(n/len(seeds))...)
		}
		return out
	}
	return diffusion.NewSampler(g.net.Model.Scheduler, g.options.Scheduler, g.options.Steps, diffusion.WithNoise(again))
}

// Denoise walks from standard normal noise [batch, channels, h, w] to scaled latents under the guidance of the options,
// with one embedding and one seed for each picture.
func (g *Generator) Denoise(ctx context.Context, embeddings []*sd.Embedding, noise []float32, seeds []Seed) ([]float32, error) {
	sampler, err := g.sampler(seeds)
	if err != nil {
		return nil, fmt.Errorf("generate: %w", err)
	}
	conditions := g.conditions(embeddings)
	defer conditions.Free()
	x := make([]float32, len(noise))
	for i, v := range noise {
		x[i] = float32(float64(v) * sampler.InitNoiseSigma())
	}
	for i, t := range sampler.Timesteps() {
		output, err := g.predict(ctx, conditions, sampler.ScaleModelInput(x, i), len(embeddings), t)
		if err != nil {
			return nil, err
		}
		x = sampler.Step(output, i, x)
	}
	return x, nil
}

// conditions puts what does not change between steps on the device: the negative embeddings first, where they are used.
func (g *Generator) conditions(embeddings []*sd.Embedding) *denoise.Batch {
	all := embeddings
	if g.guided() {
		all = append(slices.Repeat([]*sd.Embedding{g.negative}, len(embeddings)), embeddings...)
	}
	var context, pooled, ids []float32
	height, width := float32(g.options.Height), float32(g.options.Width)
	for _, e := range all {
		context, pooled = append(context, e.Context...), append(pooled, e.Pooled...)
		ids = append(ids, height, width, 0, 0, height, width)
	}
	b := &denoise.Batch{Context: engine.Float32s(context, len(all), all[0].Tokens, all[0].Width)}
	if g.net.Model.XL {
		b.Pooled = engine.Float32s(pooled, len(all), len(pooled)/len(all))
		b.TimeIDs = engine.Float32s(ids, len(all), 6)
	}
	return b
}

// predict is one call of the model on count pictures, with guidance: u + s·(c − u).
func (g *Generator) predict(ctx context.Context, conditions *denoise.Batch, x []float32, count int, t float64) ([]float32, error) {
	rows := count
	if g.guided() {
		rows = 2 * count
		x = slices.Concat(x, x)
	}
	b := *conditions
	b.Noisy = engine.Float32s(x, rows, g.net.Model.UNet.Config.InChannels, g.h, g.w)
	b.Timesteps = engine.Float32s(slices.Repeat([]float32{float32(t)}, rows), rows)
	defer engine.Free(b.Noisy, b.Timesteps)
	out, err := g.net.Predict(ctx, g.point, &b)
	if err != nil {
		return nil, err
	}
	defer engine.Free(out)
	values, err := engine.Values(out)
	if err != nil || !g.guided() {
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
