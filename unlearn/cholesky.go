package unlearn

import (
	"fmt"
	"math"
)

// symmetric is a symmetric positive definite n×n matrix, or its Cholesky factor L, A = LLᵀ: rows one after another, of
// which only what is on and below the diagonal counts.
type symmetric struct {
	n int
	a []float64
}

// scaledIdentity is s·I.
func scaledIdentity(n int, s float64) symmetric {
	m := symmetric{n: n, a: make([]float64, n*n)}
	for i := range n {
		m.a[i*n+i] = s
	}
	return m
}

func (m symmetric) row(i int) []float64 { return m.a[i*m.n : (i+1)*m.n] }

// addOuter adds w·xxᵀ.
func (m symmetric) addOuter(w float64, x []float64) {
	for i, xi := range x {
		axpy(w*xi, x[:i+1], m.row(i))
	}
}

// factor replaces A by L.
func (m symmetric) factor() error {
	for i := range m.n {
		ri := m.row(i)
		for j := range i {
			rj := m.row(j)
			ri[j] = (ri[j] - dot(ri[:j], rj[:j])) / rj[j]
		}
		d := ri[i] - dot(ri[:i], ri[:i])
		// Not above zero, or not a number.
		if !(d > 0) || math.IsInf(d, 0) {
			return fmt.Errorf("the equations of the edit are singular in row %d of %d; raise edit.lambda (or edit.regularization)", i+1, m.n)
		}
		ri[i] = math.Sqrt(d)
	}
	return nil
}

// solve replaces b by A⁻¹b, given the factor L: first Ly = b, then Lᵀx = y.
func (m symmetric) solve(b []float64) {
	for i := range m.n {
		r := m.row(i)
		b[i] = (b[i] - dot(r[:i], b[:i])) / r[i]
	}
	for i := m.n - 1; i >= 0; i-- {
		r := m.row(i)
		b[i] /= r[i]
		axpy(-b[i], r[:i], b)
	}
}

func dot(x, y []float64) float64 {
	sum := 0.0
	for i, v := range x {
		sum += v * y[i]
	}
	return sum
}

// axpy adds a·x to the beginning of y.
func axpy(a float64, x, y []float64) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += a * v
	}
}
