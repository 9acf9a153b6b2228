package hypergrad

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
)

var background = context.Background()

func TestRichardsonReachesClosedForm(t *testing.T) {
	h := symmetric(1, -0.4, 0.05, 0.1, 0.3, 0.4, 0.7)
	g := normals(random.New(2), 6)
	space := newTracked(t)
	x, report, err := Richardson(background, System[[]float64]{space, h.product(space), 1, g},
		RichardsonOptions{Iterations: 90, Damping: 1, FinalResidual: true})
	if err != nil {
		t.Fatal(err)
	}
	wantClose(t, "x", x, h.shifted(1).solve(g), 1e-10)
	space.wantLive(1)
	if report.Products != 90 || report.Iterations != 90 || !report.Converging || report.ResidualOf != 90 {
		t.Errorf("report %+v", report)
	}
	_, report, err = Richardson(background, System[[]float64]{Float64{}, h.product(space), 1, g}, RichardsonOptions{Iterations: 40, Damping: 1})
	if err != nil {
		t.Fatal(err)
	}
	wantNear(t, "contraction", report.Contraction, 0.7, 1e-4) // the spectral radius of γH
}

// TestRichardsonIsTheNeumannSeries compares K iterations with Σ_{j<K} (−γH)^j g.
func TestRichardsonIsTheNeumannSeries(t *testing.T) {
	h := symmetric(3, 3, -2, 0.5, 1.2)
	g := normals(random.New(4), 4)
	const gamma = 0.8
	sum, power := make([]float64, 4), append([]float64{}, g...)
	for k := 1; k <= 6; k++ {
		for i := range sum {
			sum[i] += power[i]
		}
		power = h.times(power)
		for i := range power {
			power[i] *= -gamma
		}
		space := newTracked(t)
		x, report, err := Richardson(background, System[[]float64]{space, h.product(space), gamma, g},
			RichardsonOptions{Iterations: k, Damping: 1})
		if err != nil {
			t.Fatal(err)
		}
		wantClose(t, "x", x, sum, 1e-10)
		if report.Products != k-1 || len(report.Steps) != k || report.ResidualOf != k-1 {
			t.Errorf("K=%d: %+v", k, report)
		}
		if k > 3 && (report.Converging || report.Contraction < 1 || !strings.Contains(report.Note, "does not contract")) {
			t.Errorf("divergence at γ‖H‖ = 2.4 not reported: %+v", report)
		}
		if k == 1 && (report.Converging || report.Note == "") {
			t.Errorf("K=1 measures nothing, yet %+v", report)
		}
		space.wantLive(1)
	}
}

func TestRichardsonAtTheContractionLimit(t *testing.T) {
	h := matrix{{2, 0}, {0, 0.5}}
	g := []float64{1, 1}
	for _, c := range []struct {
		gamma      float64
		converging bool
	}{{0.499, true}, {0.5, false}, {0.501, false}} {
		_, report, err := Richardson(background, System[[]float64]{Float64{}, h.product(newTracked(t)), c.gamma, g},
			RichardsonOptions{Iterations: 40, Damping: 1})
		if err != nil {
			t.Fatal(err)
		}
		if report.Converging != c.converging {
			t.Errorf("γ = %v: %+v", c.gamma, report)
		}
		wantNear(t, "contraction", report.Contraction, 2*c.gamma, 1e-6)
	}
}

func TestDampedRichardsonConvergesWherePlainDiverges(t *testing.T) {
	h := symmetric(5, 0.2, 1, 4, 9)
	g := normals(random.New(6), 4)
	solve := func(damping float64, iterations int) ([]float64, Report) {
		space := newTracked(t)
		x, report, err := Richardson(background, System[[]float64]{space, h.product(space), 1, g},
			RichardsonOptions{Iterations: iterations, Damping: damping, FinalResidual: true})
		if err != nil {
			t.Fatal(err)
		}
		space.wantLive(1)
		return x, report
	}
	if _, plain := solve(1, 20); plain.Converging || plain.Residual < 1e10 {
		t.Errorf("plain iteration should diverge: %+v", plain)
	}
	x, damped := solve(0.18, 200) // below 2/(1 + 9)
	wantClose(t, "x", x, h.shifted(1).solve(g), 1e-10)
	if !damped.Converging {
		t.Errorf("%+v", damped)
	}
}

