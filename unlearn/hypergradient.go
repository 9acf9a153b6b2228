package unlearn

import (
	"context"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/train"
)

// resilience is the gradient of λ·L_harm(θ*(θ)) with respect to θ, through the simulated fine-tuning.
func (t *trainer) resilience(ctx context.Context, step int, v *view, harm *harmBatch, lambda float64, r *result) (denoise.Vector, error) {
	h := t.recipe.Hypergradient
	end, err := t.simulate(ctx, v, step, h)
	if err != nil {
		return nil, err
	}
	defer end.free()
	right, err := t.afterwards(ctx, step, v, end, harm, lambda, r)
	if err != nil {
		return nil, err
	}
	defer right.Free()
	return t.through(ctx, h, step, v, end, harm, right, lambda, r)
}

// afterwards is λ·∇_φ L_harm at the end of a simulation.
func (t *trainer) afterwards(ctx context.Context, step int, v *view, end *simulated, harm *harmBatch, lambda float64, r *result) (denoise.Vector, error) {
	value, g, err := v.net.Gradient(ctx, end.point, v.phi, harm.loss, harm.batch)
	if err != nil {
		return nil, err
	}
	defer g.Free()
	t.gradients += float64(harm.size)
	r.simulation, r.harmStar, r.fineTuning = v.sim.Name, harm.sign*value, end.loss
	if err := train.CheckFinite("harmful loss after fine-tuning", value, step+1); err != nil {
		return nil, err
	}
	return t.space.Combine(term(lambda*harm.sign, g))
}

// through takes a derivative at the end of a simulation, right, back to θ.
func (t *trainer) through(ctx context.Context, h Hypergradient, step int, v *view, end *simulated, harm *harmBatch, right denoise.Vector, lambda float64, r *result) (x denoise.Vector, err error) {
	if h.Solver == Unrolled {
		return t.unrolled(ctx, h, v, end, harm, lambda, right)
	}
	r.solved = true
	batch, err := t.fineTuningBatch(ctx, v, v.hessian, v.hessianPrior, step)
	if err != nil {
		return nil, err
	}
	defer batch.Free()
	system := hypergrad.System[denoise.Vector]{
		Space: t.space, Gamma: h.Gamma, Right: right, Product: t.counted(h, v, t.product(ctx, h, v, end.point, batch)),
	}
	if v.displacement {
		x, r.report, err = t.solver(h, end, end.root)(ctx, system)
	} else {
		x, r.report, err = t.implicit(ctx, h, v, end, batch, harm, lambda, system)
	}
	return x, err
}

// solver solves (I + γH) x = g as the recipe says, or with a metric P (P + γH) x = P^½∘last∘g.
func (t *trainer) solver(h Hypergradient, end *simulated, last denoise.Vector) hypergrad.Solver[denoise.Vector] {
	solve := hypergrad.RichardsonSolver[denoise.Vector](h.richardson())
	if h.Solver == ConjugateGradient {
		solve = hypergrad.ConjugateGradientSolver[denoise.Vector](h.conjugate())
	}
	if h.Metric != AdamMetric {
		return solve
	}
	return t.inMetric(solve, end.inverse, last)
}

// inMetric solves in the coordinates y = √P∘φ, in which the proximal term ‖φ − θ‖²_P/2γ is the plain one: H becomes
// P^-½ H P^-½ and g becomes P^-½∘g. The solution is multiplied by last: √P gives the derivative of the solution by θ, 1/√P
// the displacement itself.
func (t *trainer) inMetric(solve hypergrad.Solver[denoise.Vector], inverse, last denoise.Vector) hypergrad.Solver[denoise.Vector] {
	return func(ctx context.Context, s hypergrad.System[denoise.Vector]) (denoise.Vector, hypergrad.Report, error) {
		right, err := t.space.Multiply(inverse, s.Right)
		if err != nil {
			return nil, hypergrad.Report{}, err
		}
		defer right.Free()
		product := s.Product
		s.Right, s.Product = right, func(u denoise.Vector) (denoise.Vector, error) {
			scaled, err := t.space.Multiply(inverse, u)
			if err != nil {
				return nil, err
			}
			defer scaled.Free()
			curved, err := product(scaled)
			if err != nil {
				return nil, err
			}
			defer curved.Free()
			return t.space.Multiply(inverse, curved)
		}
		y, report, err := solve(ctx, s)
		if err != nil {
			return nil, report, err
		}
		defer y.Free()
		x, err := t.space.Multiply(last, y)
		return x, report, err
	}
}

