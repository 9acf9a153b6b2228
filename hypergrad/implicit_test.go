package hypergrad

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
)

// convex is L(w) = Σ log cosh(aᵢ·w − bᵢ) + Σ wⱼ⁴/8, smooth, convex and not quadratic.
type convex struct {
	a matrix
	b []float64
}

func (c convex) gradient(w []float64) []float64 {
	out := make([]float64, len(w))
	for i, row := range c.a {
		s := math.Tanh(c.margin(i, w))
		for j := range out {
			out[j] += s * row[j]
		}
	}
	for j := range out {
		out[j] += w[j] * w[j] * w[j] / 2
	}
	return out
}

func (c convex) hessian(w []float64) matrix {
	n := len(w)
	h := make(matrix, n)
	for j := range h {
		h[j] = make([]float64, n)
		h[j][j] = 1.5 * w[j] * w[j]
	}
	for i, row := range c.a {
		s := math.Tanh(c.margin(i, w))
		for j := range n {
			for k := range n {
				h[j][k] += (1 - s*s) * row[j] * row[k]
			}
		}
	}
	return h
}

func (c convex) margin(i int, w []float64) float64 {
	m := -c.b[i]
	for j, a := range c.a[i] {
		m += a * w[j]
	}
	return m
}

func newConvex(seed uint64, n int) convex {
	stream := random.New(seed, "convex")
	c := convex{b: normals(stream, n+2)}
	for range n + 2 {
		c.a = append(c.a, normals(stream, n))
	}
	return c
}

// TestEqualsUnrolledDifferentiation runs proximal gradient descent w ← w − η(∇L(w) + (w − θ)/γ) to its fixed point,
// differentiates every step in θ forwards, and compares Jᵀg with both solvers at the end point.
func TestEqualsUnrolledDifferentiation(t *testing.T) {
	const n, gamma, eta = 5, 0.3, 0.02
	loss := newConvex(20, n)
	theta := normals(random.New(21), n)
	w := append([]float64{}, theta...)
	jacobian := matrix{}.shifted(0)
	for range n {
		jacobian = append(jacobian, make([]float64, n))
	}
	for i := range n {
		jacobian[i][i] = 1 // dw₀/dθ
	}
	for range 2000 {
		grad, h := loss.gradient(w), loss.hessian(w)
		hj := times(h, jacobian)
		for i := range n {
			w[i] -= eta * (grad[i] + (w[i]-theta[i])/gamma)
			for k := range n {
				identity := 0.0
				if i == k {
					identity = 1
				}
				jacobian[i][k] -= eta * (hj[i][k] + (jacobian[i][k]-identity)/gamma)
			}
		}
	}
	g := newConvex(22, n).gradient(w) // of another loss, at the end point
	want := jacobian.transposed().times(g)

	h := loss.hessian(w)
	system := System[[]float64]{Float64{}, h.product(newTracked(t)), gamma, g}
	x, _, err := ConjugateGradient(background, system, ConjugateGradientOptions{Iterations: 50, Tolerance: 1e-14})
	if err != nil {
		t.Fatal(err)
	}
	wantClose(t, "conjugate gradient", x, want, 1e-10)
	x, report, err := Richardson(background, system, RichardsonOptions{Iterations: 400, Damping: 0.2})
	if err != nil {
		t.Fatal(err)
	}
	wantClose(t, "Richardson", x, want, 1e-10)
	if !report.Converging {
		t.Errorf("%+v", report)
	}
}

// TestRichardsonIsTruncatedUnrolling: K reverse-mode steps of proximal gradient descent with rate γ at the fixed point
// give J ← I − γHJ from J = 0, which is the K-step Richardson solve.
func TestRichardsonIsTruncatedUnrolling(t *testing.T) {
	const n, gamma = 4, 0.4
	h := newConvex(23, n).hessian(normals(random.New(24), n))
	g := normals(random.New(25), n)
	jacobian := make(matrix, n)
	for i := range jacobian {
		jacobian[i] = make([]float64, n)
	}
	for k := 1; k <= 5; k++ {
		jacobian = times(h, jacobian).shifted(-gamma)
		x, _, err := Richardson(background, System[[]float64]{Float64{}, h.product(newTracked(t)), gamma, g},
			RichardsonOptions{Iterations: k, Damping: 1})
		if err != nil {
			t.Fatal(err)
		}
		wantClose(t, "x", x, jacobian.transposed().times(g), 1e-10)
	}
}

