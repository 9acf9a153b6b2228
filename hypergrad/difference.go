package hypergrad

import (
	"errors"
	"fmt"
	"math"
)

// DefaultRelativeStep suits gradients computed in float32: the perturbed parameters keep about four of the seven digits
// of the perturbation, and the truncation error of the central difference, of second order in the step, stays below
// that.
const DefaultRelativeStep = 1e-3

// CentralDifference returns the Hessian–vector product at theta from two gradients,
//
//	H·v ≈ (∇L(θ + hv) − ∇L(θ − hv)) / 2h,   h = relStep · max(1, ‖θ‖) / ‖v‖
//
// The parameters so move by relStep·max(1, ‖θ‖) whatever the length of v: the product is homogeneous in v, and the
// move is large against the rounding error of θ, which is proportional to ‖θ‖. relStep 0 means [DefaultRelativeStep];
// in float64, 1e-5 is near the optimum (the cube root of the machine epsilon). gradAt must be deterministic, that is,
// use the same batch, noise and timesteps on every call, and return a new vector.
func CentralDifference[V any](space Space[V], gradAt func(theta V) (V, error), theta V, relStep float64) Product[V] {
	if relStep == 0 {
		relStep = DefaultRelativeStep
	}
	return func(v V) (V, error) {
		var none V
		if space == nil || gradAt == nil {
			return none, errors.New("central difference needs a vector space and a gradient function")
		}
		if !(relStep > 0) || math.IsInf(relStep, 0) {
			return none, fmt.Errorf("central difference relative step is %v; it must be a finite number above 0", relStep)
		}
		thetaNorm, err := norm(space, "the parameters θ", theta)
		if err != nil {
			return none, err
		}
		vNorm, err := norm(space, "the direction v", v)
		if err != nil {
			return none, err
		}
		if vNorm == 0 {
			return space.Combine(Term[V]{0, v})
		}
		h := relStep * max(1, thetaNorm) / vNorm
		if math.IsInf(h, 0) {
			return none, fmt.Errorf("central difference step overflows for a direction of norm %g; scale the direction up", vNorm)
		}
		shifted := func(h float64) (V, error) {
			at, err := space.Combine(Term[V]{1, theta}, Term[V]{h, v})
			if err != nil {
				return none, err
			}
			defer space.Release(at)
			return gradAt(at)
		}
		ahead, err := shifted(h)
		if err != nil {
			return none, fmt.Errorf("gradient ahead of θ: %w", err)
		}
		defer space.Release(ahead)
		behind, err := shifted(-h)
		if err != nil {
			return none, fmt.Errorf("gradient behind θ: %w", err)
		}
		defer space.Release(behind)
		return space.Combine(Term[V]{1 / (2 * h), ahead}, Term[V]{-1 / (2 * h), behind})
	}
}
