package nn

import (
	"maps"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
)

// WithCheckpoints returns the weights for an evaluation whose derivatives keep only the inputs of its blocks in memory
// and compute the rest again: see [ad.Checkpoint]. Results are the same.
func (w *Weights) WithCheckpoints() *Weights {
	next := *w
	next.checkpoint = true
	return &next
}

// Block evaluates a part of a network, f, which may use the parameters of the modules at the given paths and no others.
// It is f(w, inputs), or the same as a checkpoint where the weights were made WithCheckpoints.
func (w *Weights) Block(paths []string, f func(w *Weights, in []*ad.Value) *ad.Value, in ...*ad.Value) *ad.Value {
	if !w.checkpoint {
		return f(w, in)
	}
	part, values := w.of(paths)
	return ad.Checkpoint(func(activations, parameters []*ad.Value) *ad.Value {
		return f(part(parameters), activations)
	}, in, values)
}

// of lists the values of the modules at the paths and those of the adapters on them, and returns what makes weights of
// such a list.
func (w *Weights) of(paths []string) (part func(values []*ad.Value) *Weights, values []*ad.Value) {
	inside := func(name string) bool {
		return slices.ContainsFunc(paths, func(p string) bool { return name == p || strings.HasPrefix(name, p+".") })
	}
	sorted := func(names []string) []string {
		names = slices.DeleteFunc(names, func(n string) bool { return !inside(n) })
		slices.Sort(names)
		return names
	}
	names := sorted(slices.Collect(maps.Keys(w.values)))
	for _, n := range names {
		values = append(values, w.values[n])
	}
	layers := make([][]string, len(w.adapters))
	for i, adapter := range w.adapters {
		layers[i] = sorted(slices.Collect(maps.Keys(adapter)))
		for _, path := range layers[i] {
			values = append(values, adapter[path].Down, adapter[path].Up)
		}
	}
	if w.dropout != nil {
		values = append(values, w.dropout.seed)
	}
	return func(values []*ad.Value) *Weights {
		next := NewWeights(names, values[:len(names)]).ComputeIn(w.compute)
		values = values[len(names):]
		for i, adapter := range w.adapters {
			factors := map[string]Factors{}
			for _, path := range layers[i] {
				factors[path] = Factors{Down: values[0], Up: values[1], Scale: adapter[path].Scale}
				values = values[2:]
			}
			next.adapters = append(next.adapters, factors)
		}
		if w.dropout != nil {
			next = next.WithDropout(w.dropout.share, values[0])
		}
		return next
	}, values
}
