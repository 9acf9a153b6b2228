package hypergrad

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// TraceEstimate is a Monte Carlo estimate of a trace.
type TraceEstimate struct {
	Trace         float64 `json:"trace"`
	StandardError float64 `json:"standard_error"` // of Trace, from the spread of the probes
	Probes        int     `json:"probes"`
}

// Hutchinson estimates Tr(H) as the mean of ⟨z, Hz⟩ over n ≥ 2 random probes z (Hutchinson 1989). probe(i) returns the
// i-th, a new vector of independent signs ±1 such as [Rademacher] draws; any distribution of zero mean and unit
// covariance is unbiased, and signs have the smallest variance. Proposition 1 of the ResAlign paper ties the resilience
// term to this trace for the Hessian of L_harm.
func Hutchinson[V any](ctx context.Context, space Space[V], product Product[V], probe func(i int) (V, error), n int) (TraceEstimate, error) {
	if space == nil || product == nil || probe == nil {
		return TraceEstimate{}, errors.New("trace estimate needs a vector space, a product and a source of probes")
	}
	if n < 2 {
		return TraceEstimate{}, fmt.Errorf("trace estimate with %d probes; at least 2 are needed for a standard error", n)
	}
	// Welford's update, as the mean may be large against the spread.
	mean, squares := 0.0, 0.0
	for i := range n {
		if ctx.Err() != nil {
			return TraceEstimate{}, fmt.Errorf("trace estimate stopped before probe %d: %w", i+1, context.Cause(ctx))
		}
		value, err := quadraticForm(space, product, probe, i)
		if err != nil {
			return TraceEstimate{}, fmt.Errorf("trace estimate, probe %d: %w", i+1, err)
		}
		delta := value - mean
		mean += delta / float64(i+1)
		squares += delta * (value - mean)
	}
	return TraceEstimate{Trace: mean, StandardError: math.Sqrt(squares / float64(n-1) / float64(n)), Probes: n}, nil
}

// quadraticForm returns ⟨z, Hz⟩ for probe i.
func quadraticForm[V any](space Space[V], product Product[V], probe func(i int) (V, error), i int) (float64, error) {
	z, err := probe(i)
	if err != nil {
		return 0, err
	}
	defer space.Release(z)
	h, err := product(z)
	if err != nil {
		return 0, err
	}
	defer space.Release(h)
	value, err := space.Dot(z, h)
	if err != nil {
		return 0, err
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return 0, &NonFiniteError{What: "⟨z, Hz⟩", Value: value}
	}
	return value, nil
}

// Eigenpair is the result of [PowerIteration].
type Eigenpair[V any] struct {
	Value      float64 // λ, the Rayleigh quotient ⟨v, Hv⟩ with its sign
	Vector     V       // v, of unit norm; the caller's to release
	Iterations int     // products computed
	Residual   float64 // ‖Hv − λv‖; H has an eigenvalue within this distance of λ
	Converged  bool    // Residual ≤ tolerance·|λ|
}

// PowerIteration finds the eigenvalue of largest magnitude of a symmetric H from a start vector, which must not be
// zero and is best random. It ends after at most iterations products, or once ‖Hv − λv‖ ≤ tolerance·|λ|. Where H has two
// eigenvalues of nearly that magnitude and opposite sign it does not converge, and Converged says so. Plain Richardson
// contracts iff γ|λ| < 1.
func PowerIteration[V any](ctx context.Context, space Space[V], product Product[V], start V, iterations int, tolerance float64) (Eigenpair[V], error) {
	switch {
	case space == nil || product == nil:
		return Eigenpair[V]{}, errors.New("power iteration needs a vector space and a product")
	case iterations < 1:
		return Eigenpair[V]{}, fmt.Errorf("power iteration with %d iterations; at least 1 is needed", iterations)
	case !(tolerance >= 0):
		return Eigenpair[V]{}, fmt.Errorf("power iteration tolerance is %v; it must be ≥ 0", tolerance)
	}
	length, err := norm(space, "the start vector", start)
	if err != nil {
		return Eigenpair[V]{}, err
	}
	if length == 0 {
		return Eigenpair[V]{}, errors.New("power iteration from a zero vector; give a random start")
	}
	v, err := space.Combine(Term[V]{1 / length, start})
	if err != nil {
		return Eigenpair[V]{}, err
	}
	pair := Eigenpair[V]{Vector: v}
	fail := func(err error) (Eigenpair[V], error) {
		space.Release(pair.Vector)
		return Eigenpair[V]{}, fmt.Errorf("power iteration %d: %w", pair.Iterations+1, err)
	}
	for {
		if ctx.Err() != nil {
			return fail(context.Cause(ctx))
		}
		next, err := powerStep(space, product, &pair)
		if err != nil {
			return fail(err)
		}
		pair.Iterations++
		pair.Converged = pair.Residual <= tolerance*math.Abs(pair.Value)
		if pair.Converged || pair.Iterations == iterations {
			space.Release(next)
			return pair, nil
		}
		length, err := norm(space, "the product", next)
		var unit V
		if err == nil {
			unit, err = space.Combine(Term[V]{1 / length, next})
		}
		space.Release(next)
		if err != nil {
			return fail(err)
		}
		space.Release(pair.Vector)
		pair.Vector = unit
	}
}

// powerStep returns H·v, and sets the Rayleigh quotient and its residual for v.
func powerStep[V any](space Space[V], product Product[V], pair *Eigenpair[V]) (V, error) {
	var none V
	h, err := product(pair.Vector)
	if err != nil {
		return none, err
	}
	value, err := space.Dot(pair.Vector, h)
	if err != nil {
		space.Release(h)
		return none, err
	}
	if math.IsNaN(value) || math.IsInf(value, 0) {
		space.Release(h)
		return none, &NonFiniteError{What: "the Rayleigh quotient", Value: value}
	}
	difference, err := space.Combine(Term[V]{1, h}, Term[V]{-value, pair.Vector})
	if err != nil {
		space.Release(h)
		return none, err
	}
	defer space.Release(difference)
	residual, err := norm(space, "the eigenvector residual", difference)
	if err != nil {
		space.Release(h)
		return none, err
	}
	pair.Value, pair.Residual = value, residual
	return h, nil
}
