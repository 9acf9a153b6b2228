package onnx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// wireType says how a field's content is stored (Protocol Buffers, "Encoding").
type wireType int

const (
	varint  wireType = 0
	fixed64 wireType = 1
	blob    wireType = 2 // bytes, text, a message or packed numbers, after their length
	fixed32 wireType = 5
)

// field is one field of a message. Its bytes are part of the file's, not copied.
type field struct {
	number int
	kind   wireType
	value  uint64 // of the three kinds of numbers
	bytes  []byte // of a blob
}

var errTruncated = errors.New("a field reaches beyond the end of what contains it")

// fields calls visit for each field of a message, in the order of the file. It never copies, and needs no memory of its
// own; a message inside a message is a blob for the visitor to take apart.
func fields(message []byte, visit func(f field) error) error {
	for len(message) > 0 {
		tag, n := binary.Uvarint(message)
		if n <= 0 {
			return errTruncated
		}
		message = message[n:]
		number := tag >> 3
		if number == 0 || number > 1<<29-1 {
			return fmt.Errorf("a field has the number %d, which no message has", number)
		}
		f := field{number: int(number), kind: wireType(tag & 7)}
		switch f.kind {
		case varint:
			if f.value, n = binary.Uvarint(message); n <= 0 {
				return errTruncated
			}
		case fixed64:
			if n = 8; len(message) < n {
				return errTruncated
			}
			f.value = binary.LittleEndian.Uint64(message)
		case fixed32:
			if n = 4; len(message) < n {
				return errTruncated
			}
			f.value = uint64(binary.LittleEndian.Uint32(message))
		case blob:
			length, m := binary.Uvarint(message)
			if m <= 0 || length > uint64(len(message)-m) {
				return errTruncated
			}
			f.bytes = message[m : m+int(length)]
			n = m + int(length)
		default:
			return fmt.Errorf("field %d has the wire type %d, which ONNX does not use", number, f.kind)
		}
		message = message[n:]
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

// want returns an error unless the field is of a kind.
func (f field) want(kind wireType, name string) error {
	if f.kind != kind {
		return fmt.Errorf("the field %q has the wire type %d instead of %d", name, f.kind, kind)
	}
	return nil
}

// text sets a string.
func (f field) text(name string, to *string) error {
	if err := f.want(blob, name); err != nil {
		return err
	}
	*to = string(f.bytes)
	return nil
}

// integer sets a number.
func (f field) integer(name string, to *int64) error {
	if err := f.want(varint, name); err != nil {
		return err
	}
	*to = int64(f.value)
	return nil
}

// integers appends repeated varints, packed or one by one.
func (f field) integers(name string, to *[]int64) error {
	if f.kind == varint {
		*to = append(*to, int64(f.value))
		return nil
	}
	if err := f.want(blob, name); err != nil {
		return err
	}
	for rest := f.bytes; len(rest) > 0; {
		v, n := binary.Uvarint(rest)
		if n <= 0 {
			return errTruncated
		}
		*to = append(*to, int64(v))
		rest = rest[n:]
	}
	return nil
}

// floats appends repeated float32s, packed or one by one.
func (f field) floats(name string, to *[]float32) error {
	if f.kind == fixed32 {
		*to = append(*to, math.Float32frombits(uint32(f.value)))
		return nil
	}
	if err := f.want(blob, name); err != nil {
		return err
	}
	if len(f.bytes)%4 != 0 {
		return fmt.Errorf("the field %q has %d bytes, no multiple of 4", name, len(f.bytes))
	}
	for i := 0; i < len(f.bytes); i += 4 {
		*to = append(*to, math.Float32frombits(binary.LittleEndian.Uint32(f.bytes[i:])))
	}
	return nil
}

// doubles appends repeated float64s, packed or one by one, rounded to float32.
func (f field) doubles(name string, to *[]float32) error {
	if f.kind == fixed64 {
		*to = append(*to, float32(math.Float64frombits(f.value)))
		return nil
	}
	if err := f.want(blob, name); err != nil {
		return err
	}
	if len(f.bytes)%8 != 0 {
		return fmt.Errorf("the field %q has %d bytes, no multiple of 8", name, len(f.bytes))
	}
	for i := 0; i < len(f.bytes); i += 8 {
		*to = append(*to, float32(math.Float64frombits(binary.LittleEndian.Uint64(f.bytes[i:]))))
	}
	return nil
}

// entry sets the value of a key (StringStringEntryProto).
func (f field) entry(name string, to map[string]string) error {
	if err := f.want(blob, name); err != nil {
		return err
	}
	var key, value string
	err := fields(f.bytes, func(f field) error {
		switch f.number {
		case 1:
			return f.text("key", &key)
		case 2:
			return f.text("value", &value)
		}
		return nil
	})
	to[key] = value
	return err
}
