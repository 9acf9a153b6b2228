package hypergrad

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
)

func TestCentralDifferenceMatchesTheHessian(t *testing.T) {
	const n = 6
	loss := newConvex(30, n)
	theta := normals(random.New(31), n)
	v := normals(random.New(32), n)
	want := loss.hessian(theta).times(v)
	for _, length := range []float64{1, 1e-9, 1e9} { // the step adapts to the length of v
		space := newTracked(t)
		product := CentralDifference(space, func(w []float64) ([]float64, error) { return space.own(loss.gradient(w)), nil }, theta, 1e-5)
		scaled, _ := Float64{}.Combine(Term[[]float64]{length, v})
		got, err := product(scaled)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			wantNear(t, "H·v", got[i]/length, want[i], 1e-7)
		}
		space.wantLive(1)
	}
}

// TestCentralDifferenceInFloat32 rounds parameters and gradients to float32: the default step keeps the error near 1e-4.
func TestCentralDifferenceInFloat32(t *testing.T) {
	const n = 8
	loss := newConvex(33, n)
	round := func(v []float64) []float64 {
		out := make([]float64, len(v))
		for i := range v {
			out[i] = float64(float32(v[i]))
		}
		return out
	}
	theta, v := round(normals(random.New(34), n)), round(normals(random.New(35), n))
	want := loss.hessian(theta).times(v)
	wantNorm, _ := norm(Float64{}, "H·v", want)
	relative := func(step float64) float64 {
		product := CentralDifference(Float64{}, func(w []float64) ([]float64, error) { return round(loss.gradient(round(w))), nil }, theta, step)
		got, err := product(v)
		if err != nil {
			t.Fatal(err)
		}
		difference, _ := Float64{}.Combine(Term[[]float64]{1, got}, Term[[]float64]{-1, want})
		e, _ := norm(Float64{}, "error", difference)
		return e / wantNorm
	}
	if e := relative(0); e > 5e-4 {
		t.Errorf("relative error %g with the default step", e)
	}
	if e := relative(1e-6); e < relative(0) {
		t.Errorf("a step of 1e-6 should drown in rounding, has error %g", e)
	}
}

func TestCentralDifferenceErrors(t *testing.T) {
	space, failure := newTracked(t), errors.New("gradient failed")
	calls := 0
	product := CentralDifference(space, func(w []float64) ([]float64, error) {
		if calls++; calls == 2 {
			return nil, failure
		}
		return space.own(append([]float64{}, w...)), nil
	}, []float64{1, 2}, 0)
	if _, err := product([]float64{1, 1}); !errors.Is(err, failure) {
		t.Errorf("error %v", err)
	}
	space.wantLive(0)
	if zero, err := product([]float64{0, 0}); err != nil || zero[0] != 0 || calls != 2 {
		t.Errorf("zero direction gave %v, %v", zero, err)
	}
	if _, err := product([]float64{math.NaN(), 0}); err == nil {
		t.Error("NaN direction accepted")
	}
	for _, step := range []float64{-1, math.NaN(), math.Inf(1)} {
		if _, err := CentralDifference(space, product, []float64{1}, step)([]float64{1}); err == nil || !strings.Contains(err.Error(), "step") {
			t.Errorf("step %v: error %v", step, err)
		}
	}
}

