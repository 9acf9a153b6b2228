package unlearn

import (
	"context"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/train"
)

// resilience is the gradient of λ·L_harm(θ*(θ)) with respect to θ, through the simulated fine-tuning.
func (t *trainer) resilience(ctx context.Context, step int, v *view, harm *harmBatch, lambda float64, r *result) (denoise.Vector, error) {
	end, err := t.simulate(ctx, v, step)
	if err != nil {
		return nil, err
	}
	defer end.free()
	value, g, err := v.net.Gradient(ctx, end.point, v.phi, harm.loss, harm.batch)
	if err != nil {
		return nil, err
	}
	defer g.Free()
	t.gradients += float64(harm.size)
	if err := train.CheckFinite("harmful loss after fine-tuning", value, step+1); err != nil {
		return nil, err
	}
	right, err := t.space.Combine(term(lambda*harm.sign*t.push(), g))
	if err != nil {
		return nil, err
	}
	defer right.Free()
	r.simulation, r.harmStar, r.fineTuning = v.sim.Name, harm.sign*value, end.loss

	batch, err := t.fineTuningBatch(ctx, v, v.hessian, v.hessianPrior, step)
	if err != nil {
		return nil, err
	}
	defer batch.Free()
	system := hypergrad.System[denoise.Vector]{
		Space: t.space, Gamma: t.recipe.Hypergradient.Gamma, Right: right,
		Product: t.counted(v, t.product(ctx, v, end.point, batch)),
	}
	var x denoise.Vector
	if v.displacement {
		x, r.report, err = t.solver()(ctx, system)
	} else {
		x, r.report, err = t.implicit(ctx, v, end.point, batch, harm, lambda, system)
	}
	r.solved = true
	return x, err
}

// solver solves (I + γH) x = g as the recipe says.
func (t *trainer) solver() hypergrad.Solver[denoise.Vector] {
	h := t.recipe.Hypergradient
	if h.Solver == ConjugateGradient {
		return hypergrad.ConjugateGradientSolver[denoise.Vector](t.conjugate())
	}
	return hypergrad.RichardsonSolver[denoise.Vector](t.richardson())
}

func (t *trainer) richardson() hypergrad.RichardsonOptions {
	h := t.recipe.Hypergradient
	o := hypergrad.RichardsonOptions{Iterations: h.Iterations, Damping: h.Damping, FinalResidual: h.Residual}
	if h.Solver == FirstOrder {
		o.Iterations, o.Damping = 1, 1
	}
	return o
}

func (t *trainer) conjugate() hypergrad.ConjugateGradientOptions {
	h := t.recipe.Hypergradient
	// Directions of negative curvature are where fine-tuning runs away from the proximal model; the solve stops there and
	// the log says so.
	return hypergrad.ConjugateGradientOptions{Iterations: h.Iterations, StopAtNegativeCurvature: true, FinalResidual: h.Residual}
}

// implicit is the hypergradient where fine-tuning trains parameters of its own.
func (t *trainer) implicit(ctx context.Context, v *view, p denoise.Point, batch *denoise.Batch, harm *harmBatch, lambda float64, s hypergrad.System[denoise.Vector]) (denoise.Vector, hypergrad.Report, error) {
	_, g, err := v.net.Gradient(ctx, p, v.theta, harm.loss, harm.batch)
	if err != nil {
		return nil, hypergrad.Report{}, err
	}
	defer g.Free()
	t.gradients += float64(harm.size)
	direct, err := t.space.Combine(term(lambda*harm.sign*t.push(), g))
	if err != nil {
		return nil, hypergrad.Report{}, err
	}
	defer direct.Free()
	a := hypergrad.Adaptation[denoise.Vector, denoise.Vector]{
		ThetaSpace: t.space, PhiSpace: t.space, Gamma: s.Gamma, Direct: direct, Right: s.Right, Product: s.Product,
		Cross: t.counted(v, func(u denoise.Vector) (denoise.Vector, error) { return t.cross(ctx, v, p, batch, u) }),
	}
	if t.recipe.Hypergradient.Solver == ConjugateGradient {
		return hypergrad.ImplicitWith(ctx, a, hypergrad.ConjugateGradientSolver[denoise.Vector](t.conjugate()))
	}
	return hypergrad.Implicit(ctx, a, t.richardson())
}

