package ad

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// Checkpoint is f(activations, parameters) with a derivative that keeps nothing but these arguments in memory: when the
// cotangent of the result arrives, f is computed once more, and its inner values live only while the cotangent passes
// through them (gradient checkpointing, Chen et al. 2016, arXiv:1604.06174). The derivative is a checkpoint itself, so
// gradients of gradients save memory in the same way. Values and derivatives of any order are those of f, to rounding.
//
// A gradient costs one more evaluation of f, up to 4/3 of the work; a Hessian product 3/2 to 7/4.
//
// f must depend on nothing but its arguments and constants, because no derivative is taken through what it captures. It
// is called several times. The two lists differ in order only: derivatives by activations, which other blocks need, are
// there after those by parameters.
func Checkpoint(f func(activations, parameters []*Value) *Value, activations, parameters []*Value) *Value {
	if len(activations) == 0 {
		panic(fmt.Errorf("ad: a checkpoint needs at least one activation"))
	}
	n := len(activations)
	whole := func(in []*Value) []*Value { return []*Value{f(in[:n:n], in[n:])} }
	return checkpoint(whole, slices.Concat(activations, parameters), n)[0]
}

// checkpoint is Checkpoint of several results; the first activations ones of in are activations.
//
// The graph of f is written on leaves, so that nothing leads back through it. All results hang on one value, the joint,
// whose parents are the arguments and which has a derivative for all of them at once.
func checkpoint(f func(in []*Value) []*Value, in []*Value, activations int) []*Value {
	t := in[0].tape
	leaves := make([]*Value, len(in))
	for i, x := range in {
		leaves[i] = StopGradient(x)
	}
	results := f(leaves)
	joint := t.value(nil, nil, in...)
	joint.outputs = len(results)
	joint.joint = func(cotangents []*Value, needed []bool, last bool) []*Value {
		return recomputed(f, in, activations, cotangents, needed, last)
	}
	out := make([]*Value, len(results))
	for i, y := range results {
		out[i] = t.value(y.node, func(v *Value, _ int) *Value { return v }, joint)
		out[i].output = i
	}
	return out
}

// recomputed takes cotangents, some of them nil, back through f at in: one result for each argument that is needed, nil
// for the others.
func recomputed(f func(in []*Value) []*Value, in []*Value, activations int, cotangents []*Value, needed []bool, last bool) []*Value {
	var arguments []*Value // the cotangents, then in
	var given, wanted []int
	for i, c := range cotangents {
		if c != nil {
			given, arguments = append(given, i), append(arguments, c)
		}
	}
	for i, need := range needed {
		if need {
			wanted = append(wanted, i)
		}
	}
	k := len(given)
	back := func(arguments []*Value) []*Value {
		v, x := arguments[:k], slices.Clone(arguments[k:])
		// Parameters wait as well: the Go backend rearranges kernels, and the rearranged ones would stay in memory from the
		// first computation to the second.
		after(x, v)
		all := f(x)
		return pullback(pick(all, given), v, pick(x, wanted), false)
	}
	results := checkpoint(back, append(arguments, in...), k+activations)
	if last {
		// The Go backend computes the longest way to a result first, and would leave the derivatives by parameters, with
		// all that they are made of, for the end. What goes on to other blocks waits for them.
		first := len(results)
		for j, i := range wanted {
			if i >= activations {
				first = j
				break
			}
		}
		after(results[:first], results[first:])
	}
	out := make([]*Value, len(in))
	for j, i := range wanted {
		out[i] = results[j]
	}
	return out
}

func pick(values []*Value, at []int) []*Value {
	out := make([]*Value, len(at))
	for j, i := range at {
		out[j] = values[i]
	}
	return out
}

// after replaces each of values by itself, to be had only when all of earlier are there. Backends merge nodes that
// compute the same from the same; what is computed from the new values is not the same, and cannot come sooner.
func after(values, earlier []*Value) {
	for i, x := range values {
		if len(earlier) == 0 {
			return
		}
		n := graph.SchedulingBarrier(x.node, Nodes(earlier)...)
		values[i] = x.tape.value(n, func(v *Value, _ int) *Value { return v }, x)
		earlier = values[i : i+1] // which has waited for the rest
	}
}
