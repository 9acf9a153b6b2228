package diagnose

import (
	"context"
	"math"

	"github.com/resalign/resalign/hypergrad"
)

// Spectrum is what was found of a Hessian's spectrum. All of its values lie within the spectrum: its true ends are there
// or further out.
type Spectrum struct {
	// Top is the eigenvalue of largest magnitude by power iteration, a Rayleigh quotient, and TopResidual ‖Hv − λv‖: H has an
	// eigenvalue within this distance. Where two eigenvalues of opposite sign are of nearly that size, the iteration settles
	// on neither and the residual is large.
	Top         float64 `json:"top"`
	TopResidual float64 `json:"top_residual"`
	// Lowest and Highest are both ends by Lanczos' method, with the same meaning of residuals.
	Lowest          float64 `json:"lowest"`
	LowestResidual  float64 `json:"lowest_residual"`
	Highest         float64 `json:"highest"`
	HighestResidual float64 `json:"highest_residual"`
	// Radius is the largest magnitude seen: of the ends, and ‖Hv‖ for the last unit vector of the power iteration, which no
	// spectral radius is below, settled or not.
	Radius   float64 `json:"radius"`
	Products int     `json:"products"`
}

// ends finds the eigenvalue of largest magnitude by power iteration, and both ends by Lanczos' method. start(i) draws the
// start vectors.
func ends[V any](ctx context.Context, space hypergrad.Space[V], product hypergrad.Product[V], start func(i int) V, iterations int, tolerance float64) (s Spectrum, err error) {
	first := start(0)
	pair, err := hypergrad.PowerIteration(ctx, space, product, first, iterations, tolerance)
	space.Release(first)
	if err != nil {
		return s, err
	}
	space.Release(pair.Vector)
	s.Top, s.TopResidual = pair.Value, pair.Residual
	second := start(1)
	defer space.Release(second)
	low, high, products, err := lanczos(ctx, space, product, second, iterations, tolerance)
	if err != nil {
		return s, err
	}
	s.Products = pair.Iterations + products
	s.Lowest, s.LowestResidual, s.Highest, s.HighestResidual = low.value, low.residual, high.value, high.residual
	if s.Top < s.Lowest {
		s.Lowest, s.LowestResidual = s.Top, s.TopResidual
	}
	if s.Top > s.Highest {
		s.Highest, s.HighestResidual = s.Top, s.TopResidual
	}
	s.Radius = max(math.Hypot(s.Top, s.TopResidual), math.Abs(s.Lowest), math.Abs(s.Highest))
	return s, nil
}

// negated is the spectrum of −H.
func (s Spectrum) negated() Spectrum {
	s.Top, s.Lowest, s.Highest = -s.Top, -s.Highest, -s.Lowest
	s.LowestResidual, s.HighestResidual = s.HighestResidual, s.LowestResidual
	return s
}

// What is known of an iteration.
const (
	Contracts  = "contracts"
	Diverges   = "does not contract"
	NotSettled = "not settled" // it contracts if the ends are where they were found, and not if they are as far out as their residuals
)

// Unbounded is the largest γ of an iteration that contracts for every γ.
const Unbounded = -1

// Contraction says whether the Richardson iteration x ← (1−μ)x + μ(g − γHx) of a spectrum contracts.
type Contraction struct {
	// Factor is the spectral radius of (1−μ)I − μγH by the ends found, for μ = 1 that of γH: the true one is
	// this or larger.
	Factor  float64 `json:"factor"`
	Verdict string  `json:"verdict"`
	// LargestGamma is the γ at which Factor reaches 1, by the ends found: the true one is this or smaller. Unbounded where
	// it does for none.
	LargestGamma float64 `json:"largest_gamma"`
}

// contraction judges the iteration. What was found lies between the ends of the spectrum and |1−μ−μγλ| is convex in λ, so
// that a factor of at least 1 is proof that the iteration does not contract. That it does is taken as shown where it still
// would if both ends were further out by their residuals.
func (s Spectrum) contraction(gamma, damping float64) Contraction {
	c := Contraction{Factor: s.factor(gamma, damping), LargestGamma: math.Inf(1), Verdict: NotSettled}
	lowest, highest := s.Lowest, s.Highest
	if damping == 1 {
		lowest, highest = -s.Radius, s.Radius
	}
	if lowest < 0 { // 1 − μ − μγλ < 1
		c.LargestGamma = -1 / lowest
	}
	if highest > 0 { // 1 − μ − μγλ > −1
		c.LargestGamma = min(c.LargestGamma, (2/damping-1)/highest)
	}
	if math.IsInf(c.LargestGamma, 0) {
		c.LargestGamma = Unbounded
	}
	wider := s
	wider.Lowest, wider.Highest = s.Lowest-s.LowestResidual, s.Highest+s.HighestResidual
	switch {
	case c.Factor >= 1:
		c.Verdict = Diverges
	case wider.factor(gamma, damping) < 1:
		c.Verdict = Contracts
	}
	return c
}

// factor is the spectral radius of (1−μ)I − μγH by what is known of H.
func (s Spectrum) factor(gamma, damping float64) float64 {
	at := func(lambda float64) float64 { return math.Abs(1 - damping - damping*gamma*lambda) }
	factor := max(at(s.Lowest), at(s.Highest))
	if damping == 1 { // only the magnitude of eigenvalues counts, and more is known of that
		factor = max(factor, gamma*s.Radius)
	}
	return factor
}
