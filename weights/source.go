package weights

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Source is a set of named tensors, usually a file's. All methods but Close may be called concurrently.
type Source interface {
	// Names returns the names of all tensors, sorted.
	Names() []string
	// Tensor returns the tensor called name, or an error if there is none or if its bytes are damaged.
	Tensor(name string) (*Tensor, error)
	// Metadata returns the text that a safetensors file carries beside its tensors; it may be empty.
	Metadata() map[string]string
	// Close lets go of the files. Tensors that were already taken stay readable.
	Close() error
}

// FileSource is a [Source] that was read from files.
type FileSource interface {
	Source
	// Path returns the path of the file that holds the tensor called name, "" if there is no such tensor.
	Path(name string) string
}

// Open opens a weights file of any supported format, found by its content and not by its extension: safetensors, or a
// PyTorch file (see [OpenTorch]). The error for a bad file names the file, the field and the fix.
func Open(path string) (FileSource, error) {
	m, err := openMapping(path)
	if err != nil {
		return nil, err
	}
	var source FileSource
	err = m.guard(func() (err error) {
		source, err = parse(m)
		return err
	})
	if err != nil {
		return nil, err
	}
	return source, nil
}

func parse(m *mapping) (FileSource, error) {
	switch {
	case looksLikeSafetensors(m.data):
		return parseSafetensors(m)
	case looksLikeTorch(m.data):
		// Not returned directly: a nil *TorchFile must not become a non-nil interface.
		file, err := parseTorch(m)
		if err != nil {
			return nil, err
		}
		return file, nil
	case strings.HasPrefix(string(m.data[:min(len(m.data), 64)]), "version https://git-lfs"):
		return nil, fmt.Errorf("%s is a Git LFS pointer, not the weights themselves; fetch them with `git lfs pull`", m.path)
	}
	return parseSafetensors(m) // neither format, and this reader's errors say best what is wrong
}

// memorySource holds tensors by name.
type memorySource struct {
	tensors  map[string]*Tensor
	metadata map[string]string
}

// NewSource returns a source of tensors that are already in memory. It returns an error if one of them is inconsistent
// or if two have the same name.
func NewSource(tensors []*Tensor, metadata map[string]string) (Source, error) {
	s := &memorySource{tensors: make(map[string]*Tensor, len(tensors)), metadata: maps.Clone(metadata)}
	for _, t := range tensors {
		if err := t.check(); err != nil {
			return nil, err
		}
		if s.tensors[t.Name] != nil {
			return nil, fmt.Errorf("two tensors are called %q; give each its own name", t.Name)
		}
		s.tensors[t.Name] = t
	}
	return s, nil
}

func (s *memorySource) Names() []string             { return slices.Sorted(maps.Keys(s.tensors)) }
func (s *memorySource) Metadata() map[string]string { return maps.Clone(s.metadata) }
func (s *memorySource) Close() error                { return nil }

func (s *memorySource) Tensor(name string) (*Tensor, error) {
	if t := s.tensors[name]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("there is no tensor %q; check the name", name)
}

// ReadAll returns every tensor of a source, in the order of their names. Tensors that are views of a file stay views.
func ReadAll(source Source) ([]*Tensor, error) {
	names := source.Names()
	tensors := make([]*Tensor, len(names))
	for i, name := range names {
		var err error
		if tensors[i], err = source.Tensor(name); err != nil {
			return nil, err
		}
	}
	return tensors, nil
}

var errClosed = errors.New("the source is closed; take tensors before closing it")

// few joins the first names of a list for an error message.
func few(names []string) string {
	const most = 8
	if len(names) == 0 {
		return "none"
	}
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
