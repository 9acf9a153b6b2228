package hypergrad

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// System is the linear system (I + γH) x = g.
type System[V any] struct {
	Space   Space[V]
	Product Product[V] // v ↦ H·v
	Gamma   float64    // γ ≥ 0, the radius of the Moreau envelope
	Right   V          // g
}

// Solver solves a System. See [RichardsonSolver] and [ConjugateGradientSolver].
type Solver[V any] func(ctx context.Context, system System[V]) (V, Report, error)

// Report tells how a solve went.
type Report struct {
	Iterations int `json:"iterations"` // K, the index of the returned iterate x_K
	Products   int `json:"products"`   // Hessian–vector products computed
	// Residual is ‖g − (I+γH)x_j‖/‖g‖ for the iterate j = ResidualOf. Richardson knows that of x_{K−1} at no cost and
	// that of x_K after one product more (FinalResidual); conjugate gradient updates that of x_K by a recurrence, and
	// FinalResidual recomputes it. It is 0 when g is zero.
	Residual   float64 `json:"residual"`
	ResidualOf int     `json:"residual_of"`
	// Steps holds ‖x_{k+1} − x_k‖ for k = 0 … K−1.
	Steps []float64 `json:"steps"`
	// Contraction is the ratio of the last two steps, for Richardson an estimate of the spectral radius of the
	// iteration; FinalResidual gives one step more to look at. It is 0 where fewer than two steps are known.
	Contraction float64 `json:"contraction"`
	// Converging is true when the solve was seen to approach a solution: for Richardson Contraction is known and below
	// 1; for conjugate gradient the residual is below 1, that of x = 0. A zero g counts as solved.
	Converging bool   `json:"converging"`
	Note       string `json:"note,omitempty"` // what a reader of the result should know, empty when nothing
}

// check refuses a system that no solver can work on.
func (s System[V]) check() error {
	switch {
	case s.Space == nil:
		return errors.New("hypergradient system has no vector space; set Space")
	case s.Product == nil:
		return errors.New("hypergradient system has no Hessian–vector product; set Product")
	case !(s.Gamma >= 0) || math.IsInf(s.Gamma, 0):
		return fmt.Errorf("hypergradient gamma is %v; it must be a finite number ≥ 0", s.Gamma)
	}
	return nil
}

// product returns H·v, unless ctx has ended. It counts itself in report.
func (s System[V]) product(ctx context.Context, v V, report *Report) (V, error) {
	if err := ctx.Err(); err != nil {
		var none V
		return none, fmt.Errorf("hypergradient stopped before Hessian–vector product %d: %w", report.Products+1, context.Cause(ctx))
	}
	report.Products++
	h, err := s.Product(v)
	if err != nil {
		return h, fmt.Errorf("computing Hessian–vector product %d: %w", report.Products, err)
	}
	return h, nil
}

// zero returns x = 0, the solution for g = 0.
func (s System[V]) zero() (V, Report, error) {
	x, err := s.Space.Combine(Term[V]{0, s.Right})
	return x, Report{Steps: []float64{}, Converging: true, Note: "the right-hand side g is zero, and so is the solution"}, err
}

// residual returns ‖g − (I+γH)x‖ at the cost of one product.
func (s System[V]) residual(ctx context.Context, x V, report *Report) (float64, error) {
	h, err := s.product(ctx, x, report)
	if err != nil {
		return 0, err
	}
	defer s.Space.Release(h)
	r, err := s.Space.Combine(Term[V]{1, s.Right}, Term[V]{-1, x}, Term[V]{-s.Gamma, h})
	if err != nil {
		return 0, fmt.Errorf("residual: %w", err)
	}
	defer s.Space.Release(r)
	return norm(s.Space, "the residual", r)
}
