package hypergrad

import (
	"context"
	"errors"
	"fmt"
)

// Adaptation is an inner problem φ* = argmin_φ L_FT(θ, φ) + ‖φ − φ₀‖²/2γ with parameters φ of its own, seen at its
// solution. Theta and Phi are the vector types of θ and φ.
type Adaptation[Theta, Phi any] struct {
	ThetaSpace Space[Theta]
	PhiSpace   Space[Phi]
	Gamma      float64 // γ ≥ 0
	Direct     Theta   // ∂_θ L_harm(θ, φ*)
	Right      Phi     // ∇_φ L_harm(θ, φ*)
	// Product is v ↦ H·v with H = ∇²_φφ L_FT(θ, φ*).
	Product Product[Phi]
	// Cross returns ∇_θ⟨∇_φ L_FT(θ, φ*), u⟩ for fixed u, a new vector.
	Cross func(u Phi) (Theta, error)
}

// Implicit returns the hypergradient of L_harm after an adaptation, truncated at order K ≥ 1:
//
//	∂_θ L_harm − γ ∇_θ⟨∇_φ L_FT, u⟩,   u the Richardson iterate x_{K−1} of (I + γH) u = ∇_φ L_harm
//
// where K is options.Iterations. Order 1 has u = 0 and leaves the direct term, the first-order approximation. When φ is
// a displacement of θ, order K with Damping 1 is exactly the x_K of [Richardson], at the same K−1 second-order products:
// K−2 of Product and one of Cross. Report is that of the solve for u, its Products including the one of Cross.
func Implicit[Theta, Phi any](ctx context.Context, adaptation Adaptation[Theta, Phi], options RichardsonOptions) (Theta, Report, error) {
	if err := options.check(); err != nil {
		var none Theta
		return none, Report{}, err
	}
	if options.Iterations > 1 {
		options.Iterations--
		return ImplicitWith(ctx, adaptation, RichardsonSolver[Phi](options))
	}
	var none Theta
	if err := adaptation.check(); err != nil {
		return none, Report{}, err
	}
	if _, err := norm(adaptation.ThetaSpace, "the direct gradient", adaptation.Direct); err != nil {
		return none, Report{}, err
	}
	x, err := adaptation.ThetaSpace.Combine(Term[Theta]{1, adaptation.Direct})
	return x, Report{Residual: 1, Steps: []float64{}, Note: "order 1: the direct term alone, no second-order product"}, err
}

// ImplicitWith is [Implicit] with any solver for u.
func ImplicitWith[Theta, Phi any](ctx context.Context, adaptation Adaptation[Theta, Phi], solve Solver[Phi]) (Theta, Report, error) {
	var none Theta
	if err := adaptation.check(); err != nil {
		return none, Report{}, err
	}
	if solve == nil {
		return none, Report{}, errors.New("implicit hypergradient without a solver; pass RichardsonSolver or ConjugateGradientSolver")
	}
	u, report, err := solve(ctx, System[Phi]{
		Space: adaptation.PhiSpace, Product: adaptation.Product, Gamma: adaptation.Gamma, Right: adaptation.Right,
	})
	if err != nil {
		return none, report, fmt.Errorf("solve for the adaptation's adjoint: %w", err)
	}
	defer adaptation.PhiSpace.Release(u)
	if ctx.Err() != nil {
		return none, report, fmt.Errorf("hypergradient stopped before the cross product: %w", context.Cause(ctx))
	}
	report.Products++
	cross, err := adaptation.Cross(u)
	if err != nil {
		return none, report, fmt.Errorf("cross product of θ and φ: %w", err)
	}
	defer adaptation.ThetaSpace.Release(cross)
	x, err := adaptation.ThetaSpace.Combine(Term[Theta]{1, adaptation.Direct}, Term[Theta]{-adaptation.Gamma, cross})
	if err != nil {
		return none, report, fmt.Errorf("sum of direct and implicit term: %w", err)
	}
	if _, err := norm(adaptation.ThetaSpace, "the hypergradient", x); err != nil {
		adaptation.ThetaSpace.Release(x)
		return none, report, err
	}
	return x, report, nil
}

func (a Adaptation[Theta, Phi]) check() error {
	if a.ThetaSpace == nil || a.Cross == nil {
		return errors.New("adaptation needs the vector space of θ and the cross product; set ThetaSpace and Cross")
	}
	return System[Phi]{Space: a.PhiSpace, Product: a.Product, Gamma: a.Gamma, Right: a.Right}.check()
}
