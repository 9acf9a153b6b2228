package nn

import (
	"fmt"
	"math"

	"github.com/resalign/resalign/ad"
)

// Attention is multi-head scaled dot-product attention of queries q [B, N, heads·D] over keys and values
// [B, M, heads·D]. A mask [N, M], if given, is added to the scores. Of queries, keys and values of half precision the
// scores and their softmax are float32, and the result is of their type.
func Attention(q, k, v *ad.Value, heads int, mask *ad.Value) *ad.Value {
	batch, n, width := q.Dim(0), q.Dim(1), q.Dim(2)
	if width%heads != 0 {
		panic(fmt.Errorf("nn: %d heads do not divide width %d", heads, width))
	}
	scale := 1 / math.Sqrt(float64(width/heads))
	scores := ad.MatMulIn(ad.Precision{Factors: q.DType(), Result: ToFloat32(q).DType()}, splitHeads(ad.Scale(q, scale), heads), splitHeads(k, heads), false, true)
	if mask != nil {
		m := mask.Dims()
		scores = ad.Add(scores, ad.Reshape(mask, 1, m[0], m[1]))
	}
	mixed := ad.MatMul(ad.SoftmaxTo(scores, v.DType()), splitHeads(v, heads), false, false)
	d := width / heads
	return ad.Reshape(ad.Transpose(ad.Reshape(mixed, batch, heads, n, d), 0, 2, 1, 3), batch, n, width)
}

// splitHeads turns [B, N, heads·D] into [B·heads, N, D].
func splitHeads(x *ad.Value, heads int) *ad.Value {
	batch, n, width := x.Dim(0), x.Dim(1), x.Dim(2)
	d := width / heads
	return ad.Reshape(ad.Transpose(ad.Reshape(x, batch, n, heads, d), 0, 2, 1, 3), batch*heads, n, d)
}

// CausalMask is the mask [n, n] under which position i sees positions 0 … i. It takes its data type from like.
func CausalMask(like *ad.Value, n int) *ad.Value {
	values := make([]float32, n*n)
	for i := range n {
		for j := i + 1; j < n; j++ {
			values[i*n+j] = -math.MaxFloat32 / 2 // leaves room for the scores added to it
		}
	}
	return like.Tape().Constant(like, values, n, n)
}
