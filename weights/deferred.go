package weights

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/resalign/resalign/files"
)

// Deferred is a tensor that is known by name, type and shape, and whose elements are only read or computed when they are
// needed. A model of many gigabytes is rewritten as a list of them with one tensor in memory at a time.
type Deferred struct {
	Name  string
	DType DType
	Shape []int
	// Read returns the tensor. Its type and shape must be those above; its name is of no consequence.
	Read func() (*Tensor, error)
}

// Defer describes the tensor of a source called name without reading its elements.
func Defer(source Source, name string) (Deferred, error) {
	d := Deferred{Name: name, Read: func() (*Tensor, error) { return source.Tensor(name) }}
	if known, ok := source.(interface {
		describe(name string) (DType, []int, bool)
	}); ok {
		if dtype, shape, ok := known.describe(name); ok {
			d.DType, d.Shape = dtype, slices.Clone(shape)
			return d, nil
		}
	}
	t, err := source.Tensor(name)
	if err != nil {
		return Deferred{}, err
	}
	d.DType, d.Shape = t.DType, slices.Clone(t.Shape)
	return d, nil
}

// DeferAll describes tensors that are in memory, or views of a file.
func DeferAll(tensors []*Tensor) []Deferred {
	deferred := make([]Deferred, len(tensors))
	for i, t := range tensors {
		deferred[i] = Deferred{Name: t.Name, DType: t.DType, Shape: t.Shape, Read: func() (*Tensor, error) { return t, nil }}
	}
	return deferred
}

// Bytes is the size of the elements, 0 if type or shape are not valid.
func (d Deferred) Bytes() int64 {
	n, _ := elements(d.Shape)
	return int64(n) * int64(d.DType.Size())
}

// WriteDeferred is [Write] for deferred tensors: the header comes first, then each tensor is read, written and forgotten.
// An error of Read ends the writing, is returned as it is, and nothing is left behind.
func WriteDeferred(path string, tensors []Deferred, metadata map[string]string) error {
	ordered := slices.Clone(tensors)
	slices.SortStableFunc(ordered, func(a, b Deferred) int {
		return cmp.Or(cmp.Compare(a.DType, b.DType), cmp.Compare(a.Name, b.Name))
	})
	header, err := encodeHeader(ordered, metadata)
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	var unread error // has nothing to do with the disk that is written to
	err = files.Write(path, func(w io.Writer) error {
		if _, err := w.Write(header); err != nil {
			return err
		}
		for _, d := range ordered {
			t, err := d.read()
			if err != nil {
				unread = err
				return err
			}
			if err := t.file.guard(func() error {
				_, err := w.Write(t.data)
				return err
			}); err != nil {
				return fmt.Errorf("tensor %q: %w", d.Name, err)
			}
		}
		return nil
	})
	switch {
	case unread != nil:
		return unread
	case err != nil:
		return fmt.Errorf("%w; make sure that the folder exists, is writable and has room, then write again", err)
	}
	return nil
}

// read reads the tensor and checks it against its description.
func (d Deferred) read() (*Tensor, error) {
	t, err := d.Read()
	if err != nil {
		return nil, err
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	if t.DType != d.DType || !slices.Equal(t.Shape, d.Shape) {
		return nil, fmt.Errorf("tensor %q was announced as %s %v but is %s %v", d.Name, d.DType, d.Shape, t.DType, t.Shape)
	}
	return t, nil
}

func (f *safetensorsFile) describe(name string) (DType, []int, bool) {
	e, ok := f.entries[name]
	return e.dtype, e.shape, ok
}

func (f *TorchFile) describe(name string) (DType, []int, bool) {
	view := f.tensors[name]
	if view == nil {
		return 0, nil, false
	}
	return view.storage.dtype, view.shape, true
}

func (s *shardedSource) describe(name string) (DType, []int, bool) {
	if known, ok := s.holder[name].(interface {
		describe(name string) (DType, []int, bool)
	}); ok {
		return known.describe(name)
	}
	return 0, nil, false
}
