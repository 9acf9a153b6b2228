package hypergrad

import (
	"context"
	"fmt"
)

// RichardsonOptions are the settings of [Richardson].
type RichardsonOptions struct {
	// Iterations is K ≥ 1. The paper uses 5.
	Iterations int
	// Damping is μ in (0, 1]; 1 is the plain iteration of the paper. With eigenvalues of H in [a, b] and 1 + γa > 0 the
	// damped form converges for μ < 2/(1 + γb), where the plain one needs |γa|, |γb| < 1.
	Damping float64
	// FinalResidual spends one more product on the residual of x_K.
	FinalResidual bool
}

func (o RichardsonOptions) check() error {
	if o.Iterations < 1 {
		return fmt.Errorf("Richardson iterations is %d; it must be at least 1", o.Iterations)
	}
	if !(o.Damping > 0 && o.Damping <= 1) {
		return fmt.Errorf("Richardson damping is %v; it must be in (0, 1], 1 being the plain iteration", o.Damping)
	}
	return nil
}

// Richardson returns x_K of the iteration
//
//	x₀ = 0,   x_{k+1} = (1−μ) x_k + μ (g − γH x_k)
//
// For μ = 1 that is the truncated Neumann series Σ_{j<K} (−γH)^j g of the paper. As x₁ = μg needs no product, K
// iterations take K−1 of them. An iteration that does not contract is not an error, since its x_K is still the defined
// K-term series, but Report says so in Converging and Note.
//
// Errors: invalid options, a failing product, a NaN or infinity (*[NonFiniteError]), or the end of ctx, which is looked
// at before every product.
func Richardson[V any](ctx context.Context, system System[V], options RichardsonOptions) (V, Report, error) {
	var none V
	if err := system.check(); err != nil {
		return none, Report{}, err
	}
	if err := options.check(); err != nil {
		return none, Report{}, err
	}
	space, g, mu := system.Space, system.Right, options.Damping
	gNorm, err := norm(space, "the right-hand side g", g)
	if err != nil {
		return none, Report{}, err
	}
	if gNorm == 0 {
		return system.zero()
	}

	report := Report{Iterations: options.Iterations, Steps: make([]float64, 0, min(options.Iterations, 1024))}
	x, err := space.Combine(Term[V]{mu, g})
	if err != nil {
		return none, report, fmt.Errorf("first Richardson iterate: %w", err)
	}
	report.Steps = append(report.Steps, mu*gNorm)
	for k := 1; k < options.Iterations; k++ {
		next, step, err := richardsonStep(ctx, system, mu, k, x, &report)
		space.Release(x)
		if err != nil {
			return none, report, err
		}
		x = next
		report.Steps = append(report.Steps, step)
	}

	// A step is μ times the residual it started from: x_{k+1} − x_k = μ(g − (I+γH)x_k).
	last := report.Steps[len(report.Steps)-1]
	report.Residual, report.ResidualOf = last/mu/gNorm, options.Iterations-1
	steps := report.Steps
	if options.FinalResidual {
		r, err := system.residual(ctx, x, &report)
		if err != nil {
			space.Release(x)
			return none, report, err
		}
		report.Residual, report.ResidualOf = r/gNorm, options.Iterations
		steps = append(steps[:len(steps):len(steps)], mu*r)
	}
	report.judgeRichardson(steps)
	return x, report, nil
}

// richardsonStep returns x_{k+1} and ‖x_{k+1} − x_k‖.
func richardsonStep[V any](ctx context.Context, system System[V], mu float64, k int, x V, report *Report) (next V, step float64, err error) {
	space := system.Space
	h, err := system.product(ctx, x, report)
	if err != nil {
		return next, 0, err
	}
	defer space.Release(h)
	terms := []Term[V]{{mu, system.Right}, {-mu * system.Gamma, h}}
	if mu != 1 {
		terms = append(terms, Term[V]{1 - mu, x})
	}
	if next, err = space.Combine(terms...); err != nil {
		return next, 0, fmt.Errorf("Richardson iterate %d: %w", k+1, err)
	}
	difference, err := space.Combine(Term[V]{1, next}, Term[V]{-1, x})
	if err == nil {
		step, err = norm(space, fmt.Sprintf("Richardson step %d", k+1), difference)
		space.Release(difference)
	}
	if err != nil {
		space.Release(next)
		return next, 0, fmt.Errorf("Richardson iterate %d: %w", k+1, err)
	}
	return next, step, nil
}

// roundingStep is the share of the first step below which a step is rounding noise in single precision.
const roundingStep = 1e-6

// judgeRichardson sets Contraction, Converging and Note from the known steps.
func (r *Report) judgeRichardson(steps []float64) {
	n := len(steps)
	if n < 2 {
		r.Note = "one iteration without FinalResidual: contraction was not measured"
		return
	}
	if steps[n-2] == 0 { // x was exact one step earlier
		r.Converging = true
		return
	}
	r.Contraction = steps[n-1] / steps[n-2]
	// Below the rounding of float32 products steps no longer shrink, and there is nothing left to gain.
	r.Converging = r.Contraction < 1 || steps[n-1] <= roundingStep*steps[0]
	if !r.Converging {
		r.Note = fmt.Sprintf("Richardson does not contract: the last step is %.3g times the one before; "+
			"lower γ or the damping, or use conjugate gradient", r.Contraction)
	}
}

// RichardsonSolver returns [Richardson] with fixed options.
func RichardsonSolver[V any](options RichardsonOptions) Solver[V] {
	return func(ctx context.Context, system System[V]) (V, Report, error) {
		return Richardson(ctx, system, options)
	}
}
