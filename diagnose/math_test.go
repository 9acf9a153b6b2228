package diagnose

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/random"
)

type vector = []float64

// turned is a symmetric matrix with the given eigenvalues and random eigenvectors: Q diag(λ) Qᵀ.
func turned(seed uint64, eigenvalues ...float64) [][]float64 {
	n := len(eigenvalues)
	a := make([][]float64, n)
	for i := range a {
		a[i] = make([]float64, n)
		a[i][i] = eigenvalues[i]
	}
	s := random.New(seed, "rotations")
	for range 4 {
		for p := range n {
			for q := range p {
				sin, cos := math.Sincos(2 * math.Pi * s.Float64())
				for k := range n {
					a[k][p], a[k][q] = cos*a[k][p]-sin*a[k][q], sin*a[k][p]+cos*a[k][q]
				}
				for k := range n {
					a[p][k], a[q][k] = cos*a[p][k]-sin*a[q][k], sin*a[p][k]+cos*a[q][k]
				}
			}
		}
	}
	return a
}

func times(a [][]float64) hypergrad.Product[vector] {
	return func(v vector) (vector, error) {
		out := make(vector, len(v))
		for i := range a {
			for j := range v {
				out[i] += a[i][j] * v[j]
			}
		}
		return out, nil
	}
}

func normals(seed uint64, n int) func(i int) vector {
	return func(i int) vector {
		out := make(vector, n)
		for k, x := range random.New(seed, "start", i).Normals(n) {
			out[k] = float64(x)
		}
		return out
	}
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s is %.6g, want %.6g", what, got, want)
	}
}

func TestStudentT(t *testing.T) {
	for freedom, want := range map[int]float64{3: 3.1824, 4: 2.7764, 7: 2.3646, 10: 2.2281, 31: 2.0395, 100: 1.9840, 1_000_000: 1.9600} {
		near(t, "Student's t", studentT(freedom), want, 0.004)
	}
}

func TestEstimate(t *testing.T) {
	e := estimate([]float64{1, 2, 3, 4, 5})
	near(t, "mean", e.Value, 3, 1e-12)
	near(t, "standard error", e.StandardError, math.Sqrt(2.5/5), 1e-12)
	near(t, "low", e.Low, 3-2.7764*math.Sqrt(0.5), 2e-3)
	near(t, "high", e.High, 3+2.7764*math.Sqrt(0.5), 2e-3)
	// What two lists have in common leaves their difference, and its interval, alone.
	d := paired([]float64{101, 7, 50, -3}, []float64{100, 6, 49, -4, 900})
	if d.Value != 1 || d.StandardError != 0 || d.N != 4 {
		t.Errorf("the paired difference is %+v", d)
	}
	// Intervals hold the mean of normal numbers about 95 times in 100.
	held := 0
	for trial := range 1000 {
		var draws []float64
		s := random.New(5, "trial", trial)
		for range 6 {
			draws = append(draws, 10+s.Normal())
		}
		if e := estimate(draws); e.Low <= 10 && 10 <= e.High {
			held++
		}
	}
	if held < 930 || held > 970 {
		t.Errorf("%d of 1000 intervals hold the mean", held)
	}
}

func TestEndsOfQuadratics(t *testing.T) {
	space := hypergrad.Float64{}
	for name, eigenvalues := range map[string][]float64{
		"positive":         {0.1, 0.5, 1, 2, 5},
		"negative":         {-7, -1, -0.2, -0.1, 0},
		"opposite":         {-3, -1, 0.5, 1, 3}, // where power iteration does not settle
		"one large":        append(slices.Repeat([]float64{0.001}, 40), -0.3, 20),
		"equal":            {2, 2, 2, 2},
		"zero":             {0, 0, 0},
		"a single number":  {-4},
		"small among many": append(slices.Repeat([]float64{0}, 60), 1e-3, -2e-3, 5e-3),
	} {
		n := len(eigenvalues)
		s, err := ends(t.Context(), space, times(turned(1, eigenvalues...)), normals(2, n), 60, 1e-6)
		if err != nil {
			t.Fatal(err)
		}
		low, high := slices.Min(eigenvalues), slices.Max(eigenvalues)
		radius := math.Max(math.Abs(low), math.Abs(high))
		near(t, name+": lowest", s.Lowest, low, 1e-6*radius)
		near(t, name+": highest", s.Highest, high, 1e-6*radius)
		near(t, name+": radius", s.Radius, radius, 1e-6*radius)
		near(t, name+": residuals", max(s.LowestResidual, s.HighestResidual), 0, 1e-5*radius)
		if name != "opposite" {
			near(t, name+": power iteration", math.Abs(s.Top), radius, 1e-5*radius)
		} else if s.TopResidual < 0.1 {
			t.Errorf("power iteration settled on %v between −3 and 3", s.Top)
		}
		turned := s.negated()
		if turned.Lowest != -s.Highest || turned.Highest != -s.Lowest || turned.Top != -s.Top || turned.LowestResidual != s.HighestResidual {
			t.Errorf("%s: negated to %+v", name, turned)
		}
	}
	// Cut short, the ends found are inside the spectrum, and the residuals say how far off they may be.
	wide := turned(3, -5, -4.9, -4.8, -1, 0, 1, 3.7, 3.8, 3.9, 4)
	s, err := ends(t.Context(), space, times(wide), normals(4, 10), 3, 1e-3)
	if err != nil {
		t.Fatal(err)
	}
	if s.Lowest < -5-1e-9 || s.Highest > 4+1e-9 || s.Radius > 5+1e-9 || s.LowestResidual < 1e-3 {
		t.Errorf("after 3 iterations: %+v", s)
	}
}

