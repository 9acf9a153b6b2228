package hypergrad

import (
	"context"
	"fmt"
	"math"
)

// ConjugateGradientOptions are the settings of [ConjugateGradient].
type ConjugateGradientOptions struct {
	// Iterations is the largest number of iterations, at least 1; each takes one product.
	Iterations int
	// Tolerance ends the solve once ‖g − (I+γH)x‖ ≤ Tolerance·‖g‖, in [0, 1); 0 runs all Iterations unless the residual
	// falls below the rounding error of float64.
	Tolerance float64
	// StopAtNegativeCurvature returns the iterate reached before a direction of negative curvature, with a Note, instead
	// of failing. Where the very first direction has negative curvature there is no such iterate and the solve fails.
	StopAtNegativeCurvature bool
	// FinalResidual spends one more product on the residual of the returned x, in place of the recurrence's.
	FinalResidual bool
}

func (o ConjugateGradientOptions) check() error {
	if o.Iterations < 1 {
		return fmt.Errorf("conjugate gradient iterations is %d; it must be at least 1", o.Iterations)
	}
	if !(o.Tolerance >= 0 && o.Tolerance < 1) {
		return fmt.Errorf("conjugate gradient tolerance is %v; it must be in [0, 1)", o.Tolerance)
	}
	return nil
}

// NegativeCurvatureError says that I + γH is not positive definite, so that conjugate gradient breaks down: along the
// search direction p of an iteration, ⟨p, (I+γH)p⟩/‖p‖² was Curvature, not safely above 0.
type NegativeCurvatureError struct {
	Iteration int // counted from 1
	Curvature float64
}

func (e *NegativeCurvatureError) Error() string {
	return fmt.Sprintf("conjugate gradient met curvature %.3g of I + γH at iteration %d, so the matrix is not positive definite; "+
		"lower γ or use Richardson", e.Curvature, e.Iteration)
}

// breakdownCurvature is the curvature of I + γH, a matrix of unit scale, below which float64 cannot tell it from 0.
const breakdownCurvature = 1e-12

// ConjugateGradient solves (I + γH) x = g by the method of Hestenes and Stiefel (1952) from x₀ = 0. The matrix must be
// positive definite, that is, H has no eigenvalue at or below −1/γ; its largest eigenvalue may be anything.
//
// Errors: invalid options, *[NegativeCurvatureError], a failing product, a NaN or infinity (*[NonFiniteError]), or the
// end of ctx, which is looked at before every product.
func ConjugateGradient[V any](ctx context.Context, system System[V], options ConjugateGradientOptions) (V, Report, error) {
	var none V
	if err := system.check(); err != nil {
		return none, Report{}, err
	}
	if err := options.check(); err != nil {
		return none, Report{}, err
	}
	gNorm, err := norm(system.Space, "the right-hand side g", system.Right)
	if err != nil {
		return none, Report{}, err
	}
	if gNorm == 0 {
		return system.zero()
	}

	s, err := newConjugateState(system, gNorm)
	if err != nil {
		return none, Report{}, err
	}
	report := Report{Steps: make([]float64, 0, min(options.Iterations, 1024))}
	floor := max(options.Tolerance, 0x1p-52) * gNorm
	for report.Iterations < options.Iterations && s.residual > floor {
		curvature, err := s.advance(ctx, &report)
		if err != nil {
			s.release(true)
			return none, report, err
		}
		if !(curvature > breakdownCurvature) {
			if options.StopAtNegativeCurvature && report.Iterations > 0 {
				report.Note = fmt.Sprintf("stopped after %d iterations at curvature %.3g: I + γH is not positive definite",
					report.Iterations, curvature)
				break
			}
			s.release(true)
			return none, report, &NegativeCurvatureError{Iteration: report.Iterations + 1, Curvature: curvature}
		}
	}
	s.release(false)

	residual := s.residual
	if options.FinalResidual {
		if residual, err = system.residual(ctx, s.x, &report); err != nil {
			system.Space.Release(s.x)
			return none, report, err
		}
	}
	report.judgeConjugate(residual/gNorm, options.Tolerance)
	return s.x, report, nil
}

// judgeConjugate sets the summary fields; residual is relative to ‖g‖.
func (r *Report) judgeConjugate(residual, tolerance float64) {
	r.Residual, r.ResidualOf = residual, r.Iterations
	if n := len(r.Steps); n >= 2 && r.Steps[n-2] > 0 {
		r.Contraction = r.Steps[n-1] / r.Steps[n-2]
	}
	r.Converging = residual < 1
	if r.Note == "" && tolerance > 0 && residual > tolerance {
		r.Note = fmt.Sprintf("residual %.3g is above the tolerance %.3g after %d iterations", residual, tolerance, r.Iterations)
	}
}