// TestResiduals checks the reported residuals against their definition.
func TestResiduals(t *testing.T) {
	h := symmetric(7, -0.3, 0.2, 0.5)
	g := []float64{1, -2, 0.5}
	residual := func(x []float64) float64 {
		ax := h.shifted(1).times(x)
		r, _ := Float64{}.Combine(Term[[]float64]{1, g}, Term[[]float64]{-1, ax})
		rNorm, _ := norm(Float64{}, "r", r)
		gNorm, _ := norm(Float64{}, "g", g)
		return rNorm / gNorm
	}
	system := System[[]float64]{Float64{}, h.product(newTracked(t)), 1, g}
	for _, mu := range []float64{1, 0.6} {
		x3, _, err := Richardson(background, system, RichardsonOptions{Iterations: 3, Damping: mu})
		if err != nil {
			t.Fatal(err)
		}
		_, free, err := Richardson(background, system, RichardsonOptions{Iterations: 4, Damping: mu})
		if err != nil {
			t.Fatal(err)
		}
		x4, paid, err := Richardson(background, system, RichardsonOptions{Iterations: 4, Damping: mu, FinalResidual: true})
		if err != nil {
			t.Fatal(err)
		}
		wantNear(t, "free residual", free.Residual, residual(x3), 1e-14)
		wantNear(t, "final residual", paid.Residual, residual(x4), 1e-14)
		if free.ResidualOf != 3 || paid.ResidualOf != 4 || paid.Products != free.Products+1 {
			t.Errorf("free %+v, paid %+v", free, paid)
		}
	}
	x, report, err := ConjugateGradient(background, system, ConjugateGradientOptions{Iterations: 2, FinalResidual: true})
	if err != nil {
		t.Fatal(err)
	}
	wantNear(t, "conjugate gradient residual", report.Residual, residual(x), 1e-14)
	if report.Products != 3 {
		t.Errorf("%+v", report)
	}
}

func TestConjugateGradientReachesClosedForm(t *testing.T) {
	eigenvalues := make([]float64, 20)
	for i := range eigenvalues {
		eigenvalues[i] = -0.5 + 0.7*float64(i*i) // up to 252, some negative but above −1/γ
	}
	h := symmetric(8, eigenvalues...)
	g := normals(random.New(9), 20)
	space := newTracked(t)
	x, report, err := ConjugateGradient(background, System[[]float64]{space, h.product(space), 1, g},
		ConjugateGradientOptions{Iterations: 60, Tolerance: 1e-13})
	if err != nil {
		t.Fatal(err)
	}
	wantClose(t, "x", x, h.shifted(1).solve(g), 1e-10)
	space.wantLive(1)
	if !report.Converging || report.Iterations > 40 || report.Products != report.Iterations || report.Residual > 1e-13 {
		t.Errorf("%+v", report)
	}
}

// TestConjugateGradientEndsInDimensionSteps: three distinct eigenvalues need three iterations, and with tolerance 0 an
// exhausted residual must not be taken for a breakdown.
func TestConjugateGradientEndsInDimensionSteps(t *testing.T) {
	h := symmetric(10, 1, 1, 5, 5, 9, 9)
	g := normals(random.New(11), 6)
	x, report, err := ConjugateGradient(background, System[[]float64]{Float64{}, h.product(newTracked(t)), 2, g},
		ConjugateGradientOptions{Iterations: 500})
	if err != nil {
		t.Fatal(err)
	}
	wantClose(t, "x", x, h.shifted(2).solve(g), 1e-12)
	if report.Iterations > 12 {
		t.Errorf("did not stop at rounding error: %d iterations", report.Iterations)
	}
	_, short, err := ConjugateGradient(background, System[[]float64]{Float64{}, h.product(newTracked(t)), 2, g},
		ConjugateGradientOptions{Iterations: 1, Tolerance: 1e-9})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(short.Note, "above the tolerance") {
		t.Errorf("missed tolerance is silent: %+v", short)
	}
}

