// Package hypergrad computes gradients through an inner optimisation without unrolling it.
//
// ResAlign (Li et al., NeurIPS 2025) models downstream fine-tuning that starts at θ as a proximal problem, a Moreau
// envelope of radius γ:
//
//	θ*(θ) = argmin_θ'  L_FT(θ') + ‖θ' − θ‖²/2γ
//
// Its stationarity condition ∇L_FT(θ*) + (θ* − θ)/γ = 0, differentiated in θ, gives dθ*/dθ = (I + γH)⁻¹ with
// H = ∇²L_FT(θ*). A loss L_harm seen after fine-tuning therefore has the hypergradient
//
//	x = (I + γH)⁻¹ g,   g = ∇L_harm(θ*)
//
// and a solver needs nothing but products of H with vectors: [Richardson] and [ConjugateGradient].
//
// # Adaptations with parameters of their own
//
// Somebody who trains a new adapter φ beside θ solves φ*(θ) = argmin_φ L_FT(θ, φ) + ‖φ − φ₀‖²/2γ instead. Now
// dφ*/dθ = −γ (I + γH)⁻¹ ∂_θ∇_φ L_FT with H = ∇²_φφ L_FT(θ, φ*), and so
//
//	dL_harm/dθ = ∂_θ L_harm(θ, φ*) − γ ∇_θ⟨∇_φ L_FT(θ, φ*), u⟩,   (I + γH) u = ∇_φ L_harm(θ, φ*)
//
// which is [Implicit]. When φ is a displacement of θ itself, L(θ, φ) = L(θ + φ), both forms agree:
// g − γH(I + γH)⁻¹g = (I + γH)⁻¹g.
//
// The package knows no model and no tensor library. Vectors are of any type for which the caller provides a [Space]:
// a []float64 ([Float64]), or a list of tensors that stay on a device.
package hypergrad
