package weights

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
)

// Tensor is a named array of numbers on the host, in row-major order.
//
// A tensor that came from a file is a view of the mapped file: reading it costs nothing until its values are asked for,
// and it stays readable after its [Source] is closed. Tensors are read-only.
type Tensor struct {
	Name  string
	DType DType
	Shape []int // no dimensions: a scalar

	data []byte   // little-endian elements
	file *mapping // what data is a view of, kept mapped as long as the tensor is reachable; nil if data is its own
}

// NewFloat32 returns an F32 tensor that holds a copy of values, in row-major order. Whether the number of values fits
// the shape is checked where the tensor is used: [Tensor.Float32] and [Write] return an error if it does not.
func NewFloat32(name string, shape []int, values []float32) *Tensor {
	data := make([]byte, 4*len(values))
	for i, v := range values {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(v))
	}
	return &Tensor{Name: name, DType: F32, Shape: slices.Clone(shape), data: data}
}

// New returns a tensor of any type from its raw little-endian bytes, which it keeps: do not change them afterwards.
// It returns an error if their number does not fit dtype and shape.
func New(name string, dtype DType, shape []int, data []byte) (*Tensor, error) {
	t := &Tensor{Name: name, DType: dtype, Shape: slices.Clone(shape), data: data}
	if err := t.check(); err != nil {
		return nil, err
	}
	return t, nil
}

// FromFloat32 returns a tensor of a floating-point dtype with the given values, rounded to nearest, ties to even.
// It returns an error for an integer dtype, for a number of values that does not fit the shape, and for a finite value
// that is beyond the range of dtype.
func FromFloat32(name string, dtype DType, shape []int, values []float32) (*Tensor, error) {
	return fromFloats(name, dtype, shape, values)
}

func fromFloats[T float32 | float64](name string, dtype DType, shape []int, values []T) (*Tensor, error) {
	if !dtype.IsFloat() {
		return nil, fmt.Errorf("tensor %q: cannot store floating-point values as %s; choose F64, F32, F16 or BF16", name, dtype)
	}
	data := make([]byte, dtype.Size()*len(values))
	if i := encodeFloats(data, dtype, values); i >= 0 {
		return nil, fmt.Errorf("tensor %q: value %g (element %d) is beyond the range of %s; choose a wider dtype", name, values[i], i, dtype)
	}
	return New(name, dtype, shape, data)
}

// Elements returns the number of elements that the shape describes, 1 for a scalar.
func (t *Tensor) Elements() int {
	n, ok := elements(t.Shape)
	if !ok {
		return 0
	}
	return n
}

// Float32 returns a fresh slice of the elements in row-major order, converted to float32: F32, F16 and BF16 exactly, F64
// rounded to nearest (beyond the range of float32 that is infinity). It returns an error for integer types, and if the file under the tensor shrank since it was opened.
func (t *Tensor) Float32() ([]float32, error) { return floats[float32](t) }

// Float64 is [Tensor.Float32] for float64, to which every floating-point type converts exactly.
func (t *Tensor) Float64() ([]float64, error) { return floats[float64](t) }

// Float32Into is [Tensor.Float32] into a slice of the caller's, which must have one element for each of the tensor's.
func (t *Tensor) Float32Into(values []float32) error {
	if err := t.checkFloats(); err != nil {
		return err
	}
	if n := t.Elements(); n != len(values) {
		return fmt.Errorf("tensor %q has %d elements, which do not fit into %d", t.Name, n, len(values))
	}
	return decodeInto(values, t)
}

func floats[T float32 | float64](t *Tensor) ([]T, error) {
	if err := t.checkFloats(); err != nil {
		return nil, err
	}
	values := make([]T, len(t.data)/t.DType.Size())
	if err := decodeInto(values, t); err != nil {
		return nil, err
	}
	return values, nil
}

// checkFloats is check for what needs floating-point numbers.
func (t *Tensor) checkFloats() error {
	if err := t.check(); err != nil {
		return err
	}
	if !t.DType.IsFloat() {
		return fmt.Errorf("tensor %q holds %s elements, not floating-point numbers; read its bytes instead", t.Name, t.DType)
	}
	return nil
}

