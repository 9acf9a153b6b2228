package onnx

import (
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// slicing is a range of one axis.
type slicing struct{ axis, start, step, count int }

// cut takes ranges of axes.
func (l *lowering) cut(v *value, cuts []slicing) *value {
	dims := slices.Clone(v.dims)
	ranges := make([]graph.SliceAxisSpec, v.rank())
	for p := range ranges {
		ranges[p] = graph.AxisRange()
	}
	whole := true
	for _, c := range cuts {
		if c.step < 0 {
			fail("takes an axis backwards, which is not supported")
		}
		if c.count == 0 {
			fail("takes nothing of the axis %d of an array of shape %v", c.axis, v.dims)
		}
		whole = whole && c.count == v.dims[c.axis]
		dims[c.axis] = c.count
		ranges[v.at(c.axis)] = graph.AxisRange(c.start, c.start+(c.count-1)*c.step+1).Stride(c.step)
	}
	if whole {
		return v
	}
	if len(cuts) == 1 && cuts[0].step == 1 && !l.native {
		if n := l.block(v, cuts[0]); n != nil {
			return device(n, dims, v.order)
		}
	}
	return device(graph.Slice(v.node, ranges...), dims, v.order)
}

// block takes an aligned block of the last axis by a gather of rows, which the Go backend copies whole where its slices go
// number by number.
func (l *lowering) block(v *value, c slicing) *graph.Node {
	total := v.dims[c.axis]
	if v.at(c.axis) != v.rank()-1 || total%c.count != 0 || c.start%c.count != 0 {
		return nil
	}
	blocks, rows := total/c.count, v.size()/total
	l.fits(rows)
	indices := make([]int32, rows)
	for i := range indices {
		indices[i] = int32(i*blocks + c.start/c.count)
	}
	picked := graph.Gather(graph.Reshape(v.node, rows*blocks, c.count), l.indices(indices))
	dims := slices.Clone(v.dims)
	dims[c.axis] = c.count
	return graph.Reshape(picked, physical(dims, v.order)...)
}

// slicings reads what the operator Slice takes.
func slicings(n *node, dims []int, in []*array) []slicing {
	starts, ends := n.list("starts"), n.list("ends")
	which, steps := n.list("axes"), []int(nil)
	if len(in) > 1 {
		starts, ends = whole(in, 1, "starts"), whole(in, 2, "ends")
		which, steps = whole(in, 3, "axes"), whole(in, 4, "steps")
	}
	if which == nil {
		which = natural(min(len(starts), len(dims)))
	}
	if steps == nil {
		steps = slices.Repeat([]int{1}, len(starts))
	}
	if len(ends) != len(starts) || len(which) != len(starts) || len(steps) != len(starts) {
		fail("has %d starts, %d ends, %d axes and %d steps", len(starts), len(ends), len(which), len(steps))
	}
	which = axes(which, len(dims))
	out := make([]slicing, len(starts))
	for i, a := range which {
		c := slicing{axis: a, step: steps[i]}
		length := dims[a]
		switch {
		case c.step == 0:
			fail("has a step of 0")
		case c.step > 0:
			start, end := clampRange(starts[i], ends[i], length)
			c.start, c.count = start, max(0, (end-start+c.step-1)/c.step)
		default:
			fit := func(v int) int {
				if v < 0 {
					v += length
				}
				return min(max(v, -1), length-1)
			}
			start, end := fit(starts[i]), fit(ends[i])
			c.start, c.count = start, max(0, (start-end-c.step-1)/-c.step)
		}
		out[i] = c
	}
	return out
}

var sliceOp = operator{
	inputs: [2]int{1, 5},
	host: func(n *node, in []*array) []*array {
		dims, steps, start := slices.Clone(in[0].dims), strides(in[0].dims), 0
		for _, c := range slicings(n, in[0].dims, in) {
			dims[c.axis] = c.count
			start += c.start * steps[c.axis]
			steps[c.axis] *= c.step
		}
		return []*array{in[0].walk(dims, start, steps)}
	},
	device: func(l *lowering, n *node, in []*value) []*value {
		for i, what := range []string{"", "starts", "ends", "axes", "steps"} {
			if i > 0 {
				knownInput(in, i, what)
			}
		}
		return []*value{l.cut(l.lift(in[0]), slicings(n, in[0].dims, hosts(in)))}
	},
}

// splits are the lengths of the parts of an axis.
func splits(n *node, dims []int, in []*array) (int, []int) {
	at := axis(n.int("axis", 0), len(dims))
	parts := n.list("split")
	if len(in) > 1 {
		parts = whole(in, 1, "split")
	}
	count := max(n.int("num_outputs", len(n.outputs)), 1)
	if parts == nil {
		if count > maxNames {
			fail("makes %d parts", count)
		}
		each := (dims[at] + count - 1) / count
		for left := dims[at]; len(parts) < count; left -= each {
			parts = append(parts, min(each, max(left, 0)))
		}
	}
	sum := 0
	for _, p := range parts {
		if p < 0 {
			fail("has parts of lengths %v", parts)
		}
		sum += p
	}
	if sum != dims[at] || len(parts) != len(n.outputs) {
		fail("splits an axis of %d into %d parts of lengths %v", dims[at], len(n.outputs), parts)
	}
	return at, parts
}

var splitOp = operator{
	inputs: [2]int{1, 2},
	host: func(n *node, in []*array) (out []*array) {
		at, parts := splits(n, in[0].dims, in)
		steps, start := strides(in[0].dims), 0
		for _, p := range parts {
			dims := slices.Clone(in[0].dims)
			dims[at] = p
			out = append(out, in[0].walk(dims, start*steps[at], steps))
			start += p
		}
		return out
	},
	device: func(l *lowering, n *node, in []*value) (out []*value) {
		knownInput(in, 1, "split")
		v := l.lift(in[0])
		at, parts := splits(n, v.dims, hosts(in))
		start := 0
		for _, p := range parts {
			out = append(out, l.cut(v, []slicing{{at, start, 1, p}}))
			start += p
		}
		return out
	},
}

// gatherIndices are the places of an axis that Gather reads.
func gatherIndices(in *array, length int) []int {
	out := make([]int, len(in.ints))
	for i, v := range in.ints {
		if in.dtype.IsFloat() || v < int64(-length) || v >= int64(length) {
			fail("reads the place %d of an axis of %d", v, length)
		}
		if out[i] = int(v); v < 0 {
			out[i] += length
		}
	}
	return out
}

var gatherOp = operator{
	inputs: [2]int{2, 2},
	host: func(n *node, in []*array) []*array {
		a, index := in[0], in[1]
		at := axis(n.int("axis", 0), len(a.dims))
		places := gatherIndices(index, a.dims[at])
		steps, inner := strides(a.dims), strides(index.dims)
		dims := slices.Concat(a.dims[:at], index.dims, a.dims[at+1:])
		if index.dtype.IsFloat() {
			fail("reads places of type %s", index.dtype)
		}
		return []*array{a.pick(dims, func(place []int) int {
			from, which := 0, 0
			for k, p := range place {
				switch {
				case k < at:
					from += p * steps[k]
				case k < at+len(index.dims):
					which += p * inner[k-at]
				default:
					from += p * steps[k-len(index.dims)+1]
				}
			}
			return from + places[which]*steps[at]
		})}
	},
	device: func(l *lowering, n *node, in []*value) []*value {
		index := knownInput(in, 1, "places")
		v := l.lift(in[0])
		at := axis(n.int("axis", 0), v.rank())
		places := gatherIndices(index, v.dims[at])
		dims := slices.Concat(v.dims[:at], index.dims, v.dims[at+1:])
		if len(dims) > maxRank || len(places) == 0 {
			fail("reads %d places of an array of shape %v", len(places), v.dims)
		}
		if len(places) == 1 {
			return []*value{l.reshape(l.cut(v, []slicing{{at, places[0], 1, 1}}), dims)}
		}
		l.fits(dims...)
		// The axis is brought to the front, whose rows a gather copies.
		front := []int{at}
		for _, a := range v.order {
			if a != at {
				front = append(front, a)
			}
		}
		rows := make([]int32, len(places))
		for i, p := range places {
			rows[i] = int32(p)
		}
		picked := graph.Gather(l.in(v, front), l.indices(rows))
		var order []int
		for i := range index.dims {
			order = append(order, at+i)
		}
		for _, a := range front[1:] {
			if a > at {
				a += len(index.dims) - 1
			}
			order = append(order, a)
		}
		return []*value{device(graph.Reshape(picked, physical(dims, order)...), dims, order)}
	},
}
