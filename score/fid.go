package score

import (
	"errors"
	"fmt"
	"math"
)

// Statistics are the mean and the covariance of the features of a set of pictures, all that the Fréchet inception distance
// needs of it.
type Statistics struct {
	Mean       []float64 // [n]
	Covariance []float64 // [n, n], of the sample: divided by the number of pictures less one
}

// Moments computes the statistics of features [pictures, n], in float64. There must be at least two pictures.
func Moments(features [][]float32) (Statistics, error) {
	if len(features) < 2 {
		return Statistics{}, fmt.Errorf("the covariance of %d pictures is not defined; there must be at least two", len(features))
	}
	n := len(features[0])
	s := Statistics{Mean: make([]float64, n)}
	for _, f := range features {
		if len(f) != n {
			return Statistics{}, fmt.Errorf("features of %d and %d numbers cannot be pooled", n, len(f))
		}
		for i, v := range f {
			s.Mean[i] += float64(v)
		}
	}
	for i := range s.Mean {
		s.Mean[i] /= float64(len(features))
	}
	covariance := newSymmetric(n)
	const chunk = 1024 // pictures at a time: their features are laid out anew
	columns := make([][]float64, n)
	for from := 0; from < len(features); from += chunk {
		part := features[from:min(from+chunk, len(features))]
		for i := range columns {
			if columns[i] == nil {
				columns[i] = make([]float64, len(part))
			}
			columns[i] = columns[i][:len(part)]
			for k, f := range part {
				columns[i][k] = float64(f[i]) - s.Mean[i]
			}
		}
		// Half of it is enough: blocks of rows with themselves and those after them.
		const block = 128
		for i := 0; i < n; i += block {
			end := min(i+block, n)
			width := n - i
			sums := make([]float64, (end-i)*width)
			products(sums, columns[i:end], columns[i:], false)
			for r := range end - i {
				into := covariance.row(i + r)[i:]
				for j, v := range sums[r*width : (r+1)*width] {
					into[j] += v
				}
			}
		}
	}
	for i := range n {
		for j := i; j < n; j++ {
			v := covariance.row(i)[j] / float64(len(features)-1)
			covariance.row(i)[j], covariance.row(j)[i] = v, v
		}
	}
	s.Covariance = covariance.values
	return s, s.validate()
}

// validate returns what makes the statistics unusable.
func (s Statistics) validate() error {
	n := len(s.Mean)
	if n == 0 || len(s.Covariance) != n*n {
		return fmt.Errorf("a mean of %d numbers does not go with a covariance of %d", n, len(s.Covariance))
	}
	for _, values := range [][]float64{s.Mean, s.Covariance} {
		for _, v := range values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return errors.New("the features hold values that are not numbers; the weights of the network or the statistics are damaged")
			}
		}
	}
	m := symmetric{n, s.Covariance}
	for i := range n {
		if m.row(i)[i] < 0 {
			return errIndefinite
		}
		for j := range i {
			a, b := m.row(i)[j], m.row(j)[i]
			if math.Abs(a-b) > 1e-6*(math.Abs(a)+math.Abs(b))+1e-12 {
				return fmt.Errorf("the covariance is not symmetric: %v and %v stand across at row %d, column %d", a, b, i, j)
			}
		}
	}
	return nil
}

// Frechet is the Fréchet distance between two normal distributions, |μ₁−μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr √(Σ₁Σ₂) (Dowson and
// Landau 1982); of features of Inception it is the Fréchet inception distance (Heusel et al. 2017, arXiv:1706.08500).
//
// The trace of the root is exact: with Σ₁ = FᵀF it is the sum of the roots of the eigenvalues of FΣ₂Fᵀ, which is symmetric
// and has no negative ones. So there is no iteration that could fail on singular covariances, as of fewer pictures than
// features, and nothing is added to their diagonal; pytorch-fid adds 1e-6 where its matrix root does fail.
func Frechet(a, b Statistics) (float64, error) {
	for _, s := range []Statistics{a, b} {
		if err := s.validate(); err != nil {
			return 0, err
		}
	}
	n := len(a.Mean)
	if len(b.Mean) != n {
		return 0, fmt.Errorf("statistics of %d features cannot be compared with those of %d; both must come from one network", n, len(b.Mean))
	}
	first, second := symmetric{n, a.Covariance}, symmetric{n, b.Covariance}
	root, err := rootTrace(first, second)
	if err != nil {
		return 0, err
	}
	distance := first.trace() + second.trace() - 2*root
	for i, v := range a.Mean {
		distance += (v - b.Mean[i]) * (v - b.Mean[i])
	}
	return distance, nil
}

// rootTrace is tr √(ab) of two covariances.
func rootTrace(a, b symmetric) (float64, error) {
	factor, err := a.factor()
	if err != nil {
		return 0, err
	}
	other, err := b.factor()
	if err != nil {
		return 0, err
	}
	if len(other) < len(factor) { // the smaller rank is the smaller problem
		factor, b = other, a
	}
	rank := len(factor)
	rows := make([][]float64, b.n)
	for i := range rows {
		rows[i] = b.row(i)
	}
	half := make([]float64, rank*b.n) // factor·b
	products(half, factor, rows, false)
	halves := make([][]float64, rank)
	for i := range halves {
		halves[i] = half[i*b.n : (i+1)*b.n]
	}
	whole := newSymmetric(rank)
	products(whole.values, halves, factor, false)
	for i := range rank {
		for j := range i {
			v := (whole.row(i)[j] + whole.row(j)[i]) / 2
			whole.row(i)[j], whole.row(j)[i] = v, v
		}
	}
	eigenvalues, err := whole.eigenvalues()
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for _, v := range eigenvalues {
		sum += math.Sqrt(max(v, 0)) // rounding takes zeros below zero
	}
	return sum, nil
}
