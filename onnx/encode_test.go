package onnx

import (
	"encoding/binary"
	"slices"
)

// Messages for tests, by the numbers of their fields.

func numberField(field int, v int64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(field)<<3), uint64(v))
}

func textField(field int, s string) []byte {
	out := binary.AppendUvarint(nil, uint64(field)<<3|uint64(blob))
	return append(binary.AppendUvarint(out, uint64(len(s))), s...)
}

func message(field int, parts ...[]byte) []byte {
	return textField(field, string(slices.Concat(parts...)))
}

func nodeBytes(op, name, input, output string) []byte {
	return message(1, textField(1, input), textField(2, output), textField(3, name), textField(4, op))
}

// graphOnly is a model with the input x and the output y, without a version of its operators.
func graphOnly(parts ...[]byte) []byte {
	float := message(2, message(1, numberField(1, 1)))
	parts = append(slices.Clone(parts), message(11, textField(1, "x"), float), message(12, textField(1, "y"), float))
	return slices.Concat(numberField(1, 8), message(7, parts...))
}

func model(parts ...[]byte) []byte {
	return append(graphOnly(parts...), message(8, numberField(2, 17))...)
}
