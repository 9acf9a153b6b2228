package score

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// Subsets says how the kernel inception distance is estimated: the mean over Count random subsets of Size pictures.
type Subsets struct {
	Count int
	Size  int // the number of pictures if there are fewer
	Seed  uint64
}

// DefaultSubsets are those of the paper and of the packages in use.
func DefaultSubsets() Subsets { return Subsets{Count: 100, Size: 1000} }

// Spread is a mean and the standard deviation of what it is the mean of.
type Spread struct{ Mean, SD float64 }

// KID is the kernel inception distance (Bińkowski et al. 2018, arXiv:1801.01401) between features x and y [pictures, n]:
// the squared maximum mean discrepancy under the kernel (⟨x, y⟩/n + 1)³, without bias, so that it may be negative. The
// subsets are drawn without replacement and follow from the seed.
func KID(ctx context.Context, e *engine.Engine, x, y [][]float32, s Subsets) (Spread, error) {
	size := min(s.Size, len(x), len(y))
	if size < 2 || s.Count < 1 {
		return Spread{}, fmt.Errorf("%d subsets of %d pictures give no kernel distance; there must be at least one of two", s.Count, size)
	}
	n := len(x[0])
	tables := make([]*engine.Tensor, 2)
	defer func() { engine.Free(tables...) }()
	for i, features := range [][][]float32{x, y} {
		flat := make([]float32, 0, len(features)*n)
		for _, f := range features {
			if len(f) != n {
				return Spread{}, fmt.Errorf("features of %d and %d numbers cannot be compared; both must come from one network", n, len(f))
			}
			flat = append(flat, f...)
		}
		tables[i] = engine.Float32s(flat, len(features), n)
	}
	kernels, err := ad.Compile(e, "kernel distance", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		a, b := ad.GatherRows(in[0], in[2]), ad.GatherRows(in[1], in[3])
		return []*ad.Value{kernelSums(a, a), kernelSums(b, b), kernelSums(a, b), kernelDiagonal(a), kernelDiagonal(b)}
	})
	if err != nil {
		return Spread{}, err
	}
	defer kernels.Free()
	var sum, squares float64
	for i := range s.Count {
		if err := ctx.Err(); err != nil {
			return Spread{}, err
		}
		v, err := subsetDistance(kernels, tables, s.Seed, i, size, len(x), len(y))
		if err != nil {
			return Spread{}, err
		}
		sum += v
		squares += v * v
	}
	mean := sum / float64(s.Count)
	if math.IsNaN(mean) || math.IsInf(mean, 0) {
		return Spread{}, fmt.Errorf("the features hold values that are not numbers; the weights of the network are damaged")
	}
	return Spread{mean, math.Sqrt(max(0, squares/float64(s.Count)-mean*mean))}, nil
}

// subsetDistance is the squared discrepancy of one pair of subsets.
func subsetDistance(kernels *engine.Function, tables []*engine.Tensor, seed uint64, subset, size, countX, countY int) (float64, error) {
	choose := func(which string, count int) *engine.Tensor {
		chosen := make([]int32, size)
		for i, p := range random.New(seed, "kernel distance", which, subset).Perm(count)[:size] {
			chosen[i] = int32(p)
		}
		return engine.Int32s(chosen, size)
	}
	a, b := choose("x", countX), choose("y", countY)
	defer engine.Free(a, b)
	results, err := kernels.Call(tables[0], tables[1], a, b)
	if err != nil {
		return 0, err
	}
	defer engine.Free(results...)
	var totals [5]float64 // of the kernel within x, within y and between them, and of the diagonals of the first two
	for i, r := range results {
		values, err := engine.Values(r)
		if err != nil {
			return 0, err
		}
		for _, v := range values {
			totals[i] += float64(v)
		}
	}
	m := float64(size)
	return (totals[0]-totals[3]+totals[1]-totals[4])/(m*(m-1)) - 2*totals[2]/(m*m), nil
}

// kernelSums is the kernel between rows of a and b, less one, summed over b: [rows of a]. The one cancels in the distance,
// and float32 keeps more digits without it.
func kernelSums(a, b *ad.Value) *ad.Value {
	k := cubeLessOne(ad.Scale(ad.MatMul(a, b, false, true), 1/float64(a.Dim(1))))
	return ad.SumTo(k, a.Dim(0), 1)
}

// kernelDiagonal is the kernel of each row with itself, less one.
func kernelDiagonal(a *ad.Value) *ad.Value {
	return cubeLessOne(ad.Scale(ad.SumTo(ad.Square(a), a.Dim(0), 1), 1/float64(a.Dim(1))))
}

// cubeLessOne is (s+1)³ − 1.
func cubeLessOne(s *ad.Value) *ad.Value {
	return ad.Mul(s, ad.AddNumber(ad.Mul(s, ad.AddNumber(s, 3)), 3))
}
