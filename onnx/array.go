package onnx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
)

// DType is the type of an array's elements, with ONNX's numbers.
type DType int32

// The types that can be read.
const (
	Float32  DType = 1
	Uint8    DType = 2
	Int8     DType = 3
	Uint16   DType = 4
	Int16    DType = 5
	Int32    DType = 6
	Int64    DType = 7
	Bool     DType = 9
	Float16  DType = 10
	Float64  DType = 11
	Uint32   DType = 12
	BFloat16 DType = 16
)

var dtypes = map[DType]struct {
	name string
	size int
}{
	Float32: {"float32", 4}, Uint8: {"uint8", 1}, Int8: {"int8", 1}, Uint16: {"uint16", 2}, Int16: {"int16", 2}, Int32: {"int32", 4},
	Int64: {"int64", 8}, Bool: {"bool", 1}, Float16: {"float16", 2}, Float64: {"float64", 8}, Uint32: {"uint32", 4}, BFloat16: {"bfloat16", 2},
}

// String is the type's name.
func (t DType) String() string {
	if d, ok := dtypes[t]; ok {
		return d.name
	}
	return "type " + strconv.Itoa(int(t))
}

// IsFloat tells whether elements are numbers with a fraction. All of them are kept, and computed with, as float32.
func (t DType) IsFloat() bool {
	return t == Float32 || t == Float16 || t == Float64 || t == BFloat16
}

// array is an array on the host: a weight, or what follows from shapes alone. It is not changed once made.
type array struct {
	dtype  DType
	dims   []int
	floats []float32 // the elements, if the type is a float's
	ints   []int64   // the elements otherwise; 0 and 1 for truth
}

// maxInts bounds arrays of whole numbers, and maxHost those that are computed while the program is built: they are shapes,
// indices and grids of anchors.
const (
	maxInts = 1 << 24
	maxHost = 1 << 24
)

func product(dims []int) int {
	n := 1
	for _, d := range dims {
		n *= d
	}
	return n
}

func (a *array) size() int { return product(a.dims) }

func floatArray(values []float32, dims ...int) *array {
	return &array{dtype: Float32, dims: dims, floats: values}
}

func intArray(values []int64, dims ...int) *array {
	return &array{dtype: Int64, dims: dims, ints: values}
}

// tensor reads a TensorProto.
func (d *decoder) tensor(message []byte) (*array, string, error) {
	a := &array{dims: []int{}}
	var (
		name             string
		dtype, location  int64
		dims, ints       []int64
		floats           []float32
		raw              []byte
		hasRaw           bool
		external         = map[string]string{}
		typed, externals int
	)
	err := fields(message, func(f field) error {
		switch f.number {
		case 1:
			return f.integers("dims", &dims)
		case 2:
			return f.integer("data_type", &dtype)
		case 4:
			typed++
			return f.floats("float_data", &floats)
		case 5, 7, 11:
			typed++
			return f.integers("int_data", &ints)
		case 8:
			return f.text("name", &name)
		case 9:
			raw, hasRaw = f.bytes, true
			return f.want(blob, "raw_data")
		case 10:
			typed++
			return f.doubles("double_data", &floats)
		case 13:
			if externals++; externals > 16 {
				return errors.New("a tensor has more than 16 notes on where its numbers are")
			}
			return f.entry("external_data", external)
		case 14:
			return f.integer("data_location", &location)
		}
		return nil
	})
	if err != nil {
		return nil, name, err
	}
	a.dtype = DType(dtype)
	known, ok := dtypes[a.dtype]
	if !ok {
		return nil, name, fmt.Errorf("the tensor %q has elements of %s, which are not read", name, a.dtype)
	}
	size := 1
	if len(dims) > maxRank {
		return nil, name, fmt.Errorf("the tensor %q has %d dimensions, more than %d", name, len(dims), maxRank)
	}
	for _, n := range dims {
		if n < 0 || n >= maxExtent || size*int(n) >= maxExtent {
			return nil, name, fmt.Errorf("the tensor %q has the shape %v, which is not possible", name, dims)
		}
		size *= int(n)
		a.dims = append(a.dims, int(n))
	}
	if !a.dtype.IsFloat() && size > maxInts {
		return nil, name, fmt.Errorf("the tensor %q has %d elements of %s; only floating-point weights can be that large", name, size, a.dtype)
	}
	if location == 1 {
		if raw, err = d.external(name, external, size*known.size); err != nil {
			return nil, name, err
		}
		hasRaw = true
	}
	if hasRaw {
		if len(raw) != size*known.size {
			return nil, name, fmt.Errorf("the tensor %q of shape %v has %d bytes instead of %d", name, a.dims, len(raw), size*known.size)
		}
		a.decode(raw, size)
		return a, name, nil
	}
	if typed == 0 && size > 0 {
		return nil, name, fmt.Errorf("the tensor %q of shape %v has no numbers", name, a.dims)
	}
	return a, name, a.adopt(name, floats, ints, size)
}

