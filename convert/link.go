package convert

import (
	"fmt"
	"slices"

	"github.com/resalign/resalign/weights"
)

// A link ties one tensor of the original layout to the parameters that hold its numbers in the layout of diffusers.
// Links are derived from a component's configuration, and both directions of a conversion read the same ones.
type link struct {
	original string   // name in the single file, behind the component's prefix
	shape    []int    // shape in the single file
	names    []string // diffusers' names: one, or three for a stacked projection
	form     form
}

// form is how the numbers of a link lie in the two layouts.
type form int

const (
	same       form = iota
	pointwise       // linear in diffusers, [out, in]; a 1×1 convolution in the original, [out, in, 1, 1]
	transposed      // [out, in] in diffusers, [in, out] in the original
	stacked         // queries, keys and values apart in diffusers, one below the other in the original
)

// checkUnique returns an error if two links claim the same tensor, which a configuration of real layers never makes.
func checkUnique(links []link) error {
	taken := make(map[string]string, len(links))
	for _, l := range links {
		if other, ok := taken[l.original]; ok {
			return fmt.Errorf("parameters %q and %q would both be called %q in the original layout", other, l.names[0], l.original)
		}
		taken[l.original] = l.names[0]
	}
	return nil
}

// split gives the parameters that a tensor of the original layout holds.
func (l link) split(d weights.Deferred) []weights.Deferred {
	out := make([]weights.Deferred, len(l.names))
	for i, name := range l.names {
		p := d
		p.Name = name
		switch l.form {
		case pointwise:
			p = reshaped(p, l.shape[:2])
		case transposed:
			p = flipped(p)
		case stacked:
			rows := l.shape[0] / len(l.names)
			p.Shape = append([]int{rows}, l.shape[1:]...)
			p.Read = func() (*weights.Tensor, error) {
				t, err := d.Read()
				if err != nil {
					return nil, err
				}
				return t.Rows(i*rows, (i+1)*rows)
			}
		}
		out[i] = p
	}
	return out
}

// join gives the tensor of the original layout that holds parameters, in the order of l.names.
func (l link) join(prefix string, parameters []weights.Deferred) (weights.Deferred, error) {
	d := parameters[0]
	switch l.form {
	case pointwise:
		d = reshaped(d, l.shape)
	case transposed:
		d = flipped(d)
	case stacked:
		for _, p := range parameters {
			if p.DType != d.DType {
				return d, fmt.Errorf("%s is %s but %s is %s, and the original layout keeps them in one tensor; choose one type with --dtype", d.Name, d.DType, p.Name, p.DType)
			}
		}
		d.Shape = slices.Clone(l.shape)
		d.Read = func() (*weights.Tensor, error) {
			parts := make([]*weights.Tensor, len(parameters))
			for i, p := range parameters {
				var err error
				if parts[i], err = p.Read(); err != nil {
					return nil, err
				}
			}
			return weights.Stacked(l.original, parts...)
		}
	}
	d.Name = prefix + l.original
	return d, nil
}

// flipped is a transposed matrix.
func flipped(d weights.Deferred) weights.Deferred {
	read := d.Read
	d.Shape = []int{d.Shape[1], d.Shape[0]}
	d.Read = func() (*weights.Tensor, error) {
		t, err := read()
		if err != nil {
			return nil, err
		}
		return t.Transposed()
	}
	return d
}

// reshaped is a tensor under another shape.
func reshaped(d weights.Deferred, shape []int) weights.Deferred {
	read := d.Read
	d.Shape = slices.Clone(shape)
	d.Read = func() (*weights.Tensor, error) {
		t, err := read()
		if err != nil {
			return nil, err
		}
		return t.Reshaped(shape...)
	}
	return d
}
