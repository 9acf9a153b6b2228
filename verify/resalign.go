package verify

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// problem is one outer step of the method on fixed batches: the UNet under a low-rank adapter θ.
type problem struct {
	*caseRun
	settings stepSettings
	ref      *reference
	model    *sd.Model
	adapter  *sd.Adapter
	network  *denoise.Network
	theta    denoise.Selection
	space    *denoise.Space

	finetune, harmful, retain *denoise.Batch
	start, star               denoise.Vector // θ and θ*
	outerTheta, outerStar     denoise.Vector // ∂L/∂θ without the path through θ*, and ∂L/∂θ*

	owned []*engine.Tensor // freed at the end
}

// stepSettings are the numbers in the file's metadata.
type stepSettings struct {
	innerLR, adamLR, lambda, retainWeight, metaRate, outerLR, weightDecay float64

	innerSteps, richardsonSteps int

	innerLosses                         []float64
	harmfulTheta, harmfulStar, retained float64
	outerLoss                           float64
	residuals                           map[string][]float64
}

func (s *stepSettings) read(ref *reference) error {
	return ref.settings(map[string]any{
		"inner_lr": &s.innerLR, "adam_lr": &s.adamLR, "outer_lambda": &s.lambda, "retain_weight": &s.retainWeight,
		"meta_rate": &s.metaRate, "outer_lr": &s.outerLR, "outer_weight_decay": &s.weightDecay,
		"inner_steps": &s.innerSteps, "richardson_steps": &s.richardsonSteps, "inner_losses": &s.innerLosses,
		"harmful_theta": &s.harmfulTheta, "harmful_theta_star": &s.harmfulStar, "retain": &s.retained,
		"outer_loss": &s.outerLoss, "residuals": &s.residuals,
	})
}