func (h Hypergradient) richardson() hypergrad.RichardsonOptions {
	o := hypergrad.RichardsonOptions{Iterations: h.Iterations, Damping: h.Damping, FinalResidual: h.Residual}
	if h.Solver == FirstOrder {
		o.Iterations, o.Damping = 1, 1
	}
	return o
}

func (h Hypergradient) conjugate() hypergrad.ConjugateGradientOptions {
	// Directions of negative curvature are where fine-tuning runs away from the proximal model; the solve stops there and
	// the log says so.
	return hypergrad.ConjugateGradientOptions{Iterations: h.Iterations, StopAtNegativeCurvature: true, FinalResidual: h.Residual}
}

// implicit is the hypergradient where fine-tuning trains parameters of its own.
func (t *trainer) implicit(ctx context.Context, h Hypergradient, v *view, end *simulated, batch *denoise.Batch, harm *harmBatch, lambda float64, s hypergrad.System[denoise.Vector]) (denoise.Vector, hypergrad.Report, error) {
	direct, err := t.directShare(ctx, v, end.point, harm, lambda)
	if err != nil {
		return nil, hypergrad.Report{}, err
	}
	defer direct.Free()
	a := hypergrad.Adaptation[denoise.Vector, denoise.Vector]{
		ThetaSpace: t.space, PhiSpace: t.space, Gamma: s.Gamma, Direct: direct, Right: s.Right, Product: s.Product,
		Cross: t.counted(h, v, func(u denoise.Vector) (denoise.Vector, error) { return t.cross(ctx, h, v, end.point, batch, u) }),
	}
	if h.Solver == FirstOrder || (h.Solver == Richardson && h.Metric != AdamMetric) {
		return hypergrad.Implicit(ctx, a, h.richardson())
	}
	return hypergrad.ImplicitWith(ctx, a, t.solver(h, end, end.inverse))
}

// directShare is λ·∂_θ L_harm(θ, φ*), for parameters φ that are not a displacement of θ.
func (t *trainer) directShare(ctx context.Context, v *view, p denoise.Point, harm *harmBatch, lambda float64) (denoise.Vector, error) {
	_, g, err := v.net.Gradient(ctx, p, v.theta, harm.loss, harm.batch)
	if err != nil {
		return nil, err
	}
	defer g.Free()
	t.gradients += float64(harm.size)
	return t.space.Combine(term(lambda*harm.sign, g))
}

// unrolled differentiates through the last steps of the simulation as they were taken.
func (t *trainer) unrolled(ctx context.Context, h Hypergradient, v *view, end *simulated, harm *harmBatch, lambda float64, right denoise.Vector) (denoise.Vector, error) {
	batchOf := func(step int) (*denoise.Batch, error) {
		return t.fineTuningBatch(ctx, v, v.pictures, v.prior, end.firstBatch+step-1-end.began)
	}
	curvature := func(step int, p denoise.Point, u denoise.Vector) (denoise.Vector, error) {
		batch, err := batchOf(step)
		if err != nil {
			return nil, err
		}
		defer batch.Free()
		return t.counted(h, v, t.product(ctx, h, v, p, batch))(u)
	}
	if v.displacement {
		return end.descent.Unrolled(ctx, t.space, h.Iterations, right, v.sim.ClipNorm, curvature, nil)
	}
	total, err := t.directShare(ctx, v, end.point, harm, lambda)
	if err != nil {
		return nil, err
	}
	start, err := end.descent.Unrolled(ctx, t.space, h.Iterations, right, v.sim.ClipNorm, curvature, func(step int, p denoise.Point, u denoise.Vector) error {
		batch, err := batchOf(step)
		if err != nil {
			return err
		}
		defer batch.Free()
		share, err := t.counted(h, v, func(u denoise.Vector) (denoise.Vector, error) { return t.cross(ctx, h, v, p, batch, u) })(u)
		if err != nil {
			return err
		}
		total, err = t.space.Accumulate(total, share)
		return err
	})
	if err != nil {
		total.Free()
		return nil, err
	}
	start.Free() // what the fresh parameters began with is nobody's choice
	return total, nil
}