// conjugateState holds the three vectors of the recurrence; it owns them.
type conjugateState[V any] struct {
	system   System[V]
	x        V // the iterate
	r        V // its residual g − (I+γH)x
	p        V // the search direction
	residual float64
}

func newConjugateState[V any](system System[V], gNorm float64) (*conjugateState[V], error) {
	s := &conjugateState[V]{system: system, residual: gNorm}
	var err error
	if s.x, err = system.Space.Combine(Term[V]{0, system.Right}); err != nil {
		return nil, fmt.Errorf("conjugate gradient start: %w", err)
	}
	if s.r, err = system.Space.Combine(Term[V]{1, system.Right}); err != nil {
		system.Space.Release(s.x)
		return nil, fmt.Errorf("conjugate gradient start: %w", err)
	}
	if s.p, err = system.Space.Combine(Term[V]{1, system.Right}); err != nil {
		system.Space.Release(s.x)
		system.Space.Release(s.r)
		return nil, fmt.Errorf("conjugate gradient start: %w", err)
	}
	return s, nil
}

// release frees the vectors, the iterate only where it is not returned.
func (s *conjugateState[V]) release(iterate bool) {
	if iterate {
		s.system.Space.Release(s.x)
	}
	s.system.Space.Release(s.r)
	s.system.Space.Release(s.p)
}

// replace sets *slot to Σ terms and frees what it held.
func (s *conjugateState[V]) replace(slot *V, terms ...Term[V]) error {
	v, err := s.system.Space.Combine(terms...)
	if err != nil {
		return err
	}
	s.system.Space.Release(*slot)
	*slot = v
	return nil
}

// advance makes one iteration, and returns the curvature of the search direction. Where that is not above
// breakdownCurvature nothing but the count of products changes.
func (s *conjugateState[V]) advance(ctx context.Context, report *Report) (curvature float64, err error) {
	space, gamma := s.system.Space, s.system.Gamma
	h, err := s.system.product(ctx, s.p, report)
	if err != nil {
		return 0, err
	}
	defer space.Release(h)
	iteration := report.Iterations + 1
	pNorm, err := norm(space, fmt.Sprintf("search direction %d", iteration), s.p)
	if err != nil {
		return 0, err
	}
	pHp, err := space.Dot(s.p, h)
	if err != nil {
		return 0, fmt.Errorf("curvature at iteration %d: %w", iteration, err)
	}
	if math.IsNaN(pHp) || math.IsInf(pHp, 0) {
		return 0, &NonFiniteError{What: fmt.Sprintf("Hessian–vector product %d", report.Products), Value: pHp}
	}
	curvature = 1 + gamma*pHp/pNorm/pNorm
	if !(curvature > breakdownCurvature) {
		return curvature, nil
	}

	ratio := s.residual / pNorm
	alpha := ratio * ratio / curvature
	if err := s.replace(&s.x, Term[V]{1, s.x}, Term[V]{alpha, s.p}); err != nil {
		return 0, fmt.Errorf("conjugate gradient iterate %d: %w", iteration, err)
	}
	if err := s.replace(&s.r, Term[V]{1, s.r}, Term[V]{-alpha, s.p}, Term[V]{-alpha * gamma, h}); err != nil {
		return 0, fmt.Errorf("conjugate gradient residual %d: %w", iteration, err)
	}
	next, err := norm(space, fmt.Sprintf("conjugate gradient residual %d", iteration), s.r)
	if err != nil {
		return 0, err
	}
	beta := (next / s.residual) * (next / s.residual)
	if err := s.replace(&s.p, Term[V]{1, s.r}, Term[V]{beta, s.p}); err != nil {
		return 0, fmt.Errorf("search direction %d: %w", iteration+1, err)
	}
	s.residual = next
	report.Iterations = iteration
	report.Steps = append(report.Steps, alpha*pNorm)
	return curvature, nil
}

// ConjugateGradientSolver returns [ConjugateGradient] with fixed options.
func ConjugateGradientSolver[V any](options ConjugateGradientOptions) Solver[V] {
	return func(ctx context.Context, system System[V]) (V, Report, error) {
		return ConjugateGradient(ctx, system, options)
	}
}