func checkResAlign(ctx context.Context, c *caseRun) error {
	m, ref, err := c.open()
	if err != nil {
		return err
	}
	p := &problem{caseRun: c, ref: ref, model: m, space: denoise.NewSpace(c.engine)}
	defer p.space.Free()
	defer func() { engine.Free(p.owned...) }()
	if err := p.settings.read(ref); err != nil {
		return err
	}
	if err := p.readAdapter(); err != nil {
		return err
	}
	p.network = denoise.NewNetwork(m, p.adapter)
	defer p.network.Free()
	p.theta = p.network.Group(1)
	for _, part := range []func(context.Context) error{
		p.batches, p.teach, p.sgd, p.adam, p.outer, p.hypergradients, p.outerUpdate,
	} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// keep hands tensors over to the case, which frees them at its end.
func (p *problem) keep(v denoise.Vector) { p.owned = append(p.owned, v...) }

// point is the UNet with the adapter at v.
func (p *problem) point(v denoise.Vector) denoise.Point {
	return append(slices.Clone(denoise.Point(p.model.UNetParams.Tensors)), v...)
}

// batches reads finetune.*, harmful.* and retain.*.
func (p *problem) batches(context.Context) error {
	for _, b := range []struct {
		name string
		into **denoise.Batch
	}{{"finetune", &p.finetune}, {"harmful", &p.harmful}, {"retain", &p.retain}} {
		batch, err := p.readBatch(b.name)
		if err != nil {
			return err
		}
		*b.into = batch
		p.keep([]*engine.Tensor{batch.Noisy, batch.Timesteps, batch.Context, batch.Target, batch.Weights, batch.Pooled, batch.TimeIDs})
	}
	return nil
}

func (p *problem) readBatch(name string) (*denoise.Batch, error) {
	cfg := p.model.UNet.Config
	latents, dims, err := p.ref.floats(name+".latents", anySize, cfg.InChannels, anySize, anySize)
	if err != nil {
		return nil, err
	}
	if err := cfg.CheckLatents(dims[2], dims[3]); err != nil {
		return nil, fmt.Errorf("%s: tensor %q: %w", p.ref.path, name+".latents", err)
	}
	noise, _, err := p.ref.floats(name+".noise", dims...)
	if err != nil {
		return nil, err
	}
	embeddings, shape, err := p.ref.floats(name+".context", dims[0], anySize, cfg.ContextWidth)
	if err != nil {
		return nil, err
	}
	timesteps, err := p.ref.ints(name+".timesteps", dims[0])
	if err != nil {
		return nil, err
	}
	var pooled, ids []float32
	if p.model.XL {
		if pooled, _, err = p.ref.floats(name+".pooled", dims[0], cfg.PooledWidth()); err != nil {
			return nil, err
		}
		if ids, _, err = p.ref.floats(name+".time_ids", dims[0], 6); err != nil {
			return nil, err
		}
	}
	samples := make([]denoise.Sample, dims[0])
	part := func(values []float32, i int) []float32 {
		n := len(values) / dims[0]
		return values[i*n : (i+1)*n]
	}
	for i := range samples {
		samples[i] = denoise.Sample{
			Latents: part(latents, i), Noise: part(noise, i), Timestep: timesteps[i], Weight: 1 / float64(dims[0]),
			Embedding: &sd.Embedding{Context: part(embeddings, i), Pooled: part(pooled, i), Tokens: shape[1], Width: shape[2]},
		}
		copy(samples[i].TimeIDs[:], part(ids, i))
	}
	b, err := denoise.NewBatch(p.model, samples, dims[2], dims[3])
	if err != nil {
		return nil, fmt.Errorf("%s: tensors %s.*: %w", p.ref.path, name, err)
	}
	return b, nil
}

// teach checks the base model's prediction on the retain batch, the target of distillation.
func (p *problem) teach(ctx context.Context) error {
	base := denoise.NewNetwork(p.model)
	defer base.Free()
	taught, err := base.Teach(ctx, denoise.Point(p.model.UNetParams.Tensors), p.retain)
	if err != nil {
		return err
	}
	p.retain = taught
	p.keep(denoise.Vector{taught.Target})
	got, err := engine.Values(taught.Target)
	if err != nil {
		return err
	}
	want, _, err := p.ref.floats("retain.teacher", engine.Shape(taught.Target)...)
	if err != nil {
		return err
	}
	g := newGroup("retain.teacher", toleranceValue)
	g.add("retain.teacher", got, want)
	p.compare(g)
	return nil
}

// descend runs an optimizer for the inner steps on the fine-tuning batch, and returns where it ends and the loss before
// each step.
func (p *problem) descend(ctx context.Context, o train.Optimizer) (denoise.Vector, []float64, error) {
	d, err := denoise.NewDescent(p.network, p.theta, o, p.point(p.start))
	if err != nil {
		return nil, nil, err
	}
	var losses []float64
	for range p.settings.innerSteps {
		loss, grad, err := p.network.Gradient(ctx, d.Point(), p.theta, denoise.Loss{}, p.finetune)
		if err == nil {
			losses = append(losses, loss)
			err = d.Step(ctx, grad, 1, 1)
		}
		if err != nil {
			d.Free()
			return nil, nil, err
		}
	}
	end, _ := d.Release()
	moved := p.theta.Of(end)
	p.keep(moved)
	return moved, losses, nil
}

// sgd checks fine-tuning by gradient descent, which gives θ*: its losses, its end, and the way to there, which is short
// against θ itself.
func (p *problem) sgd(ctx context.Context) error {
	s := p.settings
	o, err := train.DefaultOptimizer(train.SGD, s.innerLR)
	if err != nil {
		return fmt.Errorf("%s: metadata field \"inner_lr\": %w", p.ref.path, err)
	}
	if s.innerSteps < 1 || len(s.innerLosses) != s.innerSteps {
		return fmt.Errorf("%s: the metadata has %d \"inner_losses\" for %d \"inner_steps\"; give one for each, and at least one", p.ref.path, len(s.innerLosses), s.innerSteps)
	}
	star, losses, err := p.descend(ctx, o)
	if err != nil {
		return err
	}
	p.star = star
	g := newGroup("inner losses", toleranceValue)
	for i, loss := range losses {
		g.addNumber(fmt.Sprintf("step %d", i+1), loss, s.innerLosses[i])
	}
	p.compare(g)
	if err := p.compareVector("theta_star", "theta_star.", star, toleranceValue); err != nil {
		return err
	}
	return p.compareDisplacement("theta_star − theta", "theta_star.", star)
}

func (p *problem) adam(ctx context.Context) error {
	o, err := train.DefaultOptimizer(train.Adam, p.settings.adamLR)
	if err != nil {
		return fmt.Errorf("%s: metadata field \"adam_lr\": %w", p.ref.path, err)
	}
	end, _, err := p.descend(ctx, o)
	if err != nil {
		return err
	}
	return p.compareVector("theta_adam", "theta_adam.", end, toleranceValue)
}

// outer checks the losses of the outer step and its derivatives by θ and θ*:
//
//	L = (1 − λ) L_harm(θ) + λ L_harm(θ*) + α R(θ),   L_harm the negative denoising loss
func (p *problem) outer(ctx context.Context) error {
	s := p.settings
	type evaluation struct {
		at    denoise.Vector
		batch *denoise.Batch
		sign  float64
		loss  float64
		grad  denoise.Vector
	}
	theta, star, retain := &evaluation{at: p.start, batch: p.harmful, sign: -1}, &evaluation{at: p.star, batch: p.harmful, sign: -1}, &evaluation{at: p.start, batch: p.retain, sign: 1}
	for _, e := range []*evaluation{theta, star, retain} {
		loss, grad, err := p.network.Gradient(ctx, p.point(e.at), p.theta, denoise.Loss{}, e.batch)
		if err != nil {
			return err
		}
		p.keep(grad)
		e.loss, e.grad = e.sign*loss, grad
	}
	g := newGroup("losses", toleranceValue)
	g.addNumber("harmful_theta", theta.loss, s.harmfulTheta)
	g.addNumber("harmful_theta_star", star.loss, s.harmfulStar)
	g.addNumber("outer_loss", (1-s.lambda)*theta.loss+s.lambda*star.loss+s.retainWeight*retain.loss, s.outerLoss)
	p.compare(g)
	g = newGroup("retain loss", toleranceValue) // so much smaller than the others that it would pass among them unseen
	g.addNumber("retain", retain.loss, s.retained)
	p.compare(g)

	var err error
	if p.outerStar, err = p.space.Combine(term(-s.lambda, star.grad)); err != nil {
		return err
	}
	p.keep(p.outerStar)
	if p.outerTheta, err = p.space.Combine(term(-(1-s.lambda), theta.grad), term(s.retainWeight, retain.grad)); err != nil {
		return err
	}
	p.keep(p.outerTheta)
	if err := p.compareVector("outer_grad_star", "outer_grad_star.", p.outerStar, toleranceValue); err != nil {
		return err
	}
	return p.compareVector("outer_grad_theta", "outer_grad_theta.", p.outerTheta, toleranceValue)
}

func term(c float64, v denoise.Vector) hypergrad.Term[denoise.Vector] {
	return hypergrad.Term[denoise.Vector]{Coefficient: c, Vector: v}
}

const gammaPrefix = "hypergrad_gamma"

// gammas lists the Moreau radii that the file has hypergradients of, as they are spelled there, from small to large.
func (p *problem) gammas() ([]string, error) {
	values := map[string]float64{}
	for _, name := range p.ref.source.Names() {
		text, ok := strings.CutPrefix(name, gammaPrefix)
		if !ok {
			continue
		}
		for _, block := range []string{".down_blocks.", ".mid_block.", ".up_blocks."} { // the number may have a point, too
			text, _, _ = strings.Cut(text, block)
		}
		gamma, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: tensor %q: %q is not a number; call it %s0.5.NAME", p.ref.path, name, text, gammaPrefix)
		}
		values[text] = gamma
	}
	var out []string
	for text := range values {
		out = append(out, text)
	}
	slices.SortFunc(out, func(a, b string) int {
		return cmp.Or(cmp.Compare(values[a], values[b]), strings.Compare(a, b))
	})
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: there are no tensors %sG.NAME; write the file again with them", p.ref.path, gammaPrefix)
	}
	return out, nil
}