func TestConjugateGradientReportsNegativeCurvature(t *testing.T) {
	h := symmetric(12, -1.5, 0.5, 1, 6)
	g := normals(random.New(13), 4)
	space := newTracked(t)
	system := System[[]float64]{space, h.product(space), 1, g}
	_, _, err := ConjugateGradient(background, system, ConjugateGradientOptions{Iterations: 20})
	var negative *NegativeCurvatureError
	if !errors.As(err, &negative) || negative.Curvature > 0 || negative.Iteration < 2 {
		t.Fatalf("error %v", err)
	}
	space.wantLive(0)

	options := ConjugateGradientOptions{Iterations: 20, StopAtNegativeCurvature: true}
	x, report, err := ConjugateGradient(background, system, options)
	if err != nil {
		t.Fatal(err)
	}
	if report.Iterations != negative.Iteration-1 || !strings.Contains(report.Note, "not positive definite") {
		t.Errorf("%+v", report)
	}
	want, _, err := ConjugateGradient(background, system, ConjugateGradientOptions{Iterations: report.Iterations})
	if err != nil {
		t.Fatal(err)
	}
	wantClose(t, "x", x, want, 0)

	// Along g itself there is nothing to return, and a singular matrix is no better than an indefinite one.
	for _, top := range []float64{-3, -1} {
		system := System[[]float64]{space, matrix{{top}}.product(space), 1, []float64{2}}
		if _, _, err := ConjugateGradient(background, system, options); !errors.As(err, &negative) {
			t.Errorf("eigenvalue %v: error %v", top, err)
		}
	}
}

func TestZeroRightHandSide(t *testing.T) {
	space := newTracked(t)
	never := func([]float64) ([]float64, error) { t.Fatal("a product for g = 0"); return nil, nil }
	for name, solve := range solvers() {
		x, report, err := solve(background, System[[]float64]{space, never, 1, []float64{0, 0}})
		if err != nil {
			t.Fatal(err)
		}
		if x[0] != 0 || x[1] != 0 || report.Residual != 0 || !report.Converging {
			t.Errorf("%s: x = %v, %+v", name, x, report)
		}
	}
}

// TestVanishingHessian covers H = 0, where x₁ is exact and every later step is zero.
func TestVanishingHessian(t *testing.T) {
	g := []float64{3, 4}
	for name, solve := range solvers() {
		x, report, err := solve(background, System[[]float64]{Float64{}, matrix{{0, 0}, {0, 0}}.product(newTracked(t)), 1, g})
		if err != nil {
			t.Fatal(err)
		}
		wantClose(t, name, x, g, 0)
		if !report.Converging || report.Residual != 0 {
			t.Errorf("%s: %+v", name, report)
		}
	}
}

func solvers() map[string]Solver[[]float64] {
	return map[string]Solver[[]float64]{
		"richardson": RichardsonSolver[[]float64](RichardsonOptions{Iterations: 5, Damping: 1, FinalResidual: true}),
		"conjugate":  ConjugateGradientSolver[[]float64](ConjugateGradientOptions{Iterations: 5, FinalResidual: true}),
	}
}

func TestNonFiniteValuesAreErrors(t *testing.T) {
	for name, solve := range solvers() {
		for _, bad := range []float64{math.NaN(), math.Inf(1), 1e200} {
			space := newTracked(t)
			_, _, err := solve(background, System[[]float64]{space, matrix{{1, 0}, {0, 1}}.product(space), 1, []float64{1, bad}})
			var nonFinite *NonFiniteError
			if !errors.As(err, &nonFinite) {
				t.Errorf("%s, g holds %v: error %v", name, bad, err)
			}
			_, _, err = solve(background, System[[]float64]{space, matrix{{1, 0}, {0, bad}}.product(space), 1, []float64{1, 1e200 / 1e60}})
			if !errors.As(err, &nonFinite) {
				t.Errorf("%s, H holds %v: error %v", name, bad, err)
			}
			space.wantLive(0)
		}
	}
}