func decodeInto[T float32 | float64](values []T, t *Tensor) error {
	err := t.file.guard(func() error {
		decodeFloats(values, t.DType, t.data)
		t.file.copied(t.data)
		return nil
	})
	if err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return nil
}

// Bytes returns a copy of the tensor's little-endian elements in row-major order, whatever their type. It returns an
// error if the file under the tensor shrank since it was opened.
func (t *Tensor) Bytes() ([]byte, error) {
	var data []byte
	err := t.file.guard(func() error {
		data = slices.Clone(t.data)
		t.file.copied(t.data)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return data, nil
}

// Renamed returns the same tensor under another name; the elements are shared, not copied.
func (t *Tensor) Renamed(name string) *Tensor {
	renamed := *t
	renamed.Name = name
	return &renamed
}

// check returns an error unless type, shape and number of bytes agree.
func (t *Tensor) check() error {
	if !t.DType.valid() {
		return fmt.Errorf("tensor %q has no valid dtype; create tensors with NewFloat32, FromFloat32 or New", t.Name)
	}
	n, ok := elements(t.Shape)
	if !ok {
		return fmt.Errorf("tensor %q: shape %v has a negative dimension or too many elements; give the shape of its values", t.Name, t.Shape)
	}
	if have := len(t.data) / t.DType.Size(); have != n || len(t.data)%t.DType.Size() != 0 {
		return fmt.Errorf("tensor %q: shape %v needs %d elements of %s, but there are %d bytes; make shape and values agree",
			t.Name, t.Shape, n, t.DType, len(t.data))
	}
	return nil
}

// maxRank bounds the number of dimensions; PyTorch and NumPy allow 64.
const maxRank = 64

// elements multiplies a shape's dimensions; ok is false if one is negative, if there are more than maxRank, or if the
// product (zeros left out) would overflow once multiplied by the largest element size.
func elements(shape []int) (n int, ok bool) {
	if len(shape) > maxRank {
		return 0, false
	}
	product, zero := uint64(1), false
	for _, dim := range shape {
		if dim < 0 {
			return 0, false
		}
		if dim == 0 {
			zero = true
			continue
		}
		var overflow uint64
		if overflow, product = bits.Mul64(product, uint64(dim)); overflow != 0 || product > math.MaxInt/8 {
			return 0, false
		}
	}
	if zero {
		return 0, true
	}
	return int(product), true
}

func decodeFloats[T float32 | float64](values []T, dtype DType, data []byte) {
	switch dtype {
	case F64:
		for i := range values {
			values[i] = T(math.Float64frombits(binary.LittleEndian.Uint64(data[8*i:])))
		}
	case F32:
		for i := range values {
			values[i] = T(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
		}
	case F16:
		for i := range values {
			values[i] = T(float32FromHalf(binary.LittleEndian.Uint16(data[2*i:])))
		}
	case BF16:
		for i := range values {
			values[i] = T(float32FromBfloat(binary.LittleEndian.Uint16(data[2*i:])))
		}
	}
}

// encodeFloats rounds values to dtype. It returns the index of the first finite value that dtype cannot hold, or -1.
func encodeFloats[T float32 | float64](data []byte, dtype DType, values []T) int {
	for i, v := range values {
		var infinite bool
		switch dtype {
		case F64:
			binary.LittleEndian.PutUint64(data[8*i:], math.Float64bits(float64(v)))
		case F32:
			binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(float32(v)))
			infinite = math.IsInf(float64(float32(v)), 0)
		case F16:
			h := halfFromFloat32(oddFloat32(float64(v)))
			binary.LittleEndian.PutUint16(data[2*i:], h)
			infinite = h&0x7fff == 0x7c00
		case BF16:
			b := bfloatFromFloat32(oddFloat32(float64(v)))
			binary.LittleEndian.PutUint16(data[2*i:], b)
			infinite = b&0x7fff == 0x7f80
		}
		if infinite && !math.IsInf(float64(v), 0) {
			return i
		}
	}
	return -1
}