// hypergradients checks ∂L/∂θ through θ* for every γ, with exact Hessian products and with central differences of
// gradients, and the norms of the iteration's steps.
func (p *problem) hypergradients(ctx context.Context) error {
	gammas, err := p.gammas()
	if err != nil {
		return err
	}
	for _, text := range gammas {
		gamma, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return err
		}
		if n := len(p.settings.residuals[text]); n != p.settings.richardsonSteps {
			return fmt.Errorf("%s: the metadata field \"residuals\" has %d numbers for γ = %s instead of the %d of \"richardson_steps\"", p.ref.path, n, text, p.settings.richardsonSteps)
		}
		x, report, err := p.hypergradient(ctx, gamma, p.exactProduct(ctx))
		if err != nil {
			return err
		}
		name := "hypergrad γ=" + text
		if err := p.compareVector(name, gammaPrefix+text+".", x, toleranceSecond); err != nil {
			return err
		}
		p.compareSteps(text, report.Steps)
		if gamma == 1 && p.ref.any("hypergrad.") {
			if err := p.compareVector("hypergrad", "hypergrad.", x, toleranceSecond); err != nil {
				return err
			}
		}
		central, _, err := p.hypergradient(ctx, gamma, p.centralProduct(ctx))
		if err != nil {
			return err
		}
		if err := p.compareVector(name+" (central differences)", gammaPrefix+text+".", central, toleranceCentral); err != nil {
			return err
		}
	}
	return nil
}

