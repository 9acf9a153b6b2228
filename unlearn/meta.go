package unlearn

import (
	"context"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/train"
)

// Meta holds the weights of the denoising losses of method meta-unlearn, beside that of retained pictures at θ, which is
// objective.alpha. Those after relearning are subtracted: what was relearnt, and what is related to it, shall be lost.
type Meta struct {
	Related       float64 `toml:"related"`        // on related pictures, at θ
	HarmfulAfter  float64 `toml:"harmful_after"`  // on harmful pictures, after relearning
	RelatedAfter  float64 `toml:"related_after"`  // on related pictures, after relearning
	RetainedAfter float64 `toml:"retained_after"` // on retained pictures, after relearning
}

// defaultMeta are the weights of the example in the code of Gao et al. 2025.
func defaultMeta() Meta {
	return Meta{Related: 0.01, HarmfulAfter: 0.1, RelatedAfter: 0.1, RetainedAfter: 0.01}
}

func (m Meta) usesRelated() bool { return m.Related > 0 || m.RelatedAfter > 0 }

func (m Meta) validate(v *validation) {
	v.notNegative("meta.related", m.Related)
	v.notNegative("meta.harmful_after", m.HarmfulAfter)
	v.notNegative("meta.related_after", m.RelatedAfter)
	v.notNegative("meta.retained_after", m.RetainedAfter)
}

// metaSamplers draw what meta-unlearn looks at, apart from what relearning trains on.
type metaSamplers struct {
	related                                 *denoise.Sampler // at θ; nil without related pictures
	harmfulAfter, relatedAfter, retainAfter *denoise.Sampler
}

// samplerOf returns the batches of a set of pictures for a purpose, of the size that the recipe says or the fallback.
type samplerOf = func(name, purpose string, fallback int) (*denoise.Sampler, error)

// makeMethodSamplers prepares what only some methods draw from.
func (t *trainer) makeMethodSamplers(sets map[string]*denoise.Dataset, sampler samplerOf) (err error) {
	switch t.recipe.Method {
	case SalUn:
		return t.newSalient(sets, sampler)
	case SafeGen:
		t.coarse, err = sampler("harmful"+coarseView, "harmful", 1)
		return err
	case AdvUnlearn:
		return t.newAdversarySamplers(sets, sampler)
	case LCFDSDNG, LCFDSDLT:
		return t.newContrast(sets)
	case MetaUnlearn:
		m := &metaSamplers{}
		t.meta = m
		if m.harmfulAfter, err = sampler("harmful", "harmful after relearning", 1); err != nil {
			return err
		}
		if m.retainAfter, err = sampler("retain", "retained after relearning", 4); err != nil {
			return err
		}
		if sets["related"] == nil {
			return nil
		}
		if m.related, err = sampler("related", "related", 1); err != nil {
			return err
		}
		m.relatedAfter, err = sampler("related", "related after relearning", 1)
	}
	return err
}

// againstRelearning is the gradient of meta-unlearn beside those at θ that other methods have: related pictures are kept
// at θ, and at the end θ* of simulated relearning all are raised. The derivative of θ* by θ is taken as one.
func (t *trainer) againstRelearning(ctx context.Context, step, at int, v *view, r *result) (total denoise.Vector, err error) {
	end, err := t.simulate(ctx, v, step)
	if err != nil {
		return nil, err
	}
	defer end.free()
	r.simulation, r.fineTuning = v.sim.Name, end.loss
	w := t.recipe.Meta
	for _, l := range []struct {
		name    string
		weight  float64
		net     *denoise.Network
		point   denoise.Point
		by      denoise.Selection
		sampler *denoise.Sampler
		value   *float64
	}{
		{"related loss", w.Related, t.net, t.outer.Point(), t.theta, t.meta.related, nil},
		{"harmful loss after relearning", -w.HarmfulAfter, v.net, end.point, v.theta, t.meta.harmfulAfter, &r.harmStar},
		{"related loss after relearning", -w.RelatedAfter, v.net, end.point, v.theta, t.meta.relatedAfter, nil},
		{"retain loss after relearning", -w.RetainedAfter, v.net, end.point, v.theta, t.meta.retainAfter, nil},
	} {
		// The harmful loss after relearning is logged whatever its weight.
		if l.sampler == nil || (l.weight == 0 && l.value == nil) {
			continue
		}
		value, g, err := t.lossOf(ctx, l.net, l.point, l.by, l.sampler, at)
		if err == nil {
			err = train.CheckFinite(l.name, value, step+1)
		}
		if err != nil {
			g.Free()
			total.Free()
			return nil, err
		}
		if l.value != nil {
			*l.value = -value // as L_harm elsewhere
		}
		scaled, err := t.space.Combine(term(l.weight, g))
		g.Free()
		if err != nil {
			total.Free()
			return nil, err
		}
		if total, err = t.space.Accumulate(total, scaled); err != nil {
			return nil, err
		}
	}
	return total, nil
}

// lossOf is the denoising loss on the pictures of a draw, and its gradient.
func (t *trainer) lossOf(ctx context.Context, net *denoise.Network, p denoise.Point, by denoise.Selection, s *denoise.Sampler, at int) (float64, denoise.Vector, error) {
	batch, err := s.Batch(ctx, at)
	if err != nil {
		return 0, nil, err
	}
	defer batch.Free()
	t.gradients += float64(s.Size())
	return net.Gradient(ctx, p, by, denoise.Loss{}, batch)
}
