package weights

import (
	"fmt"
	"slices"
)

// As returns the tensor's values in another floating-point type, rounded to nearest, ties to even; the tensor itself if
// it has that type already. It returns an error for integers, and for a finite value that is beyond the range of dtype.
func (t *Tensor) As(dtype DType) (*Tensor, error) {
	if t.DType == dtype {
		return t, nil
	}
	if t.DType == F64 { // not by way of float32, which would round twice
		values, err := t.Float64()
		if err != nil {
			return nil, err
		}
		return fromFloats(t.Name, dtype, t.Shape, values)
	}
	values, err := t.Float32()
	if err != nil {
		return nil, err
	}
	return fromFloats(t.Name, dtype, t.Shape, values)
}

// Reshaped returns the same elements under another shape, shared and not copied. It returns an error if their number
// differs.
func (t *Tensor) Reshaped(shape ...int) (*Tensor, error) {
	r := *t
	r.Shape = slices.Clone(shape)
	if err := r.check(); err != nil {
		return nil, err
	}
	return &r, nil
}

// Rows returns rows from … to−1 along the first dimension, shared and not copied. It returns an error if the tensor is a
// scalar or has fewer rows.
func (t *Tensor) Rows(from, to int) (*Tensor, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	if len(t.Shape) == 0 || from < 0 || from > to || to > t.Shape[0] {
		return nil, fmt.Errorf("tensor %q of shape %v has no rows %d … %d", t.Name, t.Shape, from, to)
	}
	r := *t
	r.Shape = slices.Clone(t.Shape)
	r.Shape[0] = to - from
	row := 0
	if t.Shape[0] > 0 {
		row = len(t.data) / t.Shape[0]
	}
	r.data = t.data[from*row : to*row : to*row]
	return &r, nil
}

// Transposed returns a copy of a matrix with rows and columns exchanged. It returns an error for other ranks, and if the
// file under the tensor shrank since it was opened.
func (t *Tensor) Transposed() (*Tensor, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	if len(t.Shape) != 2 {
		return nil, fmt.Errorf("tensor %q of shape %v is no matrix to transpose", t.Name, t.Shape)
	}
	rows, columns, size := t.Shape[0], t.Shape[1], t.DType.Size()
	data := make([]byte, len(t.data))
	err := t.file.guard(func() error {
		for i := range rows {
			for j := range columns {
				copy(data[(j*rows+i)*size:][:size], t.data[(i*columns+j)*size:])
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return New(t.Name, t.DType, []int{columns, rows}, data)
}

// Stacked returns a copy of tensors laid one after the other along their first dimension. It returns an error if there
// are none, if types or other dimensions differ, and if a file under one shrank since it was opened.
func Stacked(name string, tensors ...*Tensor) (*Tensor, error) {
	if len(tensors) == 0 || len(tensors[0].Shape) == 0 {
		return nil, fmt.Errorf("tensor %q: there is nothing to stack", name)
	}
	first := tensors[0]
	shape := slices.Clone(first.Shape)
	shape[0] = 0
	var data []byte
	for _, t := range tensors {
		if t.DType != first.DType || len(t.Shape) == 0 || !slices.Equal(t.Shape[1:], first.Shape[1:]) {
			return nil, fmt.Errorf("tensor %q: %s %s %v does not stack on %s %s %v", name, t.Name, t.DType, t.Shape, first.Name, first.DType, first.Shape)
		}
		if err := t.check(); err != nil {
			return nil, err
		}
		if err := t.file.guard(func() error {
			data = append(data, t.data...)
			return nil
		}); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
		}
		shape[0] += t.Shape[0]
	}
	return New(name, first.DType, shape, data)
}
