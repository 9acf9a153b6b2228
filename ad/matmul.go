package ad

import (
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
)

// MatMul multiplies matrices in the last two axes; leading axes must agree. With transposeA the left one is stored as
// [K, M], with transposeB the right one as [N, K].
func MatMul(a, b *Value, transposeA, transposeB bool) *Value {
	return MatMulIn(Precision{a.DType(), a.DType()}, a, b, transposeA, transposeB)
}

// MatMulIn is MatMul of matrices of any types, in the given precision.
func MatMulIn(p Precision, a, b *Value, transposeA, transposeB bool) *Value {
	rank := a.Rank()
	if rank < 2 || b.Rank() != rank || !slices.Equal(a.Dims()[:rank-2], b.Dims()[:rank-2]) {
		panic(fmt.Errorf("ad: cannot multiply matrices %v and %v", a.Dims(), b.Dims()))
	}
	t := a.tape
	product := t.matMul(t.convert(a.node, p.Factors), t.convert(b.node, p.Factors), p.Result, transposeA, transposeB)
	return t.value(product, func(v *Value, i int) *Value {
		byA, byB := Precision{p.Factors, a.DType()}, Precision{p.Factors, b.DType()}
		switch {
		case i == 0 && !transposeA:
			return MatMulIn(byA, v, b, false, !transposeB)
		case i == 0:
			return MatMulIn(byA, b, v, transposeB, true)
		case !transposeB:
			return MatMulIn(byB, a, v, !transposeA, false)
		default:
			return MatMulIn(byB, v, a, true, transposeA)
		}
	}, a, b)
}

// matMul lowers a product, with the result in the given type. The backends take [M,K]·[K,N] and [M,K]·[N,K] as they lie.
// For [K,M]·[K,N] the Go backend would transpose both; here the cheaper of A or (B and the result) is transposed.
func (t *Tape) matMul(a, b *graph.Node, result dtypes.DType, transposeA, transposeB bool) *graph.Node {
	rank := a.Rank()
	batch := make([]int, rank-2)
	for i := range batch {
		batch[i] = i
	}
	product := func(a, b *graph.Node, contractA, contractB int) *graph.Node {
		return graph.Dot(a, b).WithOutputDType(result).General([]int{contractA}, batch, []int{contractB}, batch)
	}
	last, before := rank-1, rank-2
	contractB := before
	if transposeB {
		contractB = last
	}
	switch {
	case t.processor && transposeB && !transposeA && rank > 2 && b.Shape().Dimensions[before] >= broad:
		return product(a, t.apart(t.swapLast(b)), last, before)
	case t.processor && transposeA && !transposeB && rank > 2 && a.Shape().Dimensions[last] >= broad:
		return t.swapLast(t.apart(product(t.apart(t.swapLast(b)), a, last, before)))
	case !transposeA:
		return product(a, b, last, contractB)
	case t.native:
		return product(a, b, before, contractB)
	}
	if transposeB {
		return t.swapLast(product(b, a, last, before)) // (B·A)ᵀ
	}
	k, m, n := a.Shape().Dimensions[before], a.Shape().Dimensions[last], b.Shape().Dimensions[last]
	if k*m <= k*n+m*n {
		return product(t.swapLast(a), b, last, before)
	}
	return t.swapLast(product(t.swapLast(b), a, last, before))
}

// broad is the number of columns from which XLA on processors multiplies batches of matrices faster if the small factor is
// transposed before, by 5 times for attention over 32×32 pixels. Left to itself it takes the transposition back.
const broad = 512

// apart keeps XLA from merging what makes n with what uses it. go-xla lets barriers for a single array pass unheeded.
func (t *Tape) apart(n *graph.Node) *graph.Node { return graph.OptimizationBarriers(n, n)[0] }

// identityLimit is the width up to which a matrix product with the identity transposes faster than the Go backend's
// own loop: at width 64 8.6 against 1.3 GB/s, at 128 5.6, falling as 1/width. Products with ones and zeros are exact.
const identityLimit = 192

// swapLast transposes the last two axes.
func (t *Tape) swapLast(n *graph.Node) *graph.Node {
	dims := n.Shape().Dimensions
	rank := len(dims)
	rows, columns := dims[rank-2], dims[rank-1]
	perm := make([]int, rank)
	for i := range perm {
		perm[i] = i
	}
	perm[rank-2], perm[rank-1] = rank-1, rank-2
	if t.native || rank != 2 || columns > identityLimit || rows < 4*columns {
		return graph.TransposeAllAxes(n, perm...)
	}
	return graph.DotGeneral(t.identity(n, columns), []int{1}, nil, n, []int{1}, nil)
}

func (t *Tape) identity(like *graph.Node, width int) *graph.Node {
	return t.memoize(fmt.Sprintf("identity %s %d", like.DType(), width), func() *graph.Node {
		values := make([]float32, width*width)
		for i := range width {
			values[i*(width+1)] = 1
		}
		return t.constant(like.DType(), values, []int{width, width})
	})
}