func TestHutchinson(t *testing.T) {
	space := newTracked(t)
	probe := func(i int) ([]float64, error) { return space.own(Rademacher(random.New(40, "probe", i), 6)), nil }

	// Signs are exact on a diagonal matrix: zᵢ² = 1.
	diagonal := matrix{{2, 0, 0, 0, 0, 0}, {0, -1, 0, 0, 0, 0}, {0, 0, 7, 0, 0, 0}, {0, 0, 0, 0.5, 0, 0}, {0, 0, 0, 0, 3, 0}, {0, 0, 0, 0, 0, 1}}
	got, err := Hutchinson(background, space, diagonal.product(space), probe, 3)
	if err != nil {
		t.Fatal(err)
	}
	if got.Trace != 12.5 || got.StandardError != 0 || got.Probes != 3 {
		t.Errorf("%+v", got)
	}

	// In general the variance of one probe is 2Σ_{i≠j} Hᵢⱼ².
	h := symmetric(41, 5, 3, -2, 1, 8, 0.5)
	variance := 0.0
	for i := range h {
		for j := range h {
			if i != j {
				variance += 2 * h[i][j] * h[i][j]
			}
		}
	}
	const n = 4000
	got, err = Hutchinson(background, space, h.product(space), probe, n)
	if err != nil {
		t.Fatal(err)
	}
	expected := math.Sqrt(variance / n)
	wantNear(t, "standard error", got.StandardError, expected, 0.1*expected)
	wantNear(t, "trace", got.Trace, 15.5, 4*expected)
	space.wantLive(0)

	if _, err := Hutchinson(background, space, h.product(space), probe, 1); err == nil {
		t.Error("one probe accepted")
	}
	ctx, cancel := context.WithCancel(background)
	cancel()
	if _, err := Hutchinson(ctx, space, h.product(space), probe, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	var nonFinite *NonFiniteError
	if _, err := Hutchinson(background, space, matrix{{math.NaN()}}.product(space), func(int) ([]float64, error) { return space.own([]float64{1}), nil }, 2); !errors.As(err, &nonFinite) {
		t.Errorf("error %v", err)
	}
	space.wantLive(0)
}

func TestRademacherSignsAreBalanced(t *testing.T) {
	signs := Rademacher(random.New(42), 10000)
	sum := 0.0
	for _, s := range signs {
		if s != 1 && s != -1 {
			t.Fatalf("sign %v", s)
		}
		sum += s
	}
	if math.Abs(sum) > 400 {
		t.Errorf("sum of 10000 signs is %v", sum)
	}
}

func TestPowerIteration(t *testing.T) {
	start := normals(random.New(43), 4)
	for _, c := range []struct {
		eigenvalues []float64
		want        float64
	}{{[]float64{1, 2, 3, 5}, 5}, {[]float64{-6, 1, 3, 4}, -6}, {[]float64{0, 0, 0, 0.25}, 0.25}} {
		h := symmetric(44, c.eigenvalues...)
		space := newTracked(t)
		pair, err := PowerIteration(background, space, h.product(space), start, 200, 1e-10)
		if err != nil {
			t.Fatal(err)
		}
		if !pair.Converged || pair.Residual > 1e-9 || pair.Iterations == 200 {
			t.Errorf("%+v", pair)
		}
		wantNear(t, "eigenvalue", pair.Value, c.want, 1e-9)
		hv := h.times(pair.Vector)
		for i := range hv {
			wantNear(t, "H·v", hv[i], c.want*pair.Vector[i], 1e-8)
		}
		space.wantLive(1)
	}
}

func TestPowerIterationSaysWhenItFails(t *testing.T) {
	space := newTracked(t)
	opposite := matrix{{2, 0}, {0, -2}}
	pair, err := PowerIteration(background, space, opposite.product(space), []float64{1, 0.5}, 50, 1e-6)
	if err != nil {
		t.Fatal(err)
	}
	if pair.Converged || pair.Iterations != 50 || pair.Residual < 0.1 {
		t.Errorf("eigenvalues ±2 cannot converge: %+v", pair)
	}
	space.Release(pair.Vector)
	zero, err := PowerIteration(background, space, matrix{{0, 0}, {0, 0}}.product(space), []float64{1, 0.5}, 50, 1e-6)
	if err != nil || !zero.Converged || zero.Value != 0 {
		t.Errorf("zero matrix: %+v, %v", zero, err)
	}
	space.Release(zero.Vector)
	for _, start := range [][]float64{{0, 0}, {math.NaN(), 1}} {
		if _, err := PowerIteration(background, space, opposite.product(space), start, 5, 0); err == nil {
			t.Errorf("start %v accepted", start)
		}
	}
	if _, err := PowerIteration(background, space, matrix{{math.Inf(1)}}.product(space), []float64{1}, 5, 0); err == nil {
		t.Error("infinite product accepted")
	}
	if _, err := PowerIteration(background, space, opposite.product(space), []float64{1, 1}, 0, 0); err == nil {
		t.Error("no iterations accepted")
	}
	ctx, cancel := context.WithCancel(background)
	cancel()
	if _, err := PowerIteration(ctx, space, opposite.product(space), []float64{1, 1}, 5, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	space.wantLive(0)
}
