package weights

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Write stores tensors and metadata as the safetensors file path.
//
// The file's bytes depend on the tensors and the metadata alone, not on their order: they are sorted by type,
// wider ones first, so that every tensor is aligned, then by name, as the format's reference writer does. The file
// appears whole or not at all: it is written beside path, flushed to disk and renamed; if anything fails, the error names path, the unfinished file is removed
// and a file that was there before is untouched.
func Write(path string, tensors []*Tensor, metadata map[string]string) error {
	for _, t := range tensors {
		if err := t.check(); err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
	}
	return WriteDeferred(path, DeferAll(tensors), metadata)
}

// encodeHeader returns the header of a file with the tensors in this order, its length in front, padded with spaces to a
// multiple of 8 bytes.
func encodeHeader(tensors []Deferred, metadata map[string]string) ([]byte, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 8))
	b.WriteByte('{')
	for i, key := range slices.Sorted(maps.Keys(metadata)) {
		if i == 0 {
			b.WriteString(`"__metadata__":{`)
		} else {
			b.WriteByte(',')
		}
		if err := quote(&b, key); err != nil {
			return nil, fmt.Errorf("metadata key: %w", err)
		}
		b.WriteByte(':')
		if err := quote(&b, metadata[key]); err != nil {
			return nil, fmt.Errorf("metadata %q: %w", key, err)
		}
	}
	if len(metadata) > 0 {
		b.WriteByte('}')
	}
	seen := make(map[string]bool, len(tensors))
	offset := uint64(0)
	for _, t := range tensors {
		if _, ok := elements(t.Shape); !ok || !t.DType.valid() {
			return nil, fmt.Errorf("tensor %q: %s %v is no valid type and shape", t.Name, t.DType, t.Shape)
		}
		if seen[t.Name] || t.Name == "__metadata__" {
			return nil, fmt.Errorf("tensor %q: the name is taken; give every tensor its own name", t.Name)
		}
		seen[t.Name] = true
		if b.Len() > len("12345678{") {
			b.WriteByte(',')
		}
		if err := quote(&b, t.Name); err != nil {
			return nil, fmt.Errorf("tensor name: %w", err)
		}
		b.WriteString(`:{"dtype":"` + t.DType.String() + `","shape":[`)
		for i, dim := range t.Shape {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(strconv.Itoa(dim))
		}
		end := offset + uint64(t.Bytes())
		fmt.Fprintf(&b, `],"data_offsets":[%d,%d]}`, offset, end)
		offset = end
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	if b.Len()-8 > maxHeader {
		return nil, fmt.Errorf("names and metadata take %d bytes, above the format's limit of %d; store fewer or shorter ones", b.Len()-8, maxHeader)
	}
	header := b.Bytes()
	binary.LittleEndian.PutUint64(header, uint64(len(header)-8))
	return header, nil
}

func quote(b *bytes.Buffer, s string) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("%q is not valid UTF-8; use plain text", s)
	}
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return err
	}
	b.Truncate(b.Len() - 1) // the encoder's newline
	return nil
}
