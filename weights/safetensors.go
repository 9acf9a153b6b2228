package weights

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
)

// maxHeader is the longest safetensors header that is read, the limit that the format's reference reader sets.
const maxHeader = 100_000_000

// safetensorsFile is a parsed header over the file's content.
type safetensorsFile struct {
	path     string
	entries  map[string]headerEntry
	names    []string
	metadata map[string]string
	file     atomic.Pointer[mapping] // nil once closed
	body     []byte                  // what follows the header; only to be read while file is held
}

// looksLikeSafetensors recognises a plausible header length followed by the header's opening brace.
func looksLikeSafetensors(data []byte) bool {
	return len(data) > 8 && data[8] == '{' && binary.LittleEndian.Uint64(data) <= maxHeader
}

// Parse reads a safetensors file that is already in memory, and keeps data: do not change it. The name stands for the
// file's path in errors.
//
// The format's rules are enforced to the letter: an 8-byte header length, a JSON object without duplicate keys, tensors
// that cover the rest of the file without overlap or hole.
func Parse(data []byte, name string) (FileSource, error) {
	return parseSafetensors(&mapping{path: name, data: data})
}

func parseSafetensors(m *mapping) (FileSource, error) {
	const damaged = "download or export the file again"
	if len(m.data) < 8 {
		return nil, fmt.Errorf("%s: only %d bytes, too short for the 8-byte length of a safetensors header; %s", m.path, len(m.data), damaged)
	}
	length, rest := binary.LittleEndian.Uint64(m.data), m.data[8:]
	switch {
	case length == 0:
		return nil, fmt.Errorf("%s: the header length is 0, so the file describes no tensors; %s", m.path, damaged)
	case length > maxHeader:
		return nil, fmt.Errorf("%s: the header length is %d bytes, above the limit of %d; check that this is a safetensors or PyTorch file",
			m.path, length, maxHeader)
	case length > uint64(len(rest)):
		return nil, fmt.Errorf("%s: the header length is %d bytes, but only %d bytes follow it; the file is cut short: %s",
			m.path, length, len(rest), damaged)
	}
	entries, metadata, err := parseHeader(rest[:length])
	if err != nil {
		return nil, fmt.Errorf("%s: %w; %s", m.path, err, damaged)
	}
	body := rest[length:]
	if err := checkLayout(entries, uint64(len(body))); err != nil {
		return nil, fmt.Errorf("%s: %w; %s", m.path, err, damaged)
	}
	f := &safetensorsFile{
		path: m.path, entries: entries, names: slices.Sorted(maps.Keys(entries)), metadata: metadata, body: body,
	}
	f.file.Store(m)
	return f, nil
}

// checkLayout returns an error unless the entries' byte ranges tile a body of size bytes exactly.
func checkLayout(entries map[string]headerEntry, size uint64) error {
	type placed struct {
		name string
		headerEntry
	}
	order := make([]placed, 0, len(entries))
	for name, e := range entries {
		order = append(order, placed{name, e})
	}
	slices.SortFunc(order, func(a, b placed) int {
		switch {
		case a.begin != b.begin:
			return cmp.Compare(a.begin, b.begin)
		case a.end != b.end: // an empty tensor lies before the one that starts at the same byte
			return cmp.Compare(a.end, b.end)
		}
		return cmp.Compare(a.name, b.name)
	})
	var end uint64
	previous := "the start"
	for _, e := range order {
		switch {
		case e.end > size:
			return fmt.Errorf("tensor %q: data_offsets [%d, %d] reach beyond the %d bytes of data", e.name, e.begin, e.end, size)
		case e.begin < end:
			return fmt.Errorf("tensor %q: data_offsets [%d, %d] overlap %s, which ends at %d", e.name, e.begin, e.end, previous, end)
		case e.begin > end:
			return fmt.Errorf("tensor %q: data_offsets [%d, %d] leave a hole after %s, which ends at %d", e.name, e.begin, e.end, previous, end)
		}
		end, previous = e.end, fmt.Sprintf("tensor %q", e.name)
	}
	if end != size {
		return fmt.Errorf("%d bytes are left after the last tensor", size-end)
	}
	return nil
}

func (f *safetensorsFile) Names() []string             { return slices.Clone(f.names) }
func (f *safetensorsFile) Metadata() map[string]string { return maps.Clone(f.metadata) }

func (f *safetensorsFile) Path(name string) string {
	if _, ok := f.entries[name]; !ok {
		return ""
	}
	return f.path
}

func (f *safetensorsFile) Tensor(name string) (*Tensor, error) {
	e, ok := f.entries[name]
	if !ok {
		return nil, fmt.Errorf("%s: there is no tensor %q in the file; check the name", f.path, name)
	}
	m := f.file.Load()
	if m == nil {
		return nil, fmt.Errorf("%s: tensor %q: %w", f.path, name, errClosed)
	}
	return &Tensor{Name: name, DType: e.dtype, Shape: slices.Clone(e.shape), data: f.body[e.begin:e.end:e.end], file: m}, nil
}

func (f *safetensorsFile) Close() error {
	f.file.Store(nil)
	return nil
}