func (p *problem) exactProduct(ctx context.Context) hypergrad.Product[denoise.Vector] {
	return func(v denoise.Vector) (denoise.Vector, error) {
		return p.network.HessianProduct(ctx, p.point(p.star), p.theta, denoise.Loss{}, p.finetune, v)
	}
}

func (p *problem) centralProduct(ctx context.Context) hypergrad.Product[denoise.Vector] {
	gradient := func(at denoise.Vector) (denoise.Vector, error) {
		_, grad, err := p.network.Gradient(ctx, p.point(at), p.theta, denoise.Loss{}, p.finetune)
		return grad, err
	}
	return hypergrad.CentralDifference(p.space, gradient, p.star, 0)
}

// hypergradient is ∂L/∂θ + x with x the Richardson iterate of (I + γH) x = ∂L/∂θ*.
func (p *problem) hypergradient(ctx context.Context, gamma float64, product hypergrad.Product[denoise.Vector]) (denoise.Vector, hypergrad.Report, error) {
	system := hypergrad.System[denoise.Vector]{Space: p.space, Product: product, Gamma: gamma, Right: p.outerStar}
	options := hypergrad.RichardsonOptions{Iterations: p.settings.richardsonSteps, Damping: 1}
	x, report, err := hypergrad.Richardson(ctx, system, options)
	if err != nil {
		return nil, report, err
	}
	defer x.Free()
	total, err := p.space.Combine(term(1, p.outerTheta), term(1, x))
	p.keep(total)
	return total, report, err
}

// compareSteps checks ‖x_{k+1} − x_k‖, which the metadata calls residuals.
func (p *problem) compareSteps(gamma string, steps []float64) {
	g := newGroup("residuals γ="+gamma, toleranceSecond)
	for i, want := range p.settings.residuals[gamma] {
		got := 0.0 // of an iteration that ended early, at an exact solution
		if i < len(steps) {
			got = steps[i]
		}
		g.addNumber(fmt.Sprintf("step %d", i+1), got, want)
	}
	p.compare(g)
}

// outerUpdate checks one AdamW step on the reference's own scaled hypergradient. Its first step is close to the sign of
// the gradient, so that rounding would show where an element of ours is nearly zero.
func (p *problem) outerUpdate(ctx context.Context) error {
	if !p.ref.any("theta_next.") {
		return nil
	}
	o, err := train.DefaultOptimizer(train.AdamW, p.settings.outerLR)
	if err != nil {
		return fmt.Errorf("%s: metadata field \"outer_lr\": %w", p.ref.path, err)
	}
	o.WeightDecay = p.settings.weightDecay
	if err := o.Validate(); err != nil {
		return fmt.Errorf("%s: metadata field \"outer_weight_decay\": %w", p.ref.path, err)
	}
	given, err := p.readVector("hypergrad.")
	if err != nil {
		return err
	}
	p.keep(given)
	scaled, err := p.space.Combine(term(p.settings.metaRate, given))
	if err != nil {
		return err
	}
	d, err := denoise.NewDescent(p.network, p.theta, o, p.point(p.start))
	if err != nil {
		return err
	}
	defer d.Free()
	if err := d.Step(ctx, scaled, 1, 1); err != nil { // uses scaled up
		return err
	}
	return p.compareVector("theta_next", "theta_next.", d.Selected(), toleranceValue)
}