// TestContraction runs the iteration itself for long: it must settle just where the verdict says so.
func TestContraction(t *testing.T) {
	space := hypergrad.Float64{}
	for trial := range 60 {
		s := random.New(9, "trial", trial)
		eigenvalues := []float64{3*s.Float64() - 1, 3*s.Float64() - 1, 3*s.Float64() - 1, 3*s.Float64() - 1}
		gamma, damping := 2*s.Float64(), 0.2+0.8*s.Float64()
		if trial%3 == 0 {
			damping = 1
		}
		h := times(turned(uint64(trial), eigenvalues...))
		found, err := ends(t.Context(), space, h, normals(10, 4), 40, 1e-9)
		if err != nil {
			t.Fatal(err)
		}
		c := found.contraction(gamma, damping)
		factor := 0.0
		for _, x := range eigenvalues {
			factor = math.Max(factor, math.Abs(1-damping-damping*gamma*x))
		}
		near(t, "factor", c.Factor, factor, 1e-6)
		if math.Abs(factor-1) < 0.01 {
			continue // too near to the limit to see in so many steps
		}
		system := hypergrad.System[vector]{Space: space, Product: h, Gamma: gamma, Right: normals(11, 4)(trial)}
		r, note, err := residuals(t.Context(), system, Options{Iterations: 1500, Damping: damping})
		if err != nil {
			t.Fatal(err)
		}
		last := r[len(r)-1]
		if shrinks := note == "" && last < 1e-4; shrinks != (c.Verdict == Contracts) {
			t.Errorf("eigenvalues %v, γ = %v, μ = %v: %s, but the residual ends at %g (%s)", eigenvalues, gamma, damping, c.Verdict, last, note)
		}
		// At the largest γ the factor is one.
		if c.LargestGamma == Unbounded {
			if slices.Min(eigenvalues) < 0 || (damping == 1 && slices.Max(eigenvalues) > 0) {
				t.Errorf("eigenvalues %v, μ = %v: every γ is said to contract", eigenvalues, damping)
			}
			continue
		}
		near(t, "factor at the largest γ", found.contraction(c.LargestGamma, damping).Factor, 1, 1e-6)
	}
	open := Spectrum{Lowest: -0.5, Highest: 0.5, HighestResidual: 0.6, Radius: 0.6}
	if v := open.contraction(1, 1).Verdict; v != NotSettled {
		t.Errorf("with an end that may be at 1.1 the verdict is %q", v)
	}
	if v := open.contraction(0.8, 1).Verdict; v != Contracts {
		t.Errorf("with an end that may be at 0.88 the verdict is %q", v)
	}
	if c := open.contraction(2, 1); c.Verdict != Diverges || math.Abs(c.Factor-1.2) > 1e-12 {
		t.Errorf("‖Hv‖ of 0.6 at γ = 2 gives %+v", c)
	}
	if c := (Spectrum{}).contraction(5, 1); c.Verdict != Contracts || c.LargestGamma != Unbounded {
		t.Errorf("H = 0 gives %+v", c)
	}
}

// TestResiduals compares with the closed form g − (I+γH)x_K = (−γH)^K g of the plain iteration.
func TestResiduals(t *testing.T) {
	eigenvalues := vector{0.9, -0.3, 0.05}
	g := vector{1, -2, 0.5}
	diagonal := func(v vector) (vector, error) {
		out := make(vector, len(v))
		for i := range v {
			out[i] = eigenvalues[i] * v[i]
		}
		return out, nil
	}
	const gamma = 1.5
	got, note, err := residuals(t.Context(), hypergrad.System[vector]{Space: hypergrad.Float64{}, Product: diagonal, Gamma: gamma, Right: g}, Options{Iterations: 4, Damping: 1})
	if err != nil || note != "" || len(got) != 5 {
		t.Fatalf("%v, %q, %v", got, note, err)
	}
	for k := range got {
		top, bottom := 0.0, 0.0
		for i := range g {
			r := math.Pow(gamma*eigenvalues[i], float64(k)) * g[i]
			top, bottom = top+r*r, bottom+g[i]*g[i]
		}
		near(t, "residual", got[k], math.Sqrt(top/bottom), 1e-12)
	}
	got, note, err = residuals(t.Context(), hypergrad.System[vector]{Space: hypergrad.Float64{}, Product: diagonal, Gamma: 1e200, Right: g}, Options{Iterations: 4, Damping: 1})
	if err != nil || note == "" || len(got) == 0 || len(got) > 4 {
		t.Errorf("an overflow gives %v, %q, %v", got, note, err)
	}
	got, _, err = residuals(t.Context(), hypergrad.System[vector]{Space: hypergrad.Float64{}, Product: diagonal, Gamma: 1, Right: make(vector, 3)}, Options{Iterations: 4, Damping: 1})
	if err != nil || !slices.Equal(got, []float64{0}) {
		t.Errorf("a zero g gives %v, %v", got, err)
	}
}

