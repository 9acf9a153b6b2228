package score

import (
	"errors"
	"math"
	"runtime"
	"sync"
)

// symmetric is a symmetric n×n matrix in float64, both halves stored, row by row.
type symmetric struct {
	n      int
	values []float64
}

func newSymmetric(n int) symmetric { return symmetric{n, make([]float64, n*n)} }

func (m symmetric) row(i int) []float64 { return m.values[i*m.n : (i+1)*m.n : (i+1)*m.n] }

func (m symmetric) trace() float64 {
	sum := 0.0
	for i := range m.n {
		sum += m.row(i)[i]
	}
	return sum
}

// eachPart splits 0 … n−1 among the processors. The parts must not depend on each other.
func eachPart(n int, do func(from, to int)) {
	parts := min(runtime.GOMAXPROCS(0), n)
	if parts <= 1 {
		do(0, n)
		return
	}
	var wait sync.WaitGroup
	for p := range parts {
		wait.Go(func() { do(p*n/parts, (p+1)*n/parts) })
	}
	wait.Wait()
}

// products writes a·bᵀ of rows of equal length: out[i·len(b)+j] = ⟨a[i], b[j]⟩, or adds it to what is there.
func products(out []float64, a, b [][]float64, add bool) {
	if !add {
		clear(out)
	}
	if len(a) == 0 || len(b) == 0 {
		return
	}
	const tile = 64   // rows of b that are reused from the cache
	const depth = 512 // columns that are taken at once
	length := len(a[0])
	eachPart((len(a)+3)/4, func(from, to int) {
		for k := 0; k < length; k += depth {
			end := min(k+depth, length)
			for j := 0; j < len(b); j += tile {
				for i := 4 * from; i < min(4*to, len(a)); i += 4 {
					productTile(out, a, b, i, min(i+4, len(a)), j, min(j+tile, len(b)), k, end)
				}
			}
		}
	})
}

// productTile adds columns k … end−1 of the products of up to four rows of a with rows of b.
func productTile(out []float64, a, b [][]float64, i, iEnd, j, jEnd, k, end int) {
	width := len(b)
	if iEnd-i < 4 {
		for ; i < iEnd; i++ {
			for j := j; j < jEnd; j++ {
				out[i*width+j] += dot(a[i][k:end], b[j][k:end])
			}
		}
		return
	}
	a0 := a[i][k:end]
	a1, a2, a3 := a[i+1][k:end][:len(a0)], a[i+2][k:end][:len(a0)], a[i+3][k:end][:len(a0)]
	for ; j+1 < jEnd; j += 2 {
		b0, b1 := b[j][k:end][:len(a0)], b[j+1][k:end][:len(a0)]
		var s00, s01, s10, s11, s20, s21, s30, s31 float64
		for t, u := range a0 {
			x, y := b0[t], b1[t]
			s00 += u * x
			s01 += u * y
			u = a1[t]
			s10 += u * x
			s11 += u * y
			u = a2[t]
			s20 += u * x
			s21 += u * y
			u = a3[t]
			s30 += u * x
			s31 += u * y
		}
		row := out[i*width+j:]
		row[0] += s00
		row[1] += s01
		row = row[width:]
		row[0] += s10
		row[1] += s11
		row = row[width:]
		row[0] += s20
		row[1] += s21
		row = row[width:]
		row[0] += s30
		row[1] += s31
	}
	for ; j < jEnd; j++ {
		for r := i; r < iEnd; r++ {
			out[r*width+j] += dot(a[r][k:end], b[j][k:end])
		}
	}
}

// dot is the inner product of vectors of equal length, in four interleaved sums.
func dot(a, b []float64) float64 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float64
	i := 0
	for ; i+3 < len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + (s2 + s3)
}

var errIndefinite = errors.New("the matrix has negative eigenvalues, so it is no covariance")

// factor returns rows f of length n with m ≈ fᵀ·f, as many as m has rank: the Cholesky decomposition with pivots, largest
// first. What is left of m is rounding error: below n·ε of its largest variance, or for a matrix that was stored with fewer
// digits of the size of the negative remainders that these cause. A matrix with clearly negative eigenvalues is an error.
func (m symmetric) factor() ([][]float64, error) {
	left := make([]float64, m.n) // the variances that are not explained yet
	largest := 0.0
	for i := range left {
		left[i] = m.row(i)[i]
		largest = max(largest, left[i])
	}
	tolerance := float64(m.n) * 0x1p-52 * largest
	byPlace := make([][]float64, m.n) // one row of growing length for each row of m: the factor's columns
	for i := range byPlace {
		byPlace[i] = make([]float64, 0, 64)
	}
	rank, lowest := 0, 0.0
	for ; rank < m.n; rank++ {
		pivot := 0
		for i, v := range left {
			if v > left[pivot] {
				pivot = i
			}
			lowest = min(lowest, v)
		}
		if lowest < -1e-5*largest {
			return nil, errIndefinite
		}
		if left[pivot] <= max(tolerance, -10*lowest) {
			break
		}
		root := math.Sqrt(left[pivot])
		pivotRow, column := byPlace[pivot], m.row(pivot)
		eachPart(m.n, func(from, to int) {
			for i := from; i < to; i++ {
				v := (column[i] - dot(pivotRow, byPlace[i][:rank])) / root
				byPlace[i] = append(byPlace[i], v)
				left[i] -= v * v
			}
		})
		left[pivot] = 0
	}
	factor := make([][]float64, rank)
	for k := range factor {
		factor[k] = make([]float64, m.n)
		for i := range m.n {
			factor[k][i] = byPlace[i][k]
		}
	}
	return factor, nil
}

