package svd

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/random"
)

func decomposer(t testing.TB) *Decomposer {
	t.Helper()
	e := enginetest.Open(t)
	d, err := New(e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Free)
	return d
}

func decompose(t testing.TB, d *Decomposer, a []float32, rows, columns int) *Factors {
	t.Helper()
	f, err := d.Decompose(a, rows, columns)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// check holds the factors against their definition.
func check(t *testing.T, a []float32, f *Factors) {
	t.Helper()
	r := f.Rank()
	if len(f.U) != f.Rows*r || len(f.S) != r || len(f.Vt) != r*f.Columns {
		t.Fatalf("factors of %d, %d and %d numbers", len(f.U), len(f.S), len(f.Vt))
	}
	largest := 0.0
	for k, s := range f.S {
		if s < 0 || k > 0 && s > f.S[k-1] {
			t.Fatalf("singular values %v", f.S)
		}
		largest = max(largest, s)
	}
	for i := range f.Rows {
		for j := range f.Columns {
			sum := 0.0
			for k := range r {
				sum += f.U[i*r+k] * f.S[k] * f.Vt[k*f.Columns+j]
			}
			if d := math.Abs(sum - float64(a[i*f.Columns+j])); !(d <= 1e-12*largest) {
				t.Fatalf("element (%d, %d) is off by %g", i, j, d)
			}
		}
	}
	for k := range r {
		for l := range k + 1 {
			u, v, want := 0.0, 0.0, 0.0
			if k == l {
				want = 1
			}
			for i := range f.Rows {
				u += f.U[i*r+k] * f.U[i*r+l]
			}
			for j := range f.Columns {
				v += f.Vt[k*f.Columns+j] * f.Vt[l*f.Columns+j]
			}
			if math.Abs(u-want) > 2*orthogonal || math.Abs(v-want) > 2*orthogonal {
				t.Fatalf("inner products of vectors %d and %d are %g and %g", k, l, u, v)
			}
		}
	}
}

func TestFactorsOfAllShapes(t *testing.T) {
	d := decomposer(t)
	for _, shape := range [][2]int{{1, 1}, {1, 7}, {7, 1}, {2, 2}, {3, 5}, {5, 3}, {24, 24}, {48, 432}, {130, 40}} {
		rows, columns := shape[0], shape[1]
		a := random.New(1, "matrix", rows, columns).Normals(rows * columns)
		t.Run(fmt.Sprint(shape), func(t *testing.T) { check(t, a, decompose(t, d, a, rows, columns)) })
	}
}

// Singular values that are known in closed form.
func TestKnownSingularValues(t *testing.T) {
	d := decomposer(t)
	hilbert := make([]float32, 36) // condition number 1.5e7
	for i := range hilbert {
		hilbert[i] = 1 / float32(i/6+i%6+1)
	}
	second := make([]float32, 25) // second differences: 2 − 2 cos(kπ/6)
	for i := range 5 {
		second[i*5+i] = 2
		if i > 0 {
			second[i*5+i-1], second[(i-1)*5+i] = -1, -1
		}
	}
	var waves []float64
	for k := 5; k > 0; k-- {
		waves = append(waves, 2-2*math.Cos(float64(k)*math.Pi/6))
	}
	root := math.Sqrt(5)
	for name, c := range map[string]struct {
		a             []float32
		rows, columns int
		want          []float64
	}{
		"diagonal with signs": {[]float32{0, -3, 0, 0, 0, 0, 0, 0.5, 2, 0, 0, 0}, 3, 4, []float64{3, 2, 0.5}},
		"golden":              {[]float32{1, 1, 1, 0}, 2, 2, []float64{(1 + root) / 2, (root - 1) / 2}},
		"second differences":  {second, 5, 5, waves},
		"one row":             {[]float32{3, 0, 4}, 1, 3, []float64{5}},
		"rank one":            {[]float32{1, 2, 2, 2, 4, 4}, 2, 3, []float64{math.Sqrt(45), 0}},
		"equal values":        {[]float32{0, 1, 0, 0, 0, 1, 1, 0, 0}, 3, 3, []float64{1, 1, 1}},
		"zero":                {make([]float32, 6), 2, 3, []float64{0, 0}},
		"tiny":                {[]float32{1e-30, 0, 0, 1e-33}, 2, 2, []float64{float64(float32(1e-30)), float64(float32(1e-33))}},
		"huge":                {[]float32{1e38, 0, 0, 1e30}, 2, 2, []float64{float64(float32(1e38)), float64(float32(1e30))}},
	} {
		t.Run(name, func(t *testing.T) {
			f := decompose(t, d, c.a, c.rows, c.columns)
			for k, want := range c.want {
				if math.Abs(f.S[k]-want) > 1e-12*c.want[0] {
					t.Errorf("singular value %d is %v, not %v", k, f.S[k], want)
				}
			}
			check(t, c.a, f)
		})
	}
	// Rows whose lengths differ by seven orders of magnitude become orthogonal all the same.
	check(t, hilbert, decompose(t, d, hilbert, 6, 6))
}

// The determinant of a Hilbert matrix is the product of its singular values, the last of which is 1e-7 of the first.
func TestSmallSingularValuesHaveDigits(t *testing.T) {
	d := decomposer(t)
	a := []float32{1, 1, 1, 1.0000001} // singular values near 2 and 6e-8
	f := decompose(t, d, a, 2, 2)
	determinant := float64(a[0])*float64(a[3]) - float64(a[1])*float64(a[2])
	if got := f.S[0] * f.S[1]; math.Abs(got/determinant-1) > 1e-6 {
		t.Errorf("the product of the singular values is %g, the determinant %g", got, determinant)
	}
}

func TestNotAMatrix(t *testing.T) {
	d := decomposer(t)
	if _, err := d.Decompose(make([]float32, 5), 2, 3); err == nil {
		t.Error("5 numbers are a matrix of 2×3")
	}
	if _, err := d.Decompose([]float32{1, float32(math.NaN())}, 1, 2); err == nil || !strings.Contains(err.Error(), "finite") {
		t.Errorf("error %v", err)
	}
}

// The largest matrix of Stable Diffusion 1 but for four: a convolution of 1280 channels.
func BenchmarkLargeConvolution(b *testing.B) {
	d := decomposer(b)
	a := random.New(1, "convolution").Normals(1280 * 11520)
	for b.Loop() {
		decompose(b, d, a, 1280, 11520)
	}
}
