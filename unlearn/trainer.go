package unlearn

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// term is a summand of a combination of gradients.
func term(c float64, v denoise.Vector) hypergrad.Term[denoise.Vector] {
	return hypergrad.Term[denoise.Vector]{Coefficient: c, Vector: v}
}

// trainer is a run under way: θ, the frozen θ₀, and everything that batches are drawn from.
type trainer struct {
	recipe Recipe
	model  *sd.Model
	space  *denoise.Space
	cache  *data.Cache
	warn   func(string)

	net     *denoise.Network // the UNet with the adapter under training, if θ is one
	adapter *sd.Adapter
	theta   denoise.Selection
	outer   *denoise.Descent
	initial []*engine.Tensor // the first factors of the adapter

	teacher   *denoise.Network // θ₀
	reference denoise.Point

	harmful, retain *denoise.Sampler // nil where the method does without
	base, null      *sd.Embedding    // objective esd
	walker          *walker          // latents from prompts
	salient         *salient         // method salun
	meta            *metaSamplers    // method meta-unlearn
	coarse          *denoise.Sampler // method safegen: harmful pictures as mosaics, in the same draws
	adversary       *adversary       // method advunlearn
	contrast        *contrast        // methods lcfdsd-ng and lcfdsd-lt
	views           map[string]*view
	gradients       float64 // evaluated so far, in gradients of one picture
	depth           float64 // running mean of the error on harmful pictures; 0 before the first step
}

// Costs of one evaluation for one picture, in gradients: a forward pass is a third of a gradient, and a Hessian–vector
// product was measured at three (docs/performance.md).
const (
	predictionCost = 1.0 / 3
	productCost    = 3.0
	// A forward pass, its linearisation, and one backward pass.
	gaussNewtonCost = 5.0 / 3
)