// product is v ↦ H·v for the Hessian of the fine-tuning loss with respect to φ, or what the recipe takes in its place.
func (t *trainer) product(ctx context.Context, h Hypergradient, v *view, p denoise.Point, batch *denoise.Batch) func(denoise.Vector) (denoise.Vector, error) {
	switch h.Products {
	case exactProducts:
		return func(u denoise.Vector) (denoise.Vector, error) {
			return v.net.HessianProduct(ctx, p, v.phi, denoise.Loss{}, batch, u)
		}
	case GaussNewton:
		return func(u denoise.Vector) (denoise.Vector, error) {
			return v.net.GaussNewtonProduct(ctx, p, v.phi, denoise.Loss{}, batch, u)
		}
	}
	return hypergrad.CentralDifference(t.space, func(phi denoise.Vector) (denoise.Vector, error) {
		_, g, err := v.net.Exact().Gradient(ctx, v.phi.Put(p, phi), v.phi, denoise.Loss{}, batch)
		return g, err
	}, v.phi.Of(p), 0)
}

// cross is ∇_θ⟨∇_φ L_FT, u⟩.
func (t *trainer) cross(ctx context.Context, h Hypergradient, v *view, p denoise.Point, batch *denoise.Batch, u denoise.Vector) (denoise.Vector, error) {
	if h.Products != centralDifferences {
		return v.net.CrossProduct(ctx, p, v.theta, v.phi, denoise.Loss{}, batch, u)
	}
	return hypergrad.CentralDifference(t.space, func(phi denoise.Vector) (denoise.Vector, error) {
		_, g, err := v.net.Exact().Gradient(ctx, v.phi.Put(p, phi), v.theta, denoise.Loss{}, batch)
		return g, err
	}, v.phi.Of(p), 0)(u)
}

// counted adds the cost of second-order products to the account.
func (t *trainer) counted(h Hypergradient, v *view, f func(denoise.Vector) (denoise.Vector, error)) func(denoise.Vector) (denoise.Vector, error) {
	cost := productCost
	switch h.Products {
	case centralDifferences:
		cost = 2
	case GaussNewton:
		cost = gaussNewtonCost
	}
	return func(u denoise.Vector) (denoise.Vector, error) {
		t.gradients += cost * v.batchSize()
		return f(u)
	}
}

// result is what one simulation of an outer step has to report.
type result struct {
	harm, retain         float64 // L_harm(θ), R(θ)
	harmError            float64 // what L_harm(θ) is of without its bound
	simulation           string
	harmStar, fineTuning float64 // L_harm(θ*), the last inner loss
	solved               bool    // by a solver, which has something to report
	report               hypergrad.Report
}

// summary joins the results of an outer step.
type summary struct{ results []result }

func (s *summary) add(r result) { s.results = append(s.results, r) }

// fields is the summary as the event log holds it: means of the losses, and a list for what belongs to one simulation.
func (s *summary) fields() map[string]any {
	n := float64(len(s.results))
	harm, harmError, retain, star := 0.0, 0.0, 0.0, 0.0
	var names, notes []string
	var residuals, contractions []float64
	var residualOf []int
	for _, r := range s.results {
		harm, harmError, retain, star = harm+r.harm/n, harmError+r.harmError/n, retain+r.retain/n, star+r.harmStar/n
		if r.simulation != "" {
			names = append(names, r.simulation)
		}
		if !r.solved {
			continue
		}
		residuals, contractions = append(residuals, r.report.Residual), append(contractions, r.report.Contraction)
		residualOf = append(residualOf, r.report.ResidualOf)
		if r.report.Note != "" {
			notes = append(notes, r.simulation+": "+r.report.Note)
		}
	}
	out := map[string]any{"harmful_loss": harm, "harmful_error": harmError, "retain_loss": retain}
	if len(names) > 0 {
		out["harmful_loss_after"], out["simulations"] = star, names
	}
	if len(residuals) > 0 {
		out["residual"], out["residual_of"], out["contraction"] = residuals, residualOf, contractions
	}
	if len(notes) > 0 {
		out["notes"] = notes
	}
	return out
}
