package verify

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/weights"
)

// reference is a file of reference tensors that keeps account of what was read.
type reference struct {
	path   string
	source weights.FileSource
	has    map[string]bool
	read   map[string]bool
}

func openReference(path string) (*reference, error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	r := &reference{path: path, source: source, has: map[string]bool{}, read: map[string]bool{}}
	for _, name := range source.Names() {
		r.has[name] = true
	}
	return r, nil
}

// unread lists the tensors that nothing has asked for.
func (r *reference) unread() []string {
	return slices.DeleteFunc(r.source.Names(), func(name string) bool { return r.read[name] })
}

// any tells whether there is a tensor whose name starts with prefix.
func (r *reference) any(prefix string) bool {
	return slices.ContainsFunc(r.source.Names(), func(name string) bool { return strings.HasPrefix(name, prefix) })
}

func (r *reference) tensor(name string) (*weights.Tensor, error) {
	if !r.has[name] {
		return nil, fmt.Errorf("%s: there is no tensor %q; write the file again with it", r.path, name)
	}
	t, err := r.source.Tensor(name)
	if err != nil {
		return nil, err
	}
	r.read[name] = true
	return t, nil
}

// anySize stands for a dimension of any size in a wanted shape.
const anySize = -1

// shaped reads a tensor and checks its shape.
func (r *reference) shaped(name string, shape []int) (*weights.Tensor, error) {
	t, err := r.tensor(name)
	if err != nil {
		return nil, err
	}
	fits := len(t.Shape) == len(shape) && t.Elements() > 0
	for i := 0; fits && i < len(shape); i++ {
		fits = shape[i] == anySize || shape[i] == t.Shape[i]
	}
	if !fits {
		want := strings.ReplaceAll(fmt.Sprint(shape), strconv.Itoa(anySize), "any")
		return nil, fmt.Errorf("%s: tensor %q has the shape %v instead of %s", r.path, name, t.Shape, want)
	}
	return t, nil
}

// floats reads a tensor of floating-point numbers; the shape may leave dimensions open with anySize.
func (r *reference) floats(name string, shape ...int) (values []float32, dims []int, err error) {
	t, err := r.shaped(name, shape)
	if err != nil {
		return nil, nil, err
	}
	if values, err = t.Float32(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", r.path, err)
	}
	return values, t.Shape, nil
}

// ints reads a tensor of whole numbers; the shape may leave dimensions open with anySize.
func (r *reference) ints(name string, shape ...int) ([]int, error) {
	t, err := r.shaped(name, shape)
	if err != nil {
		return nil, err
	}
	return r.wholeNumbers(t)
}

func (r *reference) wholeNumbers(t *weights.Tensor) ([]int, error) {
	data, err := t.Bytes()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.path, err)
	}
	out := make([]int, t.Elements())
	for i := range out {
		switch t.DType {
		case weights.I64:
			out[i] = int(int64(binary.LittleEndian.Uint64(data[8*i:])))
		case weights.I32:
			out[i] = int(int32(binary.LittleEndian.Uint32(data[4*i:])))
		default:
			return nil, fmt.Errorf("%s: tensor %q holds %s elements; it must hold I64 or I32", r.path, t.Name, t.DType)
		}
	}
	return out, nil
}

// numbers reads a tensor of numbers of either kind, of any shape.
func (r *reference) numbers(name string) ([]float32, []int, error) {
	t, err := r.tensor(name)
	if err != nil {
		return nil, nil, err
	}
	if t.DType.IsFloat() {
		values, err := t.Float32()
		if err != nil {
			err = fmt.Errorf("%s: %w", r.path, err)
		}
		return values, t.Shape, err
	}
	whole, err := r.wholeNumbers(t)
	if err != nil {
		return nil, nil, err
	}
	values := make([]float32, len(whole))
	for i, n := range whole {
		values[i] = float32(n)
	}
	return values, t.Shape, nil
}

// setting decodes a field of the file's metadata, which is JSON text.
func (r *reference) setting(key string, into any) error {
	text, ok := r.source.Metadata()[key]
	if !ok {
		return fmt.Errorf("%s: the metadata has no field %q; write the file again with it", r.path, key)
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		return fmt.Errorf("%s: the metadata field %q = %.60q has the wrong type: %w", r.path, key, text, err)
	}
	return nil
}

// settings decodes several fields, in the order of their names until the first error.
func (r *reference) settings(fields map[string]any) error {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if err := r.setting(key, fields[key]); err != nil {
			return err
		}
	}
	return nil
}