func newTrainer(ctx context.Context, m *sd.Model, r Recipe, cache *data.Cache, h Hooks) (_ *trainer, err error) {
	t := &trainer{recipe: r, model: m, cache: cache, space: denoise.NewSpace(m.Engine), warn: h.warn, views: map[string]*view{}}
	defer func() {
		if err != nil {
			t.free()
		}
	}()
	t.teacher = denoise.NewNetwork(m)
	t.reference = denoise.Point(m.UNetParams.Tensors)
	groups := [][]*engine.Tensor{m.UNetParams.Tensors}
	switch r.Trainable.Parameters {
	case "lora":
		layers, err := m.AttentionLayers(r.Trainable.Targets...)
		if err != nil {
			return nil, fmt.Errorf("recipe: trainable.targets: %w", err)
		}
		if t.adapter, err = sd.NewAdapter(layers, r.Trainable.Rank, r.Trainable.Scale); err != nil {
			return nil, fmt.Errorf("recipe: trainable.rank: %w", err)
		}
		factors := t.adapter.Draw(r.Seed, r.Trainable.DownStd, r.Trainable.UpStd)
		t.initial = factors.Tensors
		groups = append(groups, factors.Tensors)
		t.net = denoise.NewNetwork(m, t.adapter)
		t.theta = t.net.Group(1)
	case TextEncoder:
		text, err := t.initText()
		if err != nil {
			return nil, err
		}
		groups = append(groups, text...)
	default:
		t.net = denoise.NewNetwork(m)
		if err := t.chooseTheta(); err != nil {
			return nil, err
		}
	}
	start, err := t.net.Point(groups...)
	if err != nil {
		return nil, err
	}
	if t.outer, err = denoise.NewDescent(t.net, t.theta, r.Outer.Rule(), start); err != nil {
		return nil, err
	}
	if err := t.prepareData(ctx, h); err != nil {
		return nil, err
	}
	if r.Objective.Harm == ESD {
		if t.null, err = m.EncodePrompt(ctx, ""); err != nil {
			return nil, err
		}
		if t.base, err = m.EncodePrompt(ctx, r.Objective.BasePrompt); err != nil {
			return nil, fmt.Errorf("recipe: objective.base_prompt: %w", err)
		}
	}
	if r.Latents.From == FromPrompts {
		if t.walker, err = t.newWalker(ctx); err != nil {
			return nil, err
		}
	}
	if r.Method == SafeGen || r.contrastive() {
		if err := t.checkSignal(); err != nil {
			return nil, err
		}
	}
	if r.Method == SalUn {
		if err := t.findSalient(ctx); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *trainer) free() {
	if t.outer != nil {
		t.outer.Free()
	}
	engine.Free(t.initial...)
	t.salient.free()
	for _, v := range t.views {
		v.free()
	}
	for _, n := range []*denoise.Network{t.net, t.teacher} {
		if n != nil {
			n.Free()
		}
	}
	t.space.Free()
}

// lambda, alpha and rate are the objective's weights and the share of the outer learning rate at a step.
func (t *trainer) weights(step int) (lambda, alpha, rate float64) {
	o := t.recipe.Objective
	lambda, rate = o.Lambda, 1
	alpha = o.Alpha
	if p := 2*float64(step)/float64(t.recipe.Outer.Steps) - 1; p >= 0 {
		alpha += (o.AlphaFinal - o.Alpha) / (1 + math.Exp(-10*(p-0.5)))
	}
	end := 0
	for _, p := range t.recipe.Phases {
		end += p.Steps
		if step >= end {
			continue
		}
		if p.Lambda != nil {
			lambda = *p.Lambda
		}
		if p.Alpha != nil {
			alpha = *p.Alpha
		}
		if p.LearningRate != nil && t.recipe.Outer.LearningRate > 0 {
			rate = *p.LearningRate / t.recipe.Outer.LearningRate
		}
		break
	}
	if t.recipe.Method != ResAlign {
		lambda = 0
	}
	return lambda, alpha, rate
}

// step is one outer step: the mean over the drawn simulations of ∇L, and one step of the outer optimizer.
func (t *trainer) step(ctx context.Context, step int) (map[string]any, error) {
	lambda, alpha, rate := t.weights(step)
	drawn := []*view{nil}
	if lambda > 0 || t.recipe.Method == MetaUnlearn {
		drawn = t.draw(step)
	}
	var total denoise.Vector
	sum := summary{}
	for j, v := range drawn {
		g, r, err := t.gradient(ctx, step, j, v, lambda, alpha)
		if err != nil {
			total.Free()
			if v != nil {
				return nil, fmt.Errorf("simulation %q: %w", v.sim.Name, err)
			}
			return nil, err
		}
		sum.add(r)
		if total, err = t.space.Accumulate(total, g); err != nil {
			return nil, err
		}
	}
	total, err := t.masked(total)
	if err != nil {
		return nil, err
	}
	norm, err := t.space.Norm(total)
	if err != nil {
		return nil, err
	}
	norm /= float64(len(drawn))
	if err := train.CheckFinite("hypergradient norm", norm, step+1); err != nil {
		total.Free()
		return nil, err
	}
	// Above the limit the whole hypergradient is scaled: dropping its implicit part would change the objective.
	scale := denoise.ClipScale(norm, t.recipe.Outer.ClipNorm) / float64(len(drawn))
	if err := t.outer.Step(ctx, total, scale, rate); err != nil {
		return nil, err
	}
	fields := sum.fields()
	t.observeDepth(fields["harmful_error"].(float64))
	fields["lambda"], fields["alpha"] = lambda, alpha
	if t.retain == nil {
		delete(fields, "retain_loss")
		delete(fields, "alpha")
	}
	fields["hypergradient_norm"] = norm
	fields["learning_rate"] = rate * t.recipe.Outer.LearningRate
	if t.contrast != nil {
		fields["contrastive_loss"] = t.contrast.loss
		fields["centre_distance"] = distance(t.contrast.retained.centre, t.contrast.harmful.centre)
	}
	fields["gradients"] = t.gradients
	return fields, nil
}

// draw chooses the simulations of a step, without replacement.
func (t *trainer) draw(step int) []*view {
	order := random.New(t.recipe.Seed, "simulations", step).Perm(len(t.recipe.Simulations))
	var out []*view
	for _, i := range order[:t.recipe.Outer.SimulationsPerStep] {
		out = append(out, t.views[t.recipe.Simulations[i].Name])
	}
	return out
}

// gradient is ∇L(θ) with one simulation; none where λ is zero.
func (t *trainer) gradient(ctx context.Context, step, j int, v *view, lambda, alpha float64) (denoise.Vector, result, error) {
	var r result
	at := step
	if t.recipe.simulates() {
		at = step*t.recipe.Outer.SimulationsPerStep + j
	}
	if t.contrast != nil {
		g, err := t.contrasted(ctx, step, at, alpha, &r)
		return g, r, err
	}
	harm, err := t.harmBatch(ctx, at)
	if err != nil {
		return nil, r, err
	}
	defer harm.free()
	direct, err := t.direct(ctx, step, at, harm, lambda, alpha, &r)
	if err != nil || v == nil {
		return direct, r, err
	}
	defer direct.Free()
	var implicit denoise.Vector
	if t.recipe.Method == MetaUnlearn {
		implicit, err = t.againstRelearning(ctx, step, at, v, &r)
	} else {
		implicit, err = t.resilience(ctx, step, v, harm, lambda, &r)
	}
	if err != nil {
		return nil, r, err
	}
	defer implicit.Free()
	sum, err := t.space.Mix(1, direct, 1, implicit)
	return sum, r, err
}

// direct is (1−λ)∇L_harm(θ) + α∇R(θ).
func (t *trainer) direct(ctx context.Context, step, at int, harm *harmBatch, lambda, alpha float64, r *result) (denoise.Vector, error) {
	point := t.outer.Point()
	if harm.point != nil {
		point = harm.point
	}
	weight := t.directWeight(lambda)
	loss := harm.loss
	if t.recipe.Objective.Depth > 0 {
		loss.Cap = 0 // the depth that is held bounds it
	}
	value, whole, g, err := t.net.GradientWithError(ctx, point, t.theta, loss, harm.batch)
	if err != nil {
		return nil, err
	}
	defer g.Free()
	t.gradients += float64(harm.size)
	r.harm, r.harmError = harm.sign*value, whole
	if err := train.CheckFinite("harmful loss", value, step+1); err != nil {
		return nil, err
	}
	if t.retain == nil {
		return t.space.Combine(term(weight*harm.sign, g))
	}
	retain, gr, err := t.retainGradient(ctx, at)
	if err != nil {
		return nil, err
	}
	defer gr.Free()
	r.retain = retain
	if err := train.CheckFinite("retain loss", retain, step+1); err != nil {
		return nil, err
	}
	return t.space.Combine(term(weight*harm.sign, g), term(alpha, gr))
}

// retainGradient is R(θ) and ∇R(θ) on the retained pictures of a draw.
func (t *trainer) retainGradient(ctx context.Context, at int) (float64, denoise.Vector, error) {
	batch, err := t.retain.Batch(ctx, at)
	if err != nil {
		return 0, nil, err
	}
	defer batch.Free()
	size := float64(t.retain.Size())
	t.gradients += size
	if t.recipe.Objective.Retain != Denoising {
		taught, err := t.teacher.Teach(ctx, t.reference, batch)
		if err != nil {
			return 0, nil, err
		}
		defer engine.Free(taught.Target)
		t.gradients += size * predictionCost
		batch = taught
	}
	if t.adversary != nil {
		prompts, err := tokensOf(ctx, t.adversary.retain, at)
		if err != nil {
			return 0, nil, err
		}
		batch = asTokens(batch, prompts)
		defer engine.Free(batch.IDs)
	}
	return t.net.Gradient(ctx, t.outer.Point(), t.theta, denoise.Loss{}, batch)
}