// eigenvalues returns the eigenvalues of m, in no order, and overwrites m: Householder's reduction to a tridiagonal matrix,
// then the QL algorithm with implicit shifts (Golub and Van Loan, Matrix Computations, 8.3).
func (m symmetric) eigenvalues() ([]float64, error) {
	diagonal, beside := m.tridiagonal()
	return diagonal, qlEigenvalues(diagonal, beside)
}

// tridiagonal reduces m, and returns the diagonal and what stands beside it, beside[i] between i and i+1. Every step
// applies the reflection of the step before to a row and multiplies that row by the next one's vector, in one pass.
func (m symmetric) tridiagonal() (diagonal, beside []float64) {
	n := m.n
	diagonal, beside = make([]float64, n), make([]float64, n)
	v, w := make([]float64, n), make([]float64, n) // m ← m − v·wᵀ − w·vᵀ is still to be done
	next, product := make([]float64, n), make([]float64, n)
	for k := range n {
		row := m.row(k)
		for j := k; j < n; j++ {
			row[j] -= v[k]*w[j] + w[k]*v[j]
		}
		diagonal[k] = row[k]
		if k == n-1 {
			break
		}
		// The reflection 1 − next·nextᵀ/h takes the rest of the row to its first element.
		tail := row[k+1:]
		copy(next[k+1:], tail)
		norm := math.Sqrt(dot(tail, tail))
		h := 0.0
		if rest := dot(tail[1:], tail[1:]); rest > 0 {
			if tail[0] > 0 {
				norm = -norm
			}
			h = norm * (norm - tail[0])
			next[k+1] = tail[0] - norm
			beside[k] = norm
		} else {
			beside[k] = tail[0]
		}
		eachPart(n-k-1, func(from, to int) {
			x, y, z := v[k+1:], w[k+1:], next[k+1:]
			for i := k + 1 + from; i < k+1+to; i++ {
				vi, wi := v[i], w[i]
				r := m.row(i)[k+1:]
				x, y, z := x[:len(r)], y[:len(r)], z[:len(r)]
				sum := 0.0
				for j, value := range r {
					value -= vi*y[j] + wi*x[j]
					r[j] = value
					sum += value * z[j]
				}
				product[i] = sum
			}
		})
		if h == 0 {
			clear(v)
			clear(w)
			continue
		}
		along := dot(product[k+1:], next[k+1:]) / (2 * h * h)
		for i := k + 1; i < n; i++ {
			v[i] = next[i]
			w[i] = product[i]/h - along*next[i]
		}
	}
	return diagonal, beside
}

// qlEigenvalues turns the diagonal of a tridiagonal matrix into its eigenvalues.
func qlEigenvalues(d, e []float64) error {
	n := len(d)
	for l := range n {
		for iteration := 0; ; iteration++ {
			end := l
			for end < n-1 && math.Abs(e[end]) > 0x1p-53*(math.Abs(d[end])+math.Abs(d[end+1])) {
				end++
			}
			if end == l {
				break
			}
			if iteration == 100 {
				return errors.New("the eigenvalues were not found: the matrix holds values that are not numbers")
			}
			g := (d[l+1] - d[l]) / (2 * e[l])
			g = d[end] - d[l] + e[l]/(g+math.Copysign(math.Hypot(g, 1), g))
			s, c, p := 1.0, 1.0, 0.0
			i := end - 1
			for ; i >= l; i-- {
				f, b := s*e[i], c*e[i]
				r := math.Hypot(f, g)
				e[i+1] = r
				if r == 0 {
					d[i+1] -= p
					e[end] = 0
					break
				}
				s, c = f/r, g/r
				g = d[i+1] - p
				r = (d[i]-g)*s + 2*c*b
				p = s * r
				d[i+1] = g + p
				g = c*r - b
			}
			if i >= l {
				continue
			}
			d[l] -= p
			e[l] = g
			e[end] = 0
		}
	}
	return nil
}