// external reads the numbers of a tensor from another file in the model's folder.
func (d *decoder) external(name string, entry map[string]string, size int) ([]byte, error) {
	location := entry["location"]
	if d.folder == nil {
		return nil, fmt.Errorf("the tensor %q is in the other file %q, which cannot be read from here; name the .onnx file in its folder", name, location)
	}
	if !filepath.IsLocal(location) {
		return nil, fmt.Errorf("the tensor %q is in %q, outside the folder of the model; put the file beside it", name, location)
	}
	offset := int64(0)
	if text := entry["offset"]; text != "" {
		var err error
		if offset, err = strconv.ParseInt(text, 10, 64); err != nil || offset < 0 {
			return nil, fmt.Errorf("the tensor %q is said to begin at %q of %q, which is no place", name, text, location)
		}
	}
	if text := entry["length"]; text != "" && text != strconv.Itoa(size) {
		return nil, fmt.Errorf("the tensor %q needs %d bytes of %q, but is said to have %s", name, size, location, text)
	}
	f, err := d.folder.Open(filepath.FromSlash(location))
	if err != nil {
		return nil, fmt.Errorf("the tensor %q: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("the tensor %q: %w", name, err)
	case !info.Mode().IsRegular() || offset > info.Size() || int64(size) > info.Size()-offset:
		return nil, fmt.Errorf("the tensor %q needs %d bytes from %d of %q, which has %d", name, size, offset, location, info.Size())
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(f, offset, int64(size)), raw); err != nil {
		return nil, fmt.Errorf("the tensor %q in %q: %w", name, location, err)
	}
	return raw, nil
}

// decode fills the array from little-endian bytes, whose number has been checked.
func (a *array) decode(raw []byte, size int) {
	le := binary.LittleEndian
	if a.dtype.IsFloat() {
		a.floats = make([]float32, size)
		for i := range a.floats {
			switch a.dtype {
			case Float32:
				a.floats[i] = math.Float32frombits(le.Uint32(raw[4*i:]))
			case Float64:
				a.floats[i] = float32(math.Float64frombits(le.Uint64(raw[8*i:])))
			case Float16:
				a.floats[i] = halfToFloat(le.Uint16(raw[2*i:]))
			default:
				a.floats[i] = math.Float32frombits(uint32(le.Uint16(raw[2*i:])) << 16)
			}
		}
		return
	}
	a.ints = make([]int64, size)
	for i := range a.ints {
		switch a.dtype {
		case Int64:
			a.ints[i] = int64(le.Uint64(raw[8*i:]))
		case Int32:
			a.ints[i] = int64(int32(le.Uint32(raw[4*i:])))
		case Uint32:
			a.ints[i] = int64(le.Uint32(raw[4*i:]))
		case Int16:
			a.ints[i] = int64(int16(le.Uint16(raw[2*i:])))
		case Uint16:
			a.ints[i] = int64(le.Uint16(raw[2*i:]))
		case Int8:
			a.ints[i] = int64(int8(raw[i]))
		default:
			a.ints[i] = int64(raw[i])
		}
	}
}

// adopt takes numbers that were written one by one. Halves are written as whole numbers with their bits.
func (a *array) adopt(name string, floats []float32, ints []int64, size int) error {
	switch {
	case a.dtype == Float16 || a.dtype == BFloat16:
		a.floats = make([]float32, 0, len(ints))
		for _, v := range ints {
			if a.dtype == Float16 {
				a.floats = append(a.floats, halfToFloat(uint16(v)))
			} else {
				a.floats = append(a.floats, math.Float32frombits(uint32(uint16(v))<<16))
			}
		}
	case a.dtype.IsFloat():
		a.floats = floats
	default:
		a.ints = ints
	}
	if n := len(a.floats) + len(a.ints); n != size {
		return fmt.Errorf("the tensor %q of shape %v has %d numbers instead of %d", name, a.dims, n, size)
	}
	return nil
}

// halfToFloat widens an IEEE half-precision number.
func halfToFloat(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10&31), uint32(h&1023)
	switch exponent {
	case 0:
		v := float32(fraction) / (1 << 24)
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31:
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}
