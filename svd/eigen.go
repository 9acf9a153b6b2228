package svd

import (
	"fmt"
	"math"
	"runtime"
	"sync"
)

// eigenvectors returns those of the symmetric matrix a [n, n], which it overwrites, as rows.
func eigenvectors(a []float64, n int) ([]float64, error) {
	diagonal, beside, rows := tridiagonalise(a, n)
	if err := diagonalise(diagonal, beside, rows, n); err != nil {
		return nil, err
	}
	return rows, nil
}

// reflector is I − factor·v·vᵀ, where v is zero before its first element.
type reflector struct {
	first  int
	v      []float64
	factor float64
}

// tridiagonalise finds an orthogonal Q with QᵀAQ tridiagonal: its diagonal, the numbers beside it, and the rows of Qᵀ
// (Golub and Van Loan, Matrix Computations, 4th ed., section 8.3.1).
func tridiagonalise(a []float64, n int) (diagonal, beside, rows []float64) {
	diagonal, beside = make([]float64, n), make([]float64, max(0, n-1))
	var reflectors []reflector
	for k := 0; k < n-2; k++ {
		column := a[k*n+k+1 : (k+1)*n] // the row, which is the same
		h, length := householder(column)
		h.first = k + 1
		beside[k] = length
		if h.factor != 0 {
			conjugate(a, n, h)
		}
		reflectors = append(reflectors, h)
	}
	for i := range n {
		diagonal[i] = a[i*n+i]
	}
	if n > 1 {
		beside[n-2] = a[(n-2)*n+n-1]
	}
	rows = make([]float64, n*n)
	for i := range n {
		rows[i*n+i] = 1
	}
	for i := len(reflectors) - 1; i >= 0; i-- {
		h := reflectors[i]
		if h.factor == 0 {
			continue
		}
		inParallel(n-h.first, 1+cheap/len(h.v), func(from, to int) {
			for r := h.first + from; r < h.first+to; r++ {
				row := rows[r*n+h.first : (r+1)*n]
				add(row, h.v, -h.factor*dot(row, h.v))
			}
		})
	}
	return diagonal, beside, rows
}

// householder is the reflector that maps x to a multiple, length, of the first coordinate vector.
func householder(x []float64) (h reflector, length float64) {
	h.v = append([]float64(nil), x...)
	rest := dot(x[1:], x[1:])
	if rest == 0 {
		return h, x[0]
	}
	length = -math.Copysign(math.Sqrt(x[0]*x[0]+rest), x[0])
	h.v[0] -= length
	h.factor = 2 / (h.v[0]*h.v[0] + rest)
	return h, length
}

// conjugate replaces the lower right block A of a, which begins at h.first, by H·A·H = A − v·wᵀ − w·vᵀ.
func conjugate(a []float64, n int, h reflector) {
	m := len(h.v)
	w := make([]float64, m)
	row := func(i int) []float64 { return a[(h.first+i)*n+h.first:][:m] }
	inParallel(m, 1+cheap/m, func(from, to int) {
		for i := from; i < to; i++ {
			w[i] = h.factor * dot(row(i), h.v)
		}
	})
	add(w, h.v, -h.factor/2*dot(w, h.v))
	inParallel(m, 1+cheap/m, func(from, to int) {
		for i := from; i < to; i++ {
			r, x, y := row(i), h.v[i], w[i]
			for j, v := range h.v {
				r[j] -= x*w[j] + y*v
			}
		}
	})
}

// rotation mixes rows i and i+1.
type rotation struct {
	row  int
	c, s float64
}

