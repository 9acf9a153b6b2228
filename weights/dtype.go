package weights

import (
	"fmt"
	"strings"
)

// DType is the type of a tensor's elements. Elements are stored little-endian. The zero DType is not a valid type.
type DType uint8

// The element types that can be read and written; their names in files are those of the safetensors format. They are in
// the order in which its reference writer stores tensors, wide ones first.
const (
	I64 DType = iota + 1 // two's complement integers
	F64                  // IEEE 754 binary64
	F32                  // IEEE 754 binary32
	I32
	BF16 // the upper half of a binary32
	F16  // IEEE 754 binary16
	I16
	I8
	U8   // unsigned byte
	Bool // one byte, 0 or 1
)

var dtypes = [...]struct {
	name string
	size int
}{
	I64: {"I64", 8}, F64: {"F64", 8}, F32: {"F32", 4}, I32: {"I32", 4}, BF16: {"BF16", 2}, F16: {"F16", 2}, I16: {"I16", 2},
	I8: {"I8", 1}, U8: {"U8", 1}, Bool: {"BOOL", 1},
}

// ParseDType returns the type that a safetensors file calls name, such as "F16" or "BOOL".
func ParseDType(name string) (DType, error) {
	var known []string
	for d := I64; d.valid(); d++ {
		if dtypes[d].name == name {
			return d, nil
		}
		known = append(known, dtypes[d].name)
	}
	return 0, fmt.Errorf("dtype %q is not supported; use one of %s", name, strings.Join(known, ", "))
}

func (d DType) valid() bool { return d >= I64 && int(d) < len(dtypes) }

// String returns the safetensors name of the type.
func (d DType) String() string {
	if !d.valid() {
		return fmt.Sprintf("DType(%d)", uint8(d))
	}
	return dtypes[d].name
}

// Size returns the bytes one element takes, 0 for an invalid type.
func (d DType) Size() int {
	if !d.valid() {
		return 0
	}
	return dtypes[d].size
}

// IsFloat reports whether elements of the type are floating-point numbers.
func (d DType) IsFloat() bool { return d == F64 || d == F32 || d == F16 || d == BF16 }
