package diagnose

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/hypergrad"
)

// ritz is an end of a spectrum as Lanczos' method finds it: a value within the spectrum, and ‖Hy − value·y‖ for its unit
// vector y, so that H has an eigenvalue that near.
type ritz struct{ value, residual float64 }

// roundingShare is the share of the spectral radius below which a vector of float32 arithmetic is noise.
const roundingShare = 1e-6

// lanczos finds both ends of the spectrum of a symmetric H at once, from a random start and at most iterations products
// (Lanczos 1950; Golub and Van Loan, section 10.1). Power iteration finds only the end that is larger in magnitude, and
// the other one hardly: nearly all eigenvalues of a network's Hessian are close to zero, so that shifting the large end away
// leaves nothing to tell the small one by.
//
// Three vectors are held at a time. Nothing is orthogonalised again; what rounding then does is find ends a second time.
func lanczos[V any](ctx context.Context, space hypergrad.Space[V], product hypergrad.Product[V], start V, iterations int, tolerance float64) (low, high ritz, products int, err error) {
	square, err := space.Dot(start, start)
	if err != nil {
		return low, high, 0, err
	}
	v, err := space.Combine(hypergrad.Term[V]{Coefficient: 1 / math.Sqrt(square), Vector: start})
	if err != nil {
		return low, high, 0, err
	}
	held := []V{v} // the last two vectors
	defer func() {
		for _, v := range held {
			space.Release(v)
		}
	}()
	var alpha, beta []float64
	for len(alpha) < iterations {
		if ctx.Err() != nil {
			return low, high, len(alpha), context.Cause(ctx)
		}
		v := held[len(held)-1]
		next, a, b, err := lanczosStep(space, product, held, beta)
		if err != nil {
			return low, high, len(alpha), fmt.Errorf("spectrum, product %d: %w", len(alpha)+1, err)
		}
		alpha = append(alpha, a)
		low, high = ritzEnds(alpha, beta, b)
		radius := math.Max(math.Abs(low.value), math.Abs(high.value))
		done := low.residual <= tolerance*math.Abs(low.value) && high.residual <= tolerance*math.Abs(high.value)
		if done || b <= roundingShare*radius || len(alpha) == iterations {
			space.Release(next)
			break
		}
		unit, err := space.Combine(hypergrad.Term[V]{Coefficient: 1 / b, Vector: next})
		space.Release(next)
		if err != nil {
			return low, high, len(alpha), err
		}
		beta = append(beta, b)
		if len(held) == 2 {
			space.Release(held[0])
		}
		held = []V{v, unit}
	}
	return low, high, len(alpha), nil
}

// lanczosStep returns w = Hv − αv − βu for the last vectors u and v of the recurrence, α = ⟨v, Hv⟩, and ‖w‖.
func lanczosStep[V any](space hypergrad.Space[V], product hypergrad.Product[V], held []V, beta []float64) (w V, alpha, length float64, err error) {
	v := held[len(held)-1]
	h, err := product(v)
	if err != nil {
		return w, 0, 0, err
	}
	defer space.Release(h)
	if alpha, err = space.Dot(v, h); err != nil {
		return w, 0, 0, err
	}
	terms := []hypergrad.Term[V]{{Coefficient: 1, Vector: h}, {Coefficient: -alpha, Vector: v}}
	if len(beta) > 0 {
		terms = append(terms, hypergrad.Term[V]{Coefficient: -beta[len(beta)-1], Vector: held[0]})
	}
	if w, err = space.Combine(terms...); err != nil {
		return w, 0, 0, err
	}
	square, err := space.Dot(w, w)
	if err == nil && (math.IsNaN(square+alpha) || math.IsInf(square+alpha, 0)) {
		err = &hypergrad.NonFiniteError{What: "H·v", Value: square}
	}
	if err != nil {
		space.Release(w)
		return w, 0, 0, err
	}
	return w, alpha, math.Sqrt(square), nil
}

// ritzEnds are the outermost eigenvalues of the tridiagonal matrix of a recurrence, whose next off-diagonal element would
// be next.
func ritzEnds(alpha, beta []float64, next float64) (low, high ritz) {
	n := len(alpha)
	matrix := make([][]float64, n)
	for i := range matrix {
		matrix[i] = make([]float64, n)
		matrix[i][i] = alpha[i]
		if i > 0 {
			matrix[i][i-1], matrix[i-1][i] = beta[i-1], beta[i-1]
		}
	}
	values, vectors := eigen(matrix)
	for i, x := range values {
		end := ritz{x, math.Abs(next * vectors[n-1][i])}
		if i == 0 || x < low.value {
			low = end
		}
		if i == 0 || x > high.value {
			high = end
		}
	}
	return low, high
}

// eigen is the eigenvalues of a small symmetric matrix, which it overwrites, and its eigenvectors as columns, by Jacobi's
// rotations.
func eigen(a [][]float64) (values []float64, vectors [][]float64) {
	n := len(a)
	vectors = make([][]float64, n)
	for i := range vectors {
		vectors[i] = make([]float64, n)
		vectors[i][i] = 1
	}
	const sweeps = 60 // five to ten are needed
	for range sweeps {
		off, diagonal := 0.0, 0.0
		for i := range n {
			diagonal += a[i][i] * a[i][i]
			for j := range i {
				off += a[i][j] * a[i][j]
			}
		}
		if off <= 1e-30*diagonal {
			break
		}
		for p := range n {
			for q := range p {
				rotate(a, vectors, q, p)
			}
		}
	}
	for i := range n {
		values = append(values, a[i][i])
	}
	return values, vectors
}

// rotate turns the plane of p and q so that a[p][q] becomes zero.
func rotate(a, vectors [][]float64, p, q int) {
	if a[p][q] == 0 {
		return
	}
	theta := (a[q][q] - a[p][p]) / (2 * a[p][q])
	t := 1 / (math.Abs(theta) + math.Hypot(theta, 1))
	if theta < 0 {
		t = -t
	}
	c := 1 / math.Hypot(t, 1)
	s := t * c
	for k := range a {
		x, y := a[k][p], a[k][q]
		a[k][p], a[k][q] = c*x-s*y, s*x+c*y
	}
	for k := range a {
		x, y := a[p][k], a[q][k]
		a[p][k], a[q][k] = c*x-s*y, s*x+c*y
		x, y = vectors[k][p], vectors[k][q]
		vectors[k][p], vectors[k][q] = c*x-s*y, s*x+c*y
	}
}