// TestTraceOfQuadratic: the terms of Hutchinson's estimate agree with hypergrad's, and their mean with the trace.
func TestTraceOfQuadratic(t *testing.T) {
	eigenvalues := []float64{5, -2, 1, 0.5, 8, -3, 0.1, 2}
	h, space := times(turned(6, eigenvalues...)), hypergrad.Float64{}
	probe := func(i int) (vector, error) {
		return hypergrad.Rademacher(random.New(7, "probe", i), len(eigenvalues)), nil
	}
	const n = 2000
	var terms []float64
	for i := range n {
		z, _ := probe(i)
		x, err := quadraticForm(space, h, z)
		if err != nil {
			t.Fatal(err)
		}
		terms = append(terms, x)
	}
	e := estimate(terms)
	if want := 11.6; e.Low > want || want > e.High || e.StandardError > 0.5 {
		t.Errorf("the trace is %+v, not 11.6", e)
	}
	other, err := hypergrad.Hutchinson(t.Context(), space, h, probe, n)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "trace", e.Value, other.Trace, 1e-12)
	near(t, "standard error", e.StandardError, other.StandardError, 1e-12)
	if _, err := quadraticForm(space, func(v vector) (vector, error) { return vector{math.NaN()}, nil }, vector{1}); err == nil {
		t.Error("a product that is not a number is taken for one")
	}
}

// TestAlong recovers the derivatives of a parabola at 0 from places that are not evenly spaced.
func TestAlong(t *testing.T) {
	places := []float64{-0.5, -0.2, 0, 0.3, 1, 1.5}
	loss := func(shift, s float64) float64 { return shift + 3*s - 7*s*s }
	var rows [][]float64
	for i := range 4 {
		row := make([]float64, 2*len(places))
		for j, s := range places {
			row[len(places)+j] = loss(float64(i), s)
		}
		rows = append(rows, row)
	}
	a := along(places, rows, len(places))
	near(t, "slope", a.Slope.Value, 3, 1e-12)
	near(t, "curvature", a.Curvature.Value, -14, 1e-12)
	near(t, "change", a.Change.Value, -4, 1e-12)
	near(t, "its standard error", a.Change.StandardError, 0, 1e-12)
	l := newLine(places, rows, 1, 2)
	near(t, "loss at 1", l.FineTuning[4].Value, 1.5-4, 1e-12)
	if l.Retain != nil || len(l.Harm) != len(places) {
		t.Errorf("the line is %+v", l)
	}
}

func TestPlacesOnTheLine(t *testing.T) {
	o := Defaults()
	if got := o.line(); len(got) != 21 || !slices.Contains(got, 0) || !slices.Contains(got, 1) {
		t.Errorf("the default line is %v", got)
	}
	o.From, o.To, o.Points = -0.7, 1.9, 4
	if got := o.line(); !slices.IsSorted(got) || !slices.Contains(got, 0) || !slices.Contains(got, 1) || len(got) != 6 {
		t.Errorf("the line is %v", got)
	}
}

func TestBlocks(t *testing.T) {
	var layers []Length
	for _, name := range []string{
		"conv_in.weight", "conv_norm_out.bias", "conv_out.weight", "down_blocks.0.attentions.0.proj_in.weight", "down_blocks.0.resnets.1.conv1.weight",
		"down_blocks.0.resnets.0.conv1.bias", "down_blocks.1.downsamplers.0.conv.weight", "mid_block.resnets.0.conv1.weight", "time_embedding.linear_1.weight", "up_blocks.2.upsamplers.0.conv.weight",
	} {
		layers = append(layers, Length{Name: name, Distance: 3, Base: 4, Parameters: 10})
	}
	var names []string
	for _, b := range byBlock(layers) {
		names = append(names, b.Name)
		if b.Name == "down 0 resnets" {
			near(t, "joined distance", b.Distance, math.Sqrt(18), 1e-12)
			near(t, "joined norm", b.Base, math.Sqrt(32), 1e-12)
			if share, ok := b.Relative(); !ok || math.Abs(share-0.75) > 1e-12 || b.Parameters != 20 {
				t.Errorf("the block is %+v", b)
			}
		}
	}
	want := []string{"input", "time embedding", "down 0 attentions", "down 0 resnets", "down 1 downsamplers", "mid resnets", "up 2 upsamplers", "output"}
	if !slices.Equal(names, want) {
		t.Errorf("blocks are %q", names)
	}
	if _, ok := (Length{Distance: 1}).Relative(); ok {
		t.Error("a distance from zero has a share")
	}
}
