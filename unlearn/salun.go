package unlearn

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
)

// Saliency says which parameters method salun may change.
type Saliency struct {
	Share   float64 `toml:"share"`   // of all parameters, the most salient first
	Batches int     `toml:"batches"` // of harmful pictures over which the gradient is taken; 0: as many as go once through them
}

// defaultSaliency is the threshold of Fan et al. 2024, section 4: the median.
func defaultSaliency() Saliency { return Saliency{Share: 0.5} }

func (s Saliency) validate(v *validation, r Recipe) {
	v.check(s.Share > 0 && s.Share <= 1, "saliency.share", "%v must be above 0 and at most 1", s.Share)
	v.check(s.Batches >= 0, "saliency.batches", "%d must not be below 0", s.Batches)
	// Decoupled or not, decay moves parameters whose gradient is zero.
	v.check(r.Outer.WeightDecay == 0, "outer.weight_decay", "method %s leaves all but the salient parameters alone; use 0, not %v", SalUn, r.Outer.WeightDecay)
}

// salient is what method salun has beside the others: the batches that it looks for salient parameters with, the prompts
// that it puts in place of harmful ones, and its mask.
type salient struct {
	pictures *denoise.Sampler
	batches  int
	prompts  *denoise.Sampler
	mask     denoise.Vector // one where θ may change, zero elsewhere
}

func (s *salient) free() {
	if s != nil {
		s.mask.Free()
	}
}

func (t *trainer) newSalient(sets map[string]*denoise.Dataset, sampler samplerOf) (err error) {
	s := &salient{batches: t.recipe.Saliency.Batches}
	if s.pictures, err = sampler("harmful", "saliency", 1); err != nil {
		return err
	}
	if s.batches == 0 {
		n := s.pictures.Size()
		s.batches = (sets["harmful"].Size() + n - 1) / n
	}
	s.prompts, err = sets["retain"].Sampler(t.recipe.Seed, "relabelling", t.harmful.Size())
	t.salient = s
	return err
}

// findSalient makes the mask: the parameters where the gradient of the denoising loss on harmful pictures at θ₀ is
// largest in magnitude.
func (t *trainer) findSalient(ctx context.Context) error {
	var sum denoise.Vector
	defer func() { sum.Free() }()
	for i := range t.salient.batches {
		batch, err := t.salient.pictures.Batch(ctx, i)
		if err != nil {
			return err
		}
		_, g, err := t.net.Gradient(ctx, t.outer.Point(), t.theta, denoise.Loss{}, batch)
		batch.Free()
		if err != nil {
			return err
		}
		t.gradients += float64(t.salient.pictures.Size())
		if sum, err = t.space.Accumulate(sum, g); err != nil {
			return err
		}
	}
	values := make([][]float32, len(sum))
	for i, x := range sum {
		var err error
		if values[i], err = engine.Values(x); err != nil {
			return err
		}
	}
	threshold, err := salienceThreshold(values, t.recipe.Saliency.Share)
	if err != nil {
		return err
	}
	for i, x := range sum {
		mask := values[i]
		for k, g := range mask {
			mask[k] = 0
			if a := abs32(g); a >= threshold && a > 0 {
				mask[k] = 1
			}
		}
		t.salient.mask = append(t.salient.mask, engine.Float32s(mask, engine.Shape(x)...))
	}
	return nil
}

func abs32(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

// salienceThreshold is the magnitude from which on a number is among the given share of all of them. The bits of
// magnitudes are in their order, so that two counts, of the upper and then the lower half of the bits, find it without
// sorting a whole model.
func salienceThreshold(values [][]float32, share float64) (float32, error) {
	total := 0
	upper := make([]int, 1<<16)
	for _, v := range values {
		total += len(v)
		for _, x := range v {
			if x != x || math.IsInf(float64(x), 0) {
				return 0, fmt.Errorf("the gradient on harmful pictures is not finite, so that no parameter can be called salient; check data.harmful and the model")
			}
			upper[math.Float32bits(abs32(x))>>16]++
		}
	}
	left := int(math.Ceil(share * float64(total))) // how many of the largest are still to be counted
	find := func(counts []int) uint32 {
		i := len(counts) - 1
		for ; i > 0 && counts[i] < left; i-- {
			left -= counts[i]
		}
		return uint32(i)
	}
	high := find(upper)
	lower := make([]int, 1<<16)
	for _, v := range values {
		for _, x := range v {
			if bits := math.Float32bits(abs32(x)); bits>>16 == high {
				lower[bits&0xffff]++
			}
		}
	}
	return math.Float32frombits(high<<16 | find(lower)), nil
}

// masked leaves of a gradient what belongs to salient parameters; other methods have no mask. The gradient is used up.
func (t *trainer) masked(g denoise.Vector) (denoise.Vector, error) {
	if t.salient == nil {
		return g, nil
	}
	defer g.Free()
	return t.space.Multiply(t.salient.mask, g)
}

// relabelled is what the model under training predicts at the latents of a batch under prompts drawn from the retained
// pictures: the target of salun.
func (t *trainer) relabelled(ctx context.Context, at int, b *denoise.Batch) (*engine.Tensor, error) {
	samples, err := t.salient.prompts.Samples(ctx, at, 1)
	if err != nil {
		return nil, err
	}
	var context, pooled []float32
	for _, s := range samples {
		context, pooled = append(context, s.Embedding.Context...), append(pooled, s.Embedding.Pooled...)
	}
	n, e := len(samples), samples[0].Embedding
	other := *b
	other.Context = engine.Float32s(context, n, e.Tokens, e.Width)
	defer engine.Free(other.Context)
	if b.Pooled != nil {
		other.Pooled = engine.Float32s(pooled, n, len(pooled)/n)
		defer engine.Free(other.Pooled)
	}
	t.gradients += predictionCost * float64(n)
	return t.net.Predict(ctx, t.outer.Point(), &other)
}
