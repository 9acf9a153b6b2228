package ad

import (
	"fmt"
	"math"
	"testing"

	"github.com/gomlx/compute/dtypes"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// half is a network layer in bfloat16 with parameters in float32: a convolution, a normalising function in float32, scores
// and their softmax, and a product with a factor stored the other way round.
func half(in []*Value) *Value {
	p := Precision{Factors: dtypes.BFloat16, Result: dtypes.BFloat16}
	wide := Precision{Factors: dtypes.BFloat16, Result: dtypes.Float32}
	x := Convert(in[0], dtypes.BFloat16)              // [2, 4, 4, 8]
	x = Conv2DIn(p, x, Scale(in[1], 0.1), Same(3, 1)) // scores of about one
	x = InFloat32(func(a, q []*Value) *Value {
		return Mul(Mul(a[0], Sigmoid(a[0])), BroadcastTo(q[0], a[0].Dims()...))
	}, []*Value{x}, in[2:3])
	x = Add(x, Scale(Upsample2(SumBlocks2(x)), 0.3))
	x = Reshape(x, 2, 16, 8)
	x = MatMul(SoftmaxTo(MatMulIn(wide, x, x, false, true), dtypes.BFloat16), x, false, false)
	x = MatMulIn(wide, Reshape(x, 32, 8), in[3], false, true)
	return MatMulIn(p, in[4], x, true, false)
}

var halfShapes = [][]int{{2, 4, 4, 8}, {8, 3, 3, 8}, {1, 1, 1, 8}, {6, 8}, {32, 5}}

func TestHalfPrecision(t *testing.T) {
	n := len(halfShapes)
	results := map[string][][]float64{}
	for _, l := range lowerings {
		for _, dtype := range []dtypes.DType{dtypes.Float64, dtypes.Float32} {
			e := open(t)
			fn, err := compile(e, "half", l, func(_ *Tape, in []*Value) []*Value {
				for i := range in {
					in[i] = Convert(in[i], dtype)
				}
				f := half
				if dtype == dtypes.Float64 {
					f = inFloat64
				}
				y := scalar(Convert(f(in[:n]), dtype))
				out := append(append([]*Value{y}, Gradient(y, in[:n]...)...), HessianProduct(y, in[:n], in[n:])...)
				for i := range out {
					if i > 0 && out[i].DType() != dtype {
						t.Errorf("derivative %d is %s, its parameter %s", i, out[i].DType(), dtype)
					}
					out[i] = Convert(out[i], dtypes.Float64)
				}
				return out
			})
			if err != nil {
				t.Fatal(err)
			}
			s := random.New(1, "half")
			inputs := make([]*engine.Tensor, 0, 2*n)
			for range 2 {
				for _, shape := range halfShapes {
					inputs = append(inputs, normals(s, shape...))
				}
			}
			out, err := fn.Call(inputs...)
			if err != nil {
				t.Fatal(err)
			}
			key := fmt.Sprintf("%s, %+v", dtype, l)
			for _, x := range out {
				results[key] = append(results[key], float64s(t, x))
			}
			e.Close()
		}
	}
	for _, l := range lowerings {
		want := results[fmt.Sprintf("%s, %+v", dtypes.Float64, l)]
		for i, got := range results[fmt.Sprintf("%s, %+v", dtypes.Float32, l)] {
			sum, square := 0.0, 0.0
			for k := range got {
				sum += (got[k] - want[i][k]) * (got[k] - want[i][k])
				square += want[i][k] * want[i][k]
			}
			e := math.Sqrt(sum / square)
			t.Logf("%+v, result %d: %.2g", l, i, e)
			if !(e < 0.05) || e < 1e-6 {
				t.Errorf("%+v: result %d differs by %g of its length", l, i, e)
			}
		}
	}
}

// inFloat64 is half without a rounding.
func inFloat64(in []*Value) *Value {
	x := Conv2D(in[0], Scale(in[1], 0.1), Same(3, 1))
	x = Mul(Mul(x, Sigmoid(x)), BroadcastTo(in[2], x.Dims()...))
	x = Add(x, Scale(Upsample2(SumBlocks2(x)), 0.3))
	x = Reshape(x, 2, 16, 8)
	x = MatMul(Softmax(MatMul(x, x, false, true)), x, false, false)
	x = MatMul(Reshape(x, 32, 8), in[3], false, true)
	return MatMul(in[4], x, true, false)
}

// Sums of half precision are added up in float32, and numbers that scale are not rounded.
func TestHalfPrecisionRoundsOnce(t *testing.T) {
	e := open(t)
	defer e.Close()
	fn, err := Compile(e, "sums", func(_ *Tape, in []*Value) []*Value {
		x := Convert(in[0], dtypes.BFloat16)
		return []*Value{Convert(SumTo(x, 1), dtypes.Float64), Convert(Scale(x, 1.0/3), dtypes.Float64)}
	})
	if err != nil {
		t.Fatal(err)
	}
	ones := make([]float64, 3000)
	for i := range ones {
		ones[i] = 1.5
	}
	out, err := fn.Call(engine.Float64s(ones, len(ones)))
	if err != nil {
		t.Fatal(err)
	}
	// Added up in bfloat16 it would get stuck at 512.
	if sum := float64s(t, out[0])[0]; math.Abs(sum-4500) > 16 {
		t.Errorf("3000 × 1.5 is %v", sum)
	}
	// A third is not a number of bfloat16, half is.
	if x := float64s(t, out[1])[0]; x != 0.5 {
		t.Errorf("a third of 1.5 is %v", x)
	}
}
