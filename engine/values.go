package engine

import (
	"fmt"

	"github.com/gomlx/gomlx/core/tensors"
)

// Float32s makes a float32 tensor of the given shape; values are copied.
func Float32s(values []float32, shape ...int) *Tensor {
	size := 1
	for _, d := range shape {
		size *= d
	}
	if size != len(values) {
		panic(fmt.Sprintf("engine: %d values do not fill shape %v", len(values), shape))
	}
	return tensors.FromFlatDataAndDimensions(values, shape...)
}

// Float64s makes a float64 tensor of the given shape; used where tests need more digits.
func Float64s(values []float64, shape ...int) *Tensor {
	return tensors.FromFlatDataAndDimensions(values, shape...)
}

// Int32s makes an int32 tensor of the given shape.
func Int32s(values []int32, shape ...int) *Tensor {
	return tensors.FromFlatDataAndDimensions(values, shape...)
}

// Scalar makes a float32 scalar.
func Scalar(value float64) *Tensor { return tensors.FromScalar(float32(value)) }

// Values copies a float32 tensor to the host.
func Values(t *Tensor) ([]float32, error) {
	var out []float32
	err := t.ConstFlatData(func(flat any) {
		if f, ok := flat.([]float32); ok {
			out = append(make([]float32, 0, len(f)), f...)
		}
	})
	if err != nil {
		return nil, err
	}
	if out == nil && t.Size() > 0 {
		return nil, fmt.Errorf("%w: tensor holds %s, not float32", ErrInternal, t.DType())
	}
	return out, nil
}

// ScalarValue reads a float32 or float64 scalar.
func ScalarValue(t *Tensor) (float64, error) {
	var out float64
	ok := false
	err := t.ConstFlatData(func(flat any) {
		switch f := flat.(type) {
		case []float32:
			if len(f) == 1 {
				out, ok = float64(f[0]), true
			}
		case []float64:
			if len(f) == 1 {
				out, ok = f[0], true
			}
		}
	})
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("%w: %s is not a float scalar", ErrInternal, t.Shape())
	}
	return out, nil
}

// Shape returns a tensor's dimensions.
func Shape(t *Tensor) []int { return t.Shape().Dimensions }
