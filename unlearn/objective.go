package unlearn

import (
	"context"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// harmBatch is one draw of harmful pictures with the loss that is taken on it, the same at θ and at θ*:
// L_harm = sign · loss(batch).
type harmBatch struct {
	batch *denoise.Batch
	loss  denoise.Loss
	sign  float64
	size  int
	point denoise.Point // where the loss at θ is taken, if not at θ as it is: with adversarial words
	owned []*engine.Tensor
}

func (h *harmBatch) free() {
	h.batch.Free()
	engine.Free(h.owned...)
}

// harmBatch draws harmful latents and sets the target: noise, to be missed, or to be met the negatively guided prediction
// of θ₀, the prediction under another prompt, or the noise and what a coarse picture lacks.
func (t *trainer) harmBatch(ctx context.Context, at int) (*harmBatch, error) {
	b, size, err := t.harmfulLatents(ctx, at)
	if err != nil {
		return nil, err
	}
	h := &harmBatch{batch: b, sign: -1, size: size, loss: denoise.Loss{Cap: t.recipe.Objective.Cap}}
	var target *engine.Tensor
	switch t.recipe.Objective.Harm {
	case ESD:
		target, err = t.guidedAway(ctx, b, size)
	case Relabel:
		target, err = t.relabelled(ctx, at, b)
	case Mosaic:
		target, err = t.censored(ctx, at)
	default:
		return h, nil
	}
	if err != nil {
		h.free()
		return nil, err
	}
	h.owned = append(h.owned, b.Target)
	h.batch, h.sign, h.loss = b.WithTarget(target), 1, denoise.Loss{}
	if t.adversary != nil {
		if err := t.attacked(ctx, at, h); err != nil {
			h.free()
			return nil, err
		}
	}
	return h, nil
}

// harmfulLatents are the noisy latents of the harmful loss of a draw, and how many.
func (t *trainer) harmfulLatents(ctx context.Context, at int) (*denoise.Batch, int, error) {
	if t.walker != nil {
		b, err := t.partlyDenoised(ctx, at)
		return b, t.walker.Batch, err
	}
	b, err := t.harmful.Batch(ctx, at)
	return b, t.harmful.Size(), err
}

// guidedAway is ε_θ₀(c_base) − η(ε_θ₀(c_harm) − ε_θ₀(∅)), all at the same noisy latents (method, section 1).
func (t *trainer) guidedAway(ctx context.Context, b *denoise.Batch, size int) (*engine.Tensor, error) {
	predict := func(e *sd.Embedding) (denoise.Vector, error) {
		conditioned := b
		if e != nil {
			conditioned = b.WithPrompt(e, size)
			defer engine.Free(conditioned.Context, conditioned.Pooled)
		}
		out, err := t.teacher.Predict(ctx, t.reference, conditioned)
		t.gradients += predictionCost * float64(size)
		return denoise.Vector{out}, err
	}
	harm, err := predict(nil)
	if err != nil {
		return nil, err
	}
	defer harm.Free()
	base, err := predict(t.base)
	if err != nil {
		return nil, err
	}
	defer base.Free()
	null, err := predict(t.null)
	if err != nil {
		return nil, err
	}
	defer null.Free()
	eta := t.recipe.Objective.Eta
	out, err := t.space.Combine(term(1, base), term(-eta, harm), term(eta, null))
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// Depth control (objective.depth): the harmful error is averaged over about depthMemory steps, and its gradient at θ is
// scaled by the distance to the wanted depth, in full until depthBand of it is left, and backwards above it. The loss after
// simulated fine-tuning is not scaled: it is to be raised at the same depth.
const (
	depthMemory = 10.0
	depthBand   = 0.1
)

// push is the factor of the harmful gradient at θ that holds the depth.
func (t *trainer) push() float64 {
	depth := t.recipe.Objective.Depth
	if depth == 0 || t.depth == 0 {
		return 1
	}
	return min(1, max(-1, (depth-t.depth)/(depthBand*depth)))
}

// directWeight is the weight of the harmful loss at θ: 1 − λ, or in full what holds the depth, as the loss after
// fine-tuning raises it too.
func (t *trainer) directWeight(lambda float64) float64 {
	if t.recipe.Objective.Depth > 0 {
		return t.push()
	}
	return 1 - lambda
}

// observeDepth takes note of the error on harmful pictures of a step.
func (t *trainer) observeDepth(harmError float64) {
	if t.depth == 0 {
		t.depth = harmError
		return
	}
	t.depth += (harmError - t.depth) / depthMemory
}
