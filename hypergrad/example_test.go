package hypergrad_test

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/hypergrad"
)

// The paper's solve: five Richardson iterations on (I + γH) x = g.
func ExampleRichardson() {
	hessian := func(v []float64) ([]float64, error) { return []float64{0.5 * v[0], -0.2 * v[1]}, nil }
	x, report, err := hypergrad.Richardson(context.Background(), hypergrad.System[[]float64]{
		Space: hypergrad.Float64{}, Product: hessian, Gamma: 1, Right: []float64{3, 4},
	}, hypergrad.RichardsonOptions{Iterations: 5, Damping: 1, FinalResidual: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("x = %.4f after %d products, residual %.3f\n", x, report.Products, report.Residual)
	// Output: x = [2.0625 4.9984] after 5 products, residual 0.019
}

// With a large eigenvalue the Neumann series diverges, and conjugate gradient is exact in two iterations.
func ExampleConjugateGradient() {
	hessian := func(v []float64) ([]float64, error) { return []float64{9 * v[0], -0.2 * v[1]}, nil }
	x, report, err := hypergrad.ConjugateGradient(context.Background(), hypergrad.System[[]float64]{
		Space: hypergrad.Float64{}, Product: hessian, Gamma: 1, Right: []float64{3, 4},
	}, hypergrad.ConjugateGradientOptions{Iterations: 10, Tolerance: 1e-10})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("x = %.4f in %d iterations\n", x, report.Iterations)
	// Output: x = [0.3000 5.0000] in 2 iterations
}

// A new adapter φ beside θ: L_FT = (φ − θ)²/2 with φ₀ = 0 and γ = 1 gives φ* = θ/2, and L_harm = φ gives dL/dθ = 1/2.
func ExampleImplicitWith() {
	x, _, err := hypergrad.ImplicitWith(context.Background(), hypergrad.Adaptation[[]float64, []float64]{
		ThetaSpace: hypergrad.Float64{},
		PhiSpace:   hypergrad.Float64{},
		Gamma:      1,
		Direct:     []float64{0},
		Right:      []float64{1},
		Product:    func(v []float64) ([]float64, error) { return []float64{v[0]}, nil },
		Cross:      func(u []float64) ([]float64, error) { return []float64{-u[0]}, nil },
	}, hypergrad.ConjugateGradientSolver[[]float64](hypergrad.ConjugateGradientOptions{Iterations: 1}))
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(x)
	// Output: [0.5]
}
