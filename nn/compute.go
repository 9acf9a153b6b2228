package nn

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"

	"github.com/resalign/resalign/ad"
)

// Compute is the type of numbers that a network computes in. Its parameters are float32 in any case.
type Compute string

const (
	// Float32 is what an empty Compute stands for as well.
	Float32 Compute = "float32"
	// BFloat16 rounds the factors of products of matrices and of convolutions, and what goes from one layer to the next, to
	// 8 significant bits. Sums within products, normalisations, softmax, activation functions, whatever depends on the
	// timestep alone, and the derivatives by parameters are float32.
	BFloat16 Compute = "bfloat16"
)

// Computes lists the types that can be computed in.
func Computes() []string { return []string{string(Float32), string(BFloat16)} }

// Check says whether the type is one of [Computes], or empty.
func (c Compute) Check() error {
	switch c {
	case "", Float32, BFloat16:
		return nil
	default:
		return fmt.Errorf("%q cannot be computed in; use %s or %s", string(c), Float32, BFloat16)
	}
}

// ComputeIn returns the weights for an evaluation in another type of numbers.
func (w *Weights) ComputeIn(c Compute) *Weights {
	if w.half() == (c == BFloat16) {
		return w
	}
	next := *w
	next.compute = c
	return &next
}

func (w *Weights) half() bool { return w.compute == BFloat16 }

// Activation brings a value to the type that the evaluation's layers hand on.
func (w *Weights) Activation(x *ad.Value) *ad.Value {
	if w.half() {
		return ad.Convert(x, dtypes.BFloat16)
	}
	return x
}

// ToFloat32 is x in float32, of whatever type it came.
func ToFloat32(x *ad.Value) *ad.Value {
	if x.DType().IsHalfPrecision() {
		return ad.Convert(x, dtypes.Float32)
	}
	return x
}

// precision is that of a layer's products on x. Where adapters are added the result stays wide until they are: their
// share is often too small for what was rounded already.
func (w *Weights) precision(x *ad.Value, adapted bool) ad.Precision {
	switch {
	case !w.half():
		return ad.Precision{Factors: x.DType(), Result: x.DType()}
	case adapted:
		return ad.Precision{Factors: dtypes.BFloat16, Result: dtypes.Float32}
	default:
		return ad.Precision{Factors: dtypes.BFloat16, Result: dtypes.BFloat16}
	}
}

// adapted tells whether an adapter sits on the layer.
func (w *Weights) adapted(path string) bool {
	for _, adapter := range w.adapters {
		if _, ok := adapter[path]; ok {
			return true
		}
	}
	return false
}

// elementwise is f of x, in float32 where x is of half precision.
func elementwise(x *ad.Value, f func(x *ad.Value) *ad.Value) *ad.Value {
	return ad.InFloat32(func(in, _ []*ad.Value) *ad.Value { return f(in[0]) }, []*ad.Value{x}, nil)
}