func TestContextIsRespectedBetweenProducts(t *testing.T) {
	for name, solve := range solvers() {
		ctx, cancel := context.WithCancel(background)
		space, products := newTracked(t), 0
		h := symmetric(14, 0.1, 0.4, 0.9)
		product := func(v []float64) ([]float64, error) {
			if products++; products == 2 {
				cancel()
			}
			return space.own(h.times(v)), nil
		}
		_, _, err := solve(ctx, System[[]float64]{space, product, 1, []float64{1, 2, 3}})
		if !errors.Is(err, context.Canceled) || products != 2 {
			t.Errorf("%s: error %v after %d products", name, err, products)
		}
		space.wantLive(0)
	}
}

// TestFailuresReleaseEverything makes each operation fail in turn.
func TestFailuresReleaseEverything(t *testing.T) {
	h := symmetric(15, 0.1, 0.4, 0.9, 0.2)
	for name, solve := range solvers() {
		for failAt := 1; ; failAt++ {
			space := newTracked(t)
			space.failAt = failAt
			_, _, err := solve(background, System[[]float64]{space, h.product(space), 1, []float64{1, 2, 3, 4}})
			if err == nil {
				if failAt < 8 {
					t.Errorf("%s: only %d sums", name, failAt)
				}
				break
			}
			if !errors.Is(err, errNoMemory) {
				t.Fatalf("%s: error %v", name, err)
			}
			space.wantLive(0)
		}
	}
}

func TestBadOptionsAreRefused(t *testing.T) {
	good := System[[]float64]{Float64{}, matrix{{1}}.product(newTracked(t)), 1, []float64{1}}
	with := func(change func(*System[[]float64])) System[[]float64] {
		s := good
		change(&s)
		return s
	}
	cases := []struct {
		system  System[[]float64]
		options RichardsonOptions
		want    string
	}{
		{good, RichardsonOptions{Iterations: 0, Damping: 1}, "iterations"},
		{good, RichardsonOptions{Iterations: 1}, "damping"},
		{good, RichardsonOptions{Iterations: 1, Damping: 1.1}, "damping"},
		{good, RichardsonOptions{Iterations: 1, Damping: math.NaN()}, "damping"},
		{with(func(s *System[[]float64]) { s.Gamma = -1 }), RichardsonOptions{Iterations: 1, Damping: 1}, "gamma"},
		{with(func(s *System[[]float64]) { s.Gamma = math.Inf(1) }), RichardsonOptions{Iterations: 1, Damping: 1}, "gamma"},
		{with(func(s *System[[]float64]) { s.Space = nil }), RichardsonOptions{Iterations: 1, Damping: 1}, "Space"},
		{with(func(s *System[[]float64]) { s.Product = nil }), RichardsonOptions{Iterations: 1, Damping: 1}, "Product"},
	}
	for _, c := range cases {
		if _, _, err := Richardson(background, c.system, c.options); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want one about %s", err, c.want)
		}
	}
	for want, o := range map[string]ConjugateGradientOptions{
		"iterations": {}, "tolerance": {Iterations: 1, Tolerance: 1},
	} {
		if _, _, err := ConjugateGradient(background, good, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %s", err, want)
		}
	}
	if _, err := (Float64{}).Dot([]float64{1}, []float64{1, 2}); err == nil {
		t.Error("inner product of unequal lengths accepted")
	}
	if _, err := (Float64{}).Combine(Term[[]float64]{1, []float64{1}}, Term[[]float64]{1, nil}); err == nil {
		t.Error("sum of unequal lengths accepted")
	}
	if _, err := (Float64{}).Combine(); err == nil {
		t.Error("empty sum accepted")
	}
}