func TestImplicitOfADisplacementIsRichardson(t *testing.T) {
	h := symmetric(26, -0.5, 0.8, 2, 0.1)
	g := normals(random.New(27), 4)
	for k := 1; k <= 7; k++ {
		space := newTracked(t)
		product := h.product(space)
		options := RichardsonOptions{Iterations: k, Damping: 1}
		want, plain, err := Richardson(background, System[[]float64]{space, product, 0.6, g}, options)
		if err != nil {
			t.Fatal(err)
		}
		got, report, err := Implicit(background, Adaptation[[]float64, []float64]{
			ThetaSpace: space, PhiSpace: space, Gamma: 0.6, Direct: g, Right: g, Product: product, Cross: product,
		}, options)
		if err != nil {
			t.Fatal(err)
		}
		wantClose(t, "hypergradient", got, want, 1e-12)
		if report.Products != plain.Products {
			t.Errorf("K=%d: %d products, want %d", k, report.Products, plain.Products)
		}
		space.wantLive(2)
	}
}

// TestImplicitOnACoupledQuadratic has L_FT = ½φᵀAφ + φᵀ(Bθ + c) and L_harm = ½‖φ − d‖² + eᵀθ with φ of another
// dimension than θ: φ* = (I + γA)⁻¹(φ₀ − γ(Bθ + c)), so dL/dθ = e − γBᵀ(I + γA)⁻¹(φ* − d).
func TestImplicitOnACoupledQuadratic(t *testing.T) {
	const gamma = 0.7
	a := symmetric(28, 0.3, 1, 4)
	stream := random.New(29)
	b := matrix{normals(stream, 2), normals(stream, 2), normals(stream, 2)}
	c, d, start, e, theta := normals(stream, 3), normals(stream, 3), normals(stream, 3), normals(stream, 2), normals(stream, 2)
	inner := a.shifted(gamma)
	adapted := func(theta []float64) []float64 {
		right := b.times(theta)
		for i := range right {
			right[i] = start[i] - gamma*(right[i]+c[i])
		}
		return inner.solve(right)
	}
	outer := func(theta []float64) float64 {
		sum := 0.0
		for i, p := range adapted(theta) {
			sum += (p - d[i]) * (p - d[i]) / 2
		}
		for i := range e {
			sum += e[i] * theta[i]
		}
		return sum
	}
	right := adapted(theta)
	for i := range right {
		right[i] -= d[i]
	}
	space := newTracked(t)
	bt := b.transposed()
	got, report, err := ImplicitWith(background, Adaptation[[]float64, []float64]{
		ThetaSpace: space, PhiSpace: space, Gamma: gamma, Direct: e, Right: right,
		Product: a.product(space), Cross: func(u []float64) ([]float64, error) { return space.own(bt.times(u)), nil },
	}, ConjugateGradientSolver[[]float64](ConjugateGradientOptions{Iterations: 10, Tolerance: 1e-14}))
	if err != nil {
		t.Fatal(err)
	}
	closed := bt.times(inner.solve(right))
	for i := range closed {
		closed[i] = e[i] - gamma*closed[i]
	}
	wantClose(t, "hypergradient", got, closed, 1e-12)
	space.wantLive(1)
	if report.Products != report.Iterations+1 {
		t.Errorf("%+v", report)
	}
	// The formula itself against differences of the outer loss, which is quadratic: no truncation error.
	for i := range theta {
		ahead, behind := append([]float64{}, theta...), append([]float64{}, theta...)
		ahead[i] += 0.5
		behind[i] -= 0.5
		wantNear(t, "difference quotient", outer(ahead)-outer(behind), got[i], 1e-10)
	}
}

func TestImplicitErrors(t *testing.T) {
	space := newTracked(t)
	cross := errors.New("cross failed")
	good := Adaptation[[]float64, []float64]{
		ThetaSpace: space, PhiSpace: space, Gamma: 1, Direct: []float64{1}, Right: []float64{1},
		Product: matrix{{0.5}}.product(space), Cross: func([]float64) ([]float64, error) { return nil, cross },
	}
	if _, _, err := Implicit(background, good, RichardsonOptions{Iterations: 3, Damping: 1}); !errors.Is(err, cross) {
		t.Errorf("error %v", err)
	}
	nan := good
	nan.Cross = func([]float64) ([]float64, error) { return space.own([]float64{math.NaN()}), nil }
	var nonFinite *NonFiniteError
	if _, _, err := Implicit(background, nan, RichardsonOptions{Iterations: 3, Damping: 1}); !errors.As(err, &nonFinite) {
		t.Errorf("error %v", err)
	}
	nan.Direct = []float64{math.Inf(1)}
	if _, _, err := Implicit(background, nan, RichardsonOptions{Iterations: 1, Damping: 1}); !errors.As(err, &nonFinite) {
		t.Errorf("order 1: error %v", err)
	}
	if _, _, err := ImplicitWith(background, good, nil); err == nil || !strings.Contains(err.Error(), "solver") {
		t.Errorf("error %v", err)
	}
	if _, _, err := Implicit(background, good, RichardsonOptions{Iterations: 0, Damping: 1}); err == nil {
		t.Error("order 0 accepted")
	}
	good.Cross = nil
	if _, _, err := Implicit(background, good, RichardsonOptions{Iterations: 1, Damping: 1}); err == nil {
		t.Error("missing Cross accepted")
	}
	space.wantLive(0)
}