// product is v ↦ H·v for the Hessian of the fine-tuning loss with respect to φ.
func (t *trainer) product(ctx context.Context, v *view, p denoise.Point, batch *denoise.Batch) func(denoise.Vector) (denoise.Vector, error) {
	if t.recipe.Hypergradient.Products == "exact" {
		return func(u denoise.Vector) (denoise.Vector, error) {
			return v.net.HessianProduct(ctx, p, v.phi, denoise.Loss{}, batch, u)
		}
	}
	return hypergrad.CentralDifference(t.space, func(phi denoise.Vector) (denoise.Vector, error) {
		_, g, err := v.net.Gradient(ctx, v.phi.Put(p, phi), v.phi, denoise.Loss{}, batch)
		return g, err
	}, v.phi.Of(p), 0)
}

// cross is ∇_θ⟨∇_φ L_FT, u⟩.
func (t *trainer) cross(ctx context.Context, v *view, p denoise.Point, batch *denoise.Batch, u denoise.Vector) (denoise.Vector, error) {
	if t.recipe.Hypergradient.Products == "exact" {
		return v.net.CrossProduct(ctx, p, v.theta, v.phi, denoise.Loss{}, batch, u)
	}
	return hypergrad.CentralDifference(t.space, func(phi denoise.Vector) (denoise.Vector, error) {
		_, g, err := v.net.Gradient(ctx, v.phi.Put(p, phi), v.theta, denoise.Loss{}, batch)
		return g, err
	}, v.phi.Of(p), 0)(u)
}

// counted adds the cost of second-order products to the account.
func (t *trainer) counted(v *view, f func(denoise.Vector) (denoise.Vector, error)) func(denoise.Vector) (denoise.Vector, error) {
	cost := productCost
	if t.recipe.Hypergradient.Products != "exact" {
		cost = 2
	}
	return func(u denoise.Vector) (denoise.Vector, error) {
		t.gradients += cost * v.batchSize()
		return f(u)
	}
}

// result is what one simulation of an outer step has to report.
type result struct {
	harm, retain         float64 // L_harm(θ), R(θ)
	simulation           string
	harmStar, fineTuning float64 // L_harm(θ*), the last inner loss
	solved               bool
	report               hypergrad.Report
}

// summary joins the results of an outer step.
type summary struct{ results []result }

func (s *summary) add(r result) { s.results = append(s.results, r) }

// fields is the summary as the event log holds it: means of the losses, and a list for what belongs to one simulation.
func (s *summary) fields() map[string]any {
	n := float64(len(s.results))
	harm, retain, star := 0.0, 0.0, 0.0
	var names, notes []string
	var residuals, contractions []float64
	var residualOf []int
	for _, r := range s.results {
		harm, retain, star = harm+r.harm/n, retain+r.retain/n, star+r.harmStar/n
		if !r.solved {
			continue
		}
		names = append(names, r.simulation)
		residuals, contractions = append(residuals, r.report.Residual), append(contractions, r.report.Contraction)
		residualOf = append(residualOf, r.report.ResidualOf)
		if r.report.Note != "" {
			notes = append(notes, r.simulation+": "+r.report.Note)
		}
	}
	out := map[string]any{"harmful_loss": harm, "retain_loss": retain}
	if len(names) > 0 {
		out["harmful_loss_after"], out["simulations"] = star, names
		out["residual"], out["residual_of"], out["contraction"] = residuals, residualOf, contractions
	}
	if len(notes) > 0 {
		out["notes"] = notes
	}
	return out
}
