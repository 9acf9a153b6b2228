package denoise

import (
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
)

// The hypergradient through the solution of the proximal problem argmin_φ L_FT(φ) + ‖φ − θ‖²/2γ equals differentiating
// through the gradient steps that lead there, φ ← φ − η(∇L_FT(φ) + (φ − θ)/γ) from φ = θ, step by step in reverse.
func TestHypergradientEqualsUnrolledProximalSteps(t *testing.T) {
	const (
		gamma = 1.0
		eta   = 0.6 // × (H + 1/γ) has its eigenvalues between 0 and 2
		steps = 24
	)
	m := loadTiny(t)
	n, start := adapted(t, m, 1)
	theta := n.Group(1)
	space := NewSpace(m.Engine)
	defer space.Free()
	tuning := newBatch(t, m, samples(m, "tuning", 0.5, 0.5))
	harmful := newBatch(t, m, samples(m, "harmful", 0.5, 0.5))
	product := func(at, v Vector) Vector {
		h, err := n.HessianProduct(t.Context(), theta.Put(start, at), theta, Loss{}, tuning, v)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}

	origin := theta.Of(start)
	path := []Vector{origin}
	var change float64
	for k := range steps {
		phi := path[k]
		g := gradient(t, n, theta.Put(start, phi), theta, Loss{}, tuning)
		next := combine(t, space, term(1-eta/gamma, phi), term(eta/gamma, origin), term(-eta, g))
		change = relative(numbers(t, next), numbers(t, phi))
		path = append(path, next)
	}
	end := path[steps]
	moved := relative(numbers(t, end), numbers(t, origin))
	if change > 1e-6 || moved < 1e-3 {
		t.Fatalf("%d steps moved by %g of ‖θ‖, the last by %g: not a solution away from θ", steps, moved, change)
	}

	// Reverse: a is the derivative by φ_k; θ takes η/γ of it at every step, and what is left at φ₀ = θ.
	right := gradient(t, n, theta.Put(start, end), theta, Loss{}, harmful)
	a := right
	unrolled := combine(t, space, term(0, a))
	for k := steps - 1; k >= 0; k-- {
		unrolled = combine(t, space, term(1, unrolled), term(eta/gamma, a))
		a = combine(t, space, term(1-eta/gamma, a), term(-eta, product(path[k], a)))
	}
	unrolled = combine(t, space, term(1, unrolled), term(1, a))
	want := numbers(t, unrolled)
	if e := relative(numbers(t, right), want); e < 0.02 {
		t.Fatalf("the hypergradient differs from the plain gradient by %g only; the test would not see the Hessian", e)
	} else {
		t.Logf("plain gradient: relative difference %.2g; ‖φ* − θ‖/‖θ‖ = %.2g", e, moved)
	}

	system := hypergrad.System[Vector]{
		Space: space, Gamma: gamma, Right: right,
		Product: func(v Vector) (Vector, error) { return product(end, v), nil },
	}
	for name, solve := range map[string]hypergrad.Solver[Vector]{
		"Richardson":         hypergrad.RichardsonSolver[Vector](hypergrad.RichardsonOptions{Iterations: 40, Damping: 0.6}),
		"conjugate gradient": hypergrad.ConjugateGradientSolver[Vector](hypergrad.ConjugateGradientOptions{Iterations: 30, Tolerance: 1e-6}),
	} {
		x, report, err := solve(t.Context(), system)
		if err != nil {
			t.Fatal(err)
		}
		if e := relative(numbers(t, x), want); !(e < 1e-3) {
			t.Errorf("%s differs from the unrolled steps by %g (%+v)", name, e, report)
		} else {
			t.Logf("%s: %.2g (residual %.2g)", name, e, report.Residual)
		}
		engine.Free(x...)
	}
}
