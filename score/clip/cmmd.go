package clip

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// The constants of CMMD's kernel, exp(−|x − y|²/2σ²), and the factor of its result (google-research, cmmd/distance.py).
const (
	cmmdSigma = 10
	cmmdScale = 1000
)

// CMMD is the distance of two sets of pictures (Jayasumana et al. 2024, "Rethinking FID", arXiv:2401.09603): 1000 times the
// squared maximum mean discrepancy of their embeddings by ViT-L/14@336px, normalised, with a Gaussian kernel of σ = 10. Like
// the paper's code it is the biased estimate: the means are over all pairs, and a picture makes a pair with itself.
//
// The embeddings are those of [Model.Embed] with the transform [CropFirst]; they are normalised here. Each set has at least
// one, and all have equal width. Products are computed in blocks on the engine, sums in float64.
func CMMD(ctx context.Context, e *engine.Engine, x, y [][]float32) (float64, error) {
	if len(x) == 0 || len(y) == 0 {
		return 0, fmt.Errorf("CMMD compares two sets of pictures, but they have %d and %d", len(x), len(y))
	}
	width := len(x[0])
	a, err := unitRows(x, width)
	if err != nil {
		return 0, err
	}
	b, err := unitRows(y, width)
	if err != nil {
		return 0, err
	}
	product, err := ad.Shared(e, "CMMD products", "CMMD's products", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return []*ad.Value{ad.MatMul(in[0], in[1], false, true)}
	})
	if err != nil {
		return 0, err
	}
	defer product.Free()
	mean := func(a, b []float32) (float64, error) { return meanKernel(ctx, product, a, b, width) }
	xx, err := mean(a, a)
	if err != nil {
		return 0, err
	}
	yy, err := mean(b, b)
	if err != nil {
		return 0, err
	}
	xy, err := mean(a, b)
	return cmmdScale * (xx + yy - 2*xy), err
}

// unitRows lays embeddings one after the other, each of length one.
func unitRows(x [][]float32, width int) ([]float32, error) {
	rows := make([]float32, 0, len(x)*width)
	for i, row := range x {
		length := norm(row)
		if len(row) != width || !(length > 0) {
			return nil, fmt.Errorf("CMMD: embedding %d has %d numbers (expected %d) and the length %v; embed all pictures with the same model", i, len(row), width, length)
		}
		for _, v := range row {
			rows = append(rows, float32(float64(v)/length))
		}
	}
	return rows, nil
}

// meanKernel is the mean of the kernel over all pairs of rows of a and b. What matters are its small deviations from one, so
// those are summed.
func meanKernel(ctx context.Context, product *engine.Function, a, b []float32, width int) (float64, error) {
	const block = 1024
	rows, columns := len(a)/width, len(b)/width
	side := min(block, max(rows, columns)) // blocks are filled up to one size
	cut := func(values []float32, from, count int) (*engine.Tensor, []float64) {
		part := make([]float32, side*width)
		copy(part, values[from*width:min(from+side, count)*width])
		squares := make([]float64, side)
		for i := range squares {
			n := norm(part[i*width : (i+1)*width])
			squares[i] = n * n
		}
		return engine.Float32s(part, side, width), squares
	}
	sum := 0.0
	for i := 0; i < rows; i += side {
		left, leftSquares := cut(a, i, rows)
		for j := 0; j < columns; j += side {
			if ctx.Err() != nil {
				engine.Free(left)
				return 0, context.Cause(ctx)
			}
			right, rightSquares := cut(b, j, columns)
			values, err := callForValues(product, left, right)
			engine.Free(right)
			if err != nil {
				engine.Free(left)
				return 0, err
			}
			for p := range min(side, rows-i) {
				for q := range min(side, columns-j) {
					distance := leftSquares[p] + rightSquares[q] - 2*float64(values[p*side+q])
					sum += math.Expm1(-distance / (2 * cmmdSigma * cmmdSigma))
				}
			}
		}
		engine.Free(left)
	}
	return sum / float64(rows) / float64(columns), nil
}

func callForValues(f *engine.Function, inputs ...*engine.Tensor) ([]float32, error) {
	outputs, err := f.Call(inputs...)
	if err != nil {
		return nil, err
	}
	defer engine.Free(outputs...)
	return engine.Values(outputs[0])
}
