package hypergrad

import (
	"errors"
	"math"
	"testing"

	"github.com/resalign/resalign/random"
)

// matrix is dense and square, by rows.
type matrix [][]float64

func (m matrix) times(v []float64) []float64 {
	out := make([]float64, len(m))
	for i, row := range m {
		for j, a := range row {
			out[i] += a * v[j]
		}
	}
	return out
}

func (m matrix) transposed() matrix {
	out := make(matrix, len(m[0]))
	for j := range out {
		out[j] = make([]float64, len(m))
		for i := range m {
			out[j][i] = m[i][j]
		}
	}
	return out
}

// product returns v ↦ m·v in the given space, so that results count as obtained from it.
func (m matrix) product(space *tracked) Product[[]float64] {
	return func(v []float64) ([]float64, error) { return space.own(m.times(v)), nil }
}

// shifted returns I + γm.
func (m matrix) shifted(gamma float64) matrix {
	out := make(matrix, len(m))
	for i, row := range m {
		out[i] = make([]float64, len(row))
		for j, a := range row {
			out[i][j] = gamma * a
		}
		out[i][i]++
	}
	return out
}

// solve returns m⁻¹b by Gaussian elimination with row pivoting.
func (m matrix) solve(b []float64) []float64 {
	n := len(m)
	a := make(matrix, n)
	for i := range a {
		a[i] = append(append([]float64{}, m[i]...), b[i])
	}
	for k := range n {
		p := k
		for i := k + 1; i < n; i++ {
			if math.Abs(a[i][k]) > math.Abs(a[p][k]) {
				p = i
			}
		}
		a[k], a[p] = a[p], a[k]
		for i := range n {
			if i != k {
				f := a[i][k] / a[k][k]
				for j := k; j <= n; j++ {
					a[i][j] -= f * a[k][j]
				}
			}
		}
	}
	x := make([]float64, n)
	for i := range x {
		x[i] = a[i][n] / a[i][i]
	}
	return x
}

// symmetric returns Q·diag(eigenvalues)·Qᵀ for a random rotation Q.
func symmetric(seed uint64, eigenvalues ...float64) matrix {
	n := len(eigenvalues)
	m := make(matrix, n)
	for i := range m {
		m[i] = make([]float64, n)
		m[i][i] = eigenvalues[i]
	}
	stream := random.New(seed, "reflections")
	for range 3 { // Householder reflections R = I − 2wwᵀ: m ← RmR
		w := normals(stream, n)
		length, _ := norm(Float64{}, "w", w)
		r := make(matrix, n)
		for i := range r {
			r[i] = make([]float64, n)
			for j := range r[i] {
				r[i][j] = -2 * w[i] * w[j] / length / length
			}
			r[i][i]++
		}
		m = times(times(r, m), r)
	}
	return m
}

func times(a, b matrix) matrix {
	out := make(matrix, len(a))
	columns := b.transposed()
	for i := range out {
		out[i] = columns.times(a[i])
	}
	return out
}

func normals(stream *random.Stream, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = stream.Normal()
	}
	return v
}

// tracked is Float64 that notices leaks, double releases and releases of foreign vectors.
type tracked struct {
	t      *testing.T
	live   map[*float64]bool
	failAt int // the Combine call that fails, counted from 1; 0 for none
	calls  int
}

var errNoMemory = errors.New("device out of memory")

func newTracked(t *testing.T) *tracked { return &tracked{t: t, live: map[*float64]bool{}} }

func (s *tracked) own(v []float64) []float64 {
	s.live[&v[0]] = true
	return v
}

func (s *tracked) Dot(a, b []float64) (float64, error) { return Float64{}.Dot(a, b) }

func (s *tracked) Combine(terms ...Term[[]float64]) ([]float64, error) {
	if s.calls++; s.calls == s.failAt {
		return nil, errNoMemory
	}
	v, err := Float64{}.Combine(terms...)
	if err != nil {
		return nil, err
	}
	return s.own(v), nil
}

func (s *tracked) Release(v []float64) {
	s.t.Helper()
	if !s.live[&v[0]] {
		s.t.Fatal("released a vector twice, or one that belongs to the caller")
	}
	delete(s.live, &v[0])
	for i := range v {
		v[i] = math.NaN() // any use after release shows
	}
}

// wantLive checks how many vectors are still held.
func (s *tracked) wantLive(n int) {
	s.t.Helper()
	if len(s.live) != n {
		s.t.Errorf("%d vectors still held, want %d", len(s.live), n)
	}
}

func wantClose(t *testing.T, what string, got, want []float64, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d elements, want %d", what, len(got), len(want))
	}
	for i := range got {
		if !(math.Abs(got[i]-want[i]) <= tolerance) {
			t.Fatalf("%s[%d] = %.15g, want %.15g within %g", what, i, got[i], want[i], tolerance)
		}
	}
}

func wantNear(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s = %.15g, want %.15g within %g", what, got, want, tolerance)
	}
}
