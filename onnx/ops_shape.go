package onnx

import (
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// reshapeOp makes an operator of a rule for the new dimensions.
func reshapeOp(inputs int, rule func(n *node, dims []int, in []*array) []int) operator {
	check := func(n *node, dims []int, in []*array) []int {
		out := rule(n, dims, in)
		if len(out) > maxRank || checkedSize(out) != product(dims) {
			fail("cannot give an array of shape %v the shape %v", dims, out)
		}
		return out
	}
	return operator{
		inputs: [2]int{1, inputs},
		host: func(n *node, in []*array) []*array {
			a := *in[0]
			a.dims = check(n, a.dims, in)
			return []*array{&a}
		},
		device: func(l *lowering, n *node, in []*value) []*value {
			knownInput(in, 1, "shape")
			return []*value{l.reshape(l.lift(in[0]), check(n, in[0].dims, hosts(in)))}
		},
	}
}

// checkedSize is a product that cannot overflow; −1 if it would.
func checkedSize(dims []int) int {
	n := 1
	for _, d := range dims {
		if d < 0 || d > 0 && n > maxExtent/d {
			return -1
		}
		n *= d
	}
	return n
}

func reshapeDims(n *node, dims []int, in []*array) []int {
	want := whole(in, 1, "shape")
	if want == nil && (len(in) < 2 || in[1] == nil) {
		if want = n.list("shape"); want == nil {
			fail("is given no shape")
		}
	}
	out := slices.Clone(want)
	open, size := -1, 1
	for i, d := range want {
		switch {
		case d == -1 && open < 0:
			open = i
			continue
		case d == 0 && n.int("allowzero", 0) == 0:
			if i >= len(dims) {
				fail("keeps the axis %d of an array of shape %v", i, dims)
			}
			out[i] = dims[i]
		case d < 0:
			fail("is given the shape %v", want)
		}
		if size = checkedSize([]int{size, out[i]}); size < 0 {
			fail("is given the shape %v", want)
		}
	}
	if open >= 0 {
		if size == 0 || product(dims)%size != 0 {
			fail("cannot give an array of shape %v the shape %v", dims, want)
		}
		out[open] = product(dims) / size
	}
	return out
}

func flattenDims(n *node, dims []int, _ []*array) []int {
	at := n.int("axis", 1)
	if at < -len(dims) || at > len(dims) {
		fail("flattens an array of shape %v at axis %d", dims, at)
	}
	if at < 0 {
		at += len(dims)
	}
	return []int{product(dims[:at]), product(dims[at:])}
}

// axesInput are axes as newer operators are given them, by an input, or older ones, by an attribute.
func axesInput(n *node, in []*array) []int {
	if list := n.list("axes"); list != nil {
		return list
	}
	return whole(in, 1, "axes")
}

func squeezeDims(n *node, dims []int, in []*array) []int {
	list := axesInput(n, in)
	which := axes(list, len(dims))
	var out []int
	for i, d := range dims {
		drop := slices.Contains(which, i) || list == nil && d == 1
		if drop && d != 1 {
			fail("drops the axis %d of an array of shape %v", i, dims)
		}
		if !drop {
			out = append(out, d)
		}
	}
	return out
}

func unsqueezeDims(n *node, dims []int, in []*array) []int {
	list := axesInput(n, in)
	rank := len(dims) + len(list)
	which := axes(list, rank)
	var out []int
	for i, next := 0, 0; i < rank; i++ {
		if slices.Contains(which, i) {
			out = append(out, 1)
			continue
		}
		out = append(out, dims[next])
		next++
	}
	return out
}

func permutation(n *node, rank int) []int {
	perm := n.list("perm")
	if perm == nil {
		for i := range rank {
			perm = append(perm, rank-1-i)
		}
	}
	if len(axes(perm, rank)) != rank {
		fail("reorders %d axes by %v", rank, perm)
	}
	return axes(perm, rank)
}

var transposeOp = operator{
	inputs: [2]int{1, 1},
	host: func(n *node, in []*array) []*array {
		return []*array{transposeArray(in[0], permutation(n, len(in[0].dims)))}
	},
	device: func(l *lowering, n *node, in []*value) []*value {
		v := l.lift(in[0])
		perm := permutation(n, v.rank())
		order := make([]int, v.rank())
		for p, old := range v.order {
			order[p] = slices.Index(perm, old)
		}
		return []*value{device(v.node, physical(v.dims, perm), order)}
	},
}

var concatOp = operator{
	inputs: [2]int{1, maxNames},
	host: func(n *node, in []*array) []*array {
		shapes := make([][]int, len(in))
		for i, a := range in {
			if a == nil || a.dtype.IsFloat() != in[0].dtype.IsFloat() {
				fail("joins arrays of different types")
			}
			shapes[i] = a.dims
		}
		at, dims := concatDims(n, shapes)
		checked(dims)
		out := &array{dtype: in[0].dtype, dims: dims}
		inner := product(dims[at+1:])
		for outer := range product(dims[:at]) {
			for _, a := range in {
				length := a.dims[at] * inner
				if a.dtype.IsFloat() {
					out.floats = append(out.floats, a.floats[outer*length:(outer+1)*length]...)
				} else {
					out.ints = append(out.ints, a.ints[outer*length:(outer+1)*length]...)
				}
			}
		}
		return []*array{out}
	},
	device: func(l *lowering, n *node, in []*value) []*value {
		shapes := make([][]int, len(in))
		var lead *value
		for i, v := range in {
			if v == nil {
				fail("joins an input that is not there")
			}
			shapes[i] = v.dims
			if v.node != nil && (lead == nil || v.size() > lead.size()) {
				lead = v
			}
		}
		at, dims := concatDims(n, shapes)
		if lead == nil {
			lead = l.lift(in[0])
		}
		var nodes []*graph.Node
		for _, v := range in {
			if v.size() > 0 {
				nodes = append(nodes, l.in(v, lead.order))
			}
		}
		return []*value{device(graph.Concatenate(nodes, lead.at(at)), dims, lead.order)}
	},
}

func concatDims(n *node, shapes [][]int) (int, []int) {
	dims := slices.Clone(shapes[0])
	at := axis(n.int("axis", 1), len(dims))
	for _, s := range shapes[1:] {
		for i := range dims {
			if len(s) != len(dims) || i != at && s[i] != dims[i] {
				fail("joins arrays of shapes %v along axis %d", shapes, at)
			}
		}
		dims[at] += s[at]
	}
	return at, dims
}

func expandDims(dims []int, in []*array) []int {
	out := broadcastDims(dims, whole(in, 1, "shape"))
	for _, d := range out {
		if d < 0 || len(out) > maxRank {
			fail("is given the shape %v", out)
		}
	}
	return out
}

var expandOp = operator{
	inputs: [2]int{2, 2},
	host: func(_ *node, in []*array) []*array {
		return []*array{broadcastArray(in[0], expandDims(in[0].dims, in))}
	},
	device: func(l *lowering, _ *node, in []*value) []*value {
		knownInput(in, 1, "shape")
		dims := expandDims(in[0].dims, hosts(in))
		l.fits(dims...)
		v := l.widen(l.lift(in[0]), len(dims))
		return []*value{device(graph.BroadcastToDims(v.node, physical(dims, v.order)...), dims, v.order)}
	},
}

var identityOp = operator{
	inputs: [2]int{1, 3}, // Dropout has two more, which only matter in training
	host:   func(_ *node, in []*array) []*array { return in[:1] },
	device: func(_ *lowering, _ *node, in []*value) []*value { return in[:1] },
}

var padOp = operator{
	inputs: [2]int{1, 4},
	device: func(l *lowering, n *node, in []*value) []*value {
		if mode := n.text("mode", "constant"); mode != "constant" {
			fail("pads in the mode %q; only constant is supported", mode)
		}
		v := l.lift(in[0])
		fill, amounts := n.float("value", 0), n.list("pads")
		which := natural(v.rank())
		if len(in) > 1 {
			knownInput(in, 1, "padding")
			amounts = whole(hosts(in), 1, "padding")
			fill = number(knownInput(in, 2, "fill"), 0)
			if list := knownInput(in, 3, "axes"); list != nil {
				which = axes(whole(hosts(in), 3, "axes"), v.rank())
			}
		}
		if len(amounts) != 2*len(which) {
			fail("has %d amounts of padding for %d axes", len(amounts), len(which))
		}
		dims := slices.Clone(v.dims)
		config := make([]compute.PadAxis, v.rank())
		for i, a := range which {
			before, after := amounts[i], amounts[len(which)+i]
			if before < 0 || after < 0 || before > maxExtent/4 || after > maxExtent/4 {
				fail("pads an axis by %d and %d", before, after)
			}
			dims[a] += before + after
			config[v.at(a)] = compute.PadAxis{Start: before, End: after}
		}
		l.fits(dims...)
		return []*value{device(graph.Pad(v.node, graph.Scalar(l.g, v.node.DType(), fill), config...), dims, v.order)}
	},
}
