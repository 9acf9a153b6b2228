package unlearn

import (
	"context"
	"math"
	"runtime"
	"sync"
)

// matrix is a weight of an attention, rows one after another. Its numbers are float32s, so that what is saved is what
// goes on.
type matrix struct {
	rows, columns int
	a             []float64
}

func newMatrix(values []float32, rows, columns int) *matrix {
	m := &matrix{rows: rows, columns: columns, a: make([]float64, len(values))}
	for i, x := range values {
		m.a[i] = float64(x)
	}
	return m
}

func (m *matrix) row(i int) []float64 { return m.a[i*m.columns : (i+1)*m.columns] }

func (m *matrix) float32s() []float32 {
	out := make([]float32, len(m.a))
	for i, x := range m.a {
		out[i] = float32(x)
	}
	return out
}

// apply is Wx.
func (m *matrix) apply(x []float64) []float64 {
	out := make([]float64, m.rows)
	for i := range out {
		out[i] = dot(m.row(i), x)
	}
	return out
}

// addTransposed adds Wᵀy to out.
func (m *matrix) addTransposed(y, out []float64) {
	for i, v := range y {
		axpy(v, m.row(i), out)
	}
}

// pair is a token of what is forgotten and the token that it is to mean.
type pair struct{ from, to []float64 }

// aligned pairs the tokens from the last word on, to the end of the padding: last word with last word, and what follows
// with what follows. Words before the last have no part in it, as the last one's embedding has seen them.
func aligned(p, replace prompt) []pair {
	n := len(p.tokens) - max(p.last, replace.last)
	var out []pair
	for i := range n {
		out = append(out, pair{from: p.tokens[p.last+i], to: replace.tokens[replace.last+i]})
	}
	return out
}

func identical(tokens [][]float64) []pair {
	var out []pair
	for _, c := range tokens {
		out = append(out, pair{c, c})
	}
	return out
}

// closedFormEdit is the minimiser, for each W, of
//
//	a Σ ‖W'c − Wc*‖² + b Σ ‖W'k − Wk‖² + λ‖W' − W‖²
//
// over pairs (c, c*) and preserved tokens k (Gandikota et al. 2024, equation 7, with a, b and λ):
//
//	W' = W (a Σ c*cᵀ + b Σ kkᵀ + λI) M⁻¹,     M = a Σ ccᵀ + b Σ kkᵀ + λI
//	   = W + a Σ W(c* − c) (M⁻¹c)ᵀ
//
// The second line is what is computed: M is the same for all layers and is factored once, and where nothing is forgotten
// W stays as it is to the last bit. The results are rounded to float32.
func closedFormEdit(ctx context.Context, layers []*matrix, pairs []pair, preserve [][]float64, lambda, a, b float64) ([]*matrix, error) {
	m := scaledIdentity(layers[0].columns, lambda)
	for _, p := range pairs {
		m.addOuter(a, p.from)
	}
	for _, k := range preserve {
		m.addOuter(b, k)
	}
	if err := m.factor(); err != nil {
		return nil, err
	}
	changes := make([]pair, len(pairs)) // c* − c, and a·M⁻¹c
	for i, p := range pairs {
		difference, solved := make([]float64, m.n), make([]float64, m.n)
		for k := range m.n {
			difference[k], solved[k] = p.to[k]-p.from[k], a*p.from[k]
		}
		m.solve(solved)
		changes[i] = pair{difference, solved}
	}
	out := make([]*matrix, len(layers))
	err := inParallel(ctx, len(layers), func(l int) {
		w := layers[l]
		next := &matrix{rows: w.rows, columns: w.columns, a: make([]float64, len(w.a))}
		for i := range w.rows {
			row, was := next.row(i), w.row(i)
			copy(row, was)
			for _, c := range changes {
				axpy(dot(was, c.from), c.to, row)
			}
			for k, x := range row {
				row[k] = float64(float32(x))
			}
		}
		out[l] = next
	})
	return out, err
}

// addGrams adds Σ WᵀW, some rows of it at a time, so that they stay in the processor's cache while the weights pass by.
func addGrams(ctx context.Context, m symmetric, layers []*matrix) error {
	const together = 16
	return inParallel(ctx, (m.n+together-1)/together, func(block int) {
		for _, w := range layers {
			for r := range w.rows {
				row := w.row(r)
				for i := block * together; i < min((block+1)*together, m.n); i++ {
					axpy(row[i], row[:i+1], m.row(i))
				}
			}
		}
	})
}

// inParallel calls f for 0 … n−1. Each call writes only what is its own, so that the result does not depend on how many
// run at once.
func inParallel(ctx context.Context, n int, f func(i int)) error {
	var group sync.WaitGroup
	workers := min(n, runtime.GOMAXPROCS(0))
	for w := range workers {
		group.Go(func() {
			for i := w; i < n && ctx.Err() == nil; i += workers {
				f(i)
			}
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// relativeError is the root of Σ‖W'c − Wc*‖² / Σ‖Wc*‖² over layers and pairs.
func relativeError(ctx context.Context, edited, before []*matrix, pairs []pair) (float64, error) {
	off, whole := make([]float64, len(edited)), make([]float64, len(edited))
	err := inParallel(ctx, len(edited), func(l int) {
		for _, p := range pairs {
			want := before[l].apply(p.to)
			whole[l] += dot(want, want)
			for i, x := range edited[l].apply(p.from) {
				off[l] += (x - want[i]) * (x - want[i])
			}
		}
	})
	return ratio(sum(off), sum(whole)), err
}

func sum(x []float64) float64 {
	total := 0.0
	for _, v := range x {
		total += v
	}
	return total
}

// relativeChange is ‖W' − W₀‖/‖W₀‖ over all layers.
func relativeChange(edited, original []*matrix) float64 {
	off, whole := 0.0, 0.0
	for l, w := range edited {
		for i, x := range w.a {
			d := x - original[l].a[i]
			off, whole = off+d*d, whole+original[l].a[i]*original[l].a[i]
		}
	}
	return ratio(off, whole)
}

// ratio is the root of off/whole; 0 where both are nothing.
func ratio(off, whole float64) float64 {
	if off == 0 {
		return 0
	}
	return math.Sqrt(off / whole)
}
