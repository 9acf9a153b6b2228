package engine

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/gobackend"
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
	err := Read(t, func(values []float32) error {
		out = append(make([]float32, 0, len(values)), values...)
		return nil
	})
	return out, err
}

// Read shows the numbers of a float32 tensor, which are only valid, and not to be changed, until use returns; an error of use
// is returned as it is. On the Go engine nothing is copied. The graph library's own reading would leave a copy of whatever
// was computed behind, for as long as the tensor lives.
func Read(t *Tensor, use func(values []float32) error) error {
	if err := t.CheckValid(); err != nil {
		return err
	}
	if t.DType() != dtypes.Float32 {
		return fmt.Errorf("%w: tensor holds %s, not float32", ErrInternal, t.DType())
	}
	if t.IsShared() || t.HasLocal() {
		var failed error
		if err := t.ConstFlatData(func(flat any) { failed = use(flat.([]float32)) }); err != nil {
			return err
		}
		return failed
	}
	backend, err := t.Backend()
	if err != nil {
		return err
	}
	device, err := t.Device()
	if err != nil {
		return err
	}
	buffer, err := t.Buffer(backend, device)
	if err != nil {
		return err
	}
	if backend.String() == gobackend.BackendName {
		flat, err := buffer.Data()
		if err != nil {
			return err
		}
		return use(flat.([]float32))
	}
	values := make([]float32, t.Size())
	if err := buffer.ToFlatData(values); err != nil {
		return err
	}
	return use(values)
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
