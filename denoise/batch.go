package denoise

import (
	"context"
	"fmt"
	"slices"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// Batch is one draw of latents, noise and timesteps, on the device. The same batch gives the same loss at any point, so
// that losses at θ and θ* differ by the parameters alone.
type Batch struct {
	Noisy     *engine.Tensor // [B, C, h, w]: noised latents
	Timesteps *engine.Tensor // [B]
	Context   *engine.Tensor // [B, tokens, width]; nil with IDs
	IDs       *engine.Tensor // [B, tokens], SDXL [B, 2·tokens + 1], int32: in place of Context and Pooled, for a network with text encoders
	Target    *engine.Tensor // [B, C, h, w]: noise or velocity, or what a teacher predicts
	Weights   *engine.Tensor // [B]
	Pooled    *engine.Tensor // SDXL: [B, width]
	TimeIDs   *engine.Tensor // SDXL: [B, 6]
	Dropout   *engine.Tensor // [1], int32: seed of what adapters drop, see Network.DropAdapterInputs; nil: nothing
}

// conditions are the inputs of a prediction, in the order in which predict takes them.
func (b *Batch) conditions(xl bool) []*engine.Tensor {
	in := []*engine.Tensor{b.Noisy, b.Timesteps, b.Context}
	if b.IDs != nil {
		in[2] = b.IDs
	}
	if xl && b.IDs == nil {
		in = append(in, b.Pooled)
	}
	if xl {
		in = append(in, b.TimeIDs)
	}
	return in
}

// inputs are the inputs of a loss: the conditions, the seed of a dropout if there is one, the target and the weights.
func (b *Batch) inputs(xl bool) []*engine.Tensor {
	in := b.conditions(xl)
	if b.Dropout != nil {
		in = append(in, b.Dropout)
	}
	return append(in, b.Target, b.Weights)
}

// SetDropout gives the batch the seed of what adapters drop.
func (b *Batch) SetDropout(seed uint32) {
	engine.Free(b.Dropout)
	b.Dropout = engine.Int32s([]int32{int32(seed)}, 1)
}

// Free releases the batch.
func (b *Batch) Free() {
	engine.Free(b.Noisy, b.Timesteps, b.Context, b.IDs, b.Target, b.Weights, b.Pooled, b.TimeIDs, b.Dropout)
}

// WithTarget is the same batch with another target, which the new batch shares everything else with.
func (b *Batch) WithTarget(target *engine.Tensor) *Batch {
	next := *b
	next.Target = target
	return &next
}

// Sample is one picture of a batch, noised.
type Sample struct {
	Latents   []float32 // [C, h, w], scaled
	Noise     []float32 // [C, h, w]
	Timestep  int
	Embedding *sd.Embedding
	IDs       []int32    // what a Tokenizer made of the prompt: in place of Embedding, for a network with text encoders
	Weight    float64    // in the loss; the weights of a batch usually add up to 1
	TimeIDs   [6]float32 // SDXL: original height, width, crop top, left, target height, width
}

// NewBatch noises samples, all of latents of the given size, and puts them on the device. Targets are what the model's
// scheduler says it predicts.
func NewBatch(m *sd.Model, samples []Sample, h, w int) (*Batch, error) {
	if len(samples) == 0 {
		return nil, fmt.Errorf("denoise: a batch without samples")
	}
	channels := m.UNet.Config.InChannels
	var noisy, target, weights, steps []float32
	for _, s := range samples {
		if len(s.Latents) != channels*h*w || len(s.Noise) != len(s.Latents) {
			return nil, fmt.Errorf("denoise: latents of %d and noise of %d numbers do not fill %d×%d×%d", len(s.Latents), len(s.Noise), channels, h, w)
		}
		n, err := m.Schedule.AddNoise(s.Latents, s.Noise, []int{s.Timestep})
		if err != nil {
			return nil, err
		}
		t, err := m.Schedule.Target(s.Latents, s.Noise, []int{s.Timestep})
		if err != nil {
			return nil, err
		}
		noisy, target = append(noisy, n...), append(target, t...)
		weights, steps = append(weights, float32(s.Weight)), append(steps, float32(s.Timestep))
	}
	b := &Batch{}
	if err := b.putPrompts(m, samples); err != nil {
		return nil, err
	}
	size := len(samples)
	b.Noisy, b.Target = engine.Float32s(noisy, size, channels, h, w), engine.Float32s(target, size, channels, h, w)
	b.Timesteps, b.Weights = engine.Float32s(steps, size), engine.Float32s(weights, size)
	return b, nil
}

// putPrompts puts what samples are conditioned on beside the timestep on the device.
func (b *Batch) putPrompts(m *sd.Model, samples []Sample) error {
	size := len(samples)
	if tokens := len(samples[0].IDs); tokens > 0 {
		var ids []int32
		for _, s := range samples {
			if len(s.IDs) != tokens {
				return fmt.Errorf("denoise: prompts of %d and %d tokens in one batch", tokens, len(s.IDs))
			}
			ids = append(ids, s.IDs...)
		}
		if m.XL { // ends of text become rows of all prompts' tokens
			for i := range size {
				ids[(i+1)*tokens-1] += int32(i * (tokens - 1) / 2)
			}
			b.putTimeIDs(samples)
		}
		b.IDs = engine.Int32s(ids, size, tokens)
		return nil
	}
	first := samples[0].Embedding
	var context, pooled []float32
	for _, s := range samples {
		if s.Embedding.Tokens != first.Tokens || s.Embedding.Width != first.Width {
			return fmt.Errorf("denoise: text embeddings of different sizes in one batch")
		}
		context, pooled = append(context, s.Embedding.Context...), append(pooled, s.Embedding.Pooled...)
	}
	b.Context = engine.Float32s(context, size, first.Tokens, first.Width)
	if m.XL {
		b.Pooled = engine.Float32s(pooled, size, len(first.Pooled))
		b.putTimeIDs(samples)
	}
	return nil
}

func (b *Batch) putTimeIDs(samples []Sample) {
	var ids []float32
	for _, s := range samples {
		ids = append(ids, s.TimeIDs[:]...)
	}
	b.TimeIDs = engine.Float32s(ids, len(samples), 6)
}

// Draw adds what is random to a sample: the latents from their moments, the noise, and a timestep uniform over the
// schedule. The numbers depend on the stream alone.
func Draw(m *sd.Model, schedule *diffusion.Schedule, moments sd.Moments, e *sd.Embedding, weight float64, s *random.Stream) Sample {
	n := len(moments.Mean)
	t := s.IntN(schedule.NumTrainTimesteps())
	return Sample{
		Latents: m.Sample(moments, s.Normals(n)), Noise: s.Normals(n),
		Timestep: t, Embedding: e, Weight: weight,
	}
}

// Teach replaces a batch's target by what the network predicts at a point: the loss is then distillation from there.
func (n *Network) Teach(ctx context.Context, p Point, b *Batch) (*Batch, error) {
	t, err := n.Predict(ctx, p, b)
	if err != nil {
		return nil, err
	}
	return b.WithTarget(t), nil
}

// WithPrompt is the same batch under one prompt for all its samples. Context and Pooled are new, the rest is shared.
func (b *Batch) WithPrompt(e *sd.Embedding, size int) *Batch {
	next := *b
	next.Context = engine.Float32s(slices.Repeat(e.Context, size), size, e.Tokens, e.Width)
	if b.Pooled != nil {
		next.Pooled = engine.Float32s(slices.Repeat(e.Pooled, size), size, len(e.Pooled))
	}
	return &next
}