// diagonalise makes a tridiagonal matrix diagonal by implicitly shifted QR steps (Golub and Van Loan, section 8.3.3–5) and
// does to the rows what they do to its own.
func diagonalise(diagonal, beside, rows []float64, n int) error {
	norm := 0.0
	for i, d := range diagonal {
		norm = max(norm, math.Abs(d))
		if i < n-1 {
			norm = max(norm, math.Abs(beside[i]))
		}
	}
	// A symmetric matrix of this norm is known to no more than this; what the squared condition number makes of it is
	// polished afterwards.
	negligible := norm * 0x1p-54
	var steps []rotation
	apply := func() {
		turn(rows, n, steps)
		steps = steps[:0]
	}
	left := 60 * n
	for end := n - 1; end > 0; {
		if math.Abs(beside[end-1]) <= negligible {
			end--
			continue
		}
		if left--; left < 0 {
			return fmt.Errorf("svd: the eigenvalues of a matrix of %d×%d do not converge", n, n)
		}
		begin := end - 1
		for begin > 0 && math.Abs(beside[begin-1]) > negligible {
			begin--
		}
		steps = qrStep(diagonal, beside, begin, end, steps)
		if len(steps) > 4*n {
			apply()
		}
	}
	apply()
	return nil
}

// qrStep is one implicit QR step with Wilkinson's shift on the block begin … end; it appends its rotations to steps.
func qrStep(d, e []float64, begin, end int, steps []rotation) []rotation {
	half := (d[end-1] - d[end]) / 2
	last := e[end-1]
	shift := d[end] - last*last/(half+math.Copysign(math.Hypot(half, last), half))
	x, z := d[begin]-shift, e[begin]
	for k := begin; k < end; k++ {
		r := math.Hypot(x, z)
		c, s := 1.0, 0.0
		if r > 0 {
			c, s = x/r, z/r
		}
		if k > begin {
			e[k-1] = r
		}
		a, b, off := d[k], d[k+1], e[k]
		d[k] = c*c*a + 2*c*s*off + s*s*b
		d[k+1] = s*s*a - 2*c*s*off + c*c*b
		e[k] = c*s*(b-a) + (c*c-s*s)*off
		if x = e[k]; k < end-1 {
			z = s * e[k+1]
			e[k+1] *= c
		}
		steps = append(steps, rotation{k, c, s})
	}
	return steps
}

// stripe is how many columns are turned at once, so that the rows under way stay in the processor's cache.
const stripe = 128

// turn applies rotations to the rows of a matrix with n columns.
func turn(rows []float64, n int, steps []rotation) {
	if len(steps) == 0 {
		return
	}
	inParallel((n+stripe-1)/stripe, 1+cheap/(stripe*len(steps)), func(from, to int) {
		for k := from; k < to; k++ {
			a, b := k*stripe, min(n, (k+1)*stripe)
			for _, t := range steps {
				rotate(rows[t.row*n+a:t.row*n+b], rows[(t.row+1)*n+a:(t.row+1)*n+b], t.c, t.s)
			}
		}
	})
}

// rotate is (x, y) ↦ (c·x + s·y, c·y − s·x).
func rotate(x, y []float64, c, s float64) {
	y = y[:len(x)]
	for i, v := range x {
		w := y[i]
		x[i], y[i] = c*v+s*w, c*w-s*v
	}
}

func dot(x, y []float64) float64 {
	y = y[:len(x)]
	var a, b, c, d float64 // four sums, so that no addition waits for the one before
	i := 0
	for ; i+4 <= len(x); i += 4 {
		a += x[i] * y[i]
		b += x[i+1] * y[i+1]
		c += x[i+2] * y[i+2]
		d += x[i+3] * y[i+3]
	}
	for ; i < len(x); i++ {
		a += x[i] * y[i]
	}
	return (a + b) + (c + d)
}

// add is x += f·y.
func add(x, y []float64, f float64) {
	y = y[:len(x)]
	for i := range x {
		x[i] += f * y[i]
	}
}

// cheap is how many numbers a thread should have to touch before it is worth starting.
const cheap = 1 << 15

// inParallel covers 0 … n by calls of f on several threads, each for at least the given number. What f computes must not
// depend on how the range is cut.
func inParallel(n, least int, f func(from, to int)) {
	parts := min(runtime.GOMAXPROCS(0), n/least)
	if parts < 2 {
		f(0, n)
		return
	}
	var wait sync.WaitGroup
	for p := range parts {
		wait.Go(func() { f(p*n/parts, (p+1)*n/parts) })
	}
	wait.Wait()
}
