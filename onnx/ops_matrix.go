package onnx

import (
	"slices"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// dense is act(x·W + b) for x [rows, in], W [in, out] and b [out] or nil.
func (l *lowering) dense(x, w, b *graph.Node, activation compute.ActivationType) *graph.Node {
	rows, in, out := x.Shape().Dimensions[0], x.Shape().Dimensions[1], w.Shape().Dimensions[1]
	l.spend(rows, in, out)
	l.fits(rows, out)
	if !l.native {
		return graph.BackendFusedDense(x, w, b, compute.DenseConfig{
			WeightLayout: compute.DenseLayoutInputOutputs, Activation: compute.ActivationConfig{Type: activation},
		})
	}
	y := graph.DotGeneral(x, []int{1}, nil, w, []int{0}, nil)
	if b != nil {
		y = graph.Add(y, graph.Reshape(b, 1, out))
	}
	return l.activate(y, activation)
}

var matMulOp = operator{
	inputs: [2]int{2, 2},
	device: func(l *lowering, _ *node, in []*value) []*value {
		a, b := l.lift(in[0]), l.lift(in[1])
		if a.rank() == 0 || b.rank() == 0 {
			fail("multiplies a number")
		}
		// A vector is a matrix of one row on the left, of one column on the right.
		left, right := a, b
		if a.rank() == 1 {
			left = l.reshape(a, []int{1, a.dims[0]})
		}
		if b.rank() == 1 {
			right = l.reshape(b, []int{b.dims[0], 1})
		}
		y := l.matMul(l.lift(left), l.lift(right))
		dims := slices.Clone(y.dims)
		if b.rank() == 1 {
			dims = dims[:len(dims)-1]
		}
		if a.rank() == 1 {
			dims = slices.Delete(dims, y.rank()-2, y.rank()-1)
		}
		return []*value{l.reshape(y, dims)}
	},
}

// matMul multiplies matrices in the last two axes.
func (l *lowering) matMul(a, b *value) *value {
	ra, rb := a.rank(), b.rank()
	m, k, n := a.dims[ra-2], a.dims[ra-1], b.dims[rb-1]
	if b.dims[rb-2] != k {
		fail("multiplies matrices of shapes %v and %v", a.dims, b.dims)
	}
	batch := broadcastDims(a.dims[:ra-2], b.dims[:rb-2])
	dims := append(slices.Clone(batch), m, n)
	if product(b.dims[:rb-2]) == 1 { // one matrix for all
		rows := product(batch) * m
		y := l.dense(graph.Reshape(l.plain(a), rows, k), graph.Reshape(l.plain(b), k, n), nil, compute.ActivationNone)
		return device(graph.Reshape(y, dims...), dims, natural(len(dims)))
	}
	count := checkedSize(batch)
	l.spend(max(count, 0), m, k, n)
	l.fits(append(slices.Clone(batch), m, k)...)
	l.fits(append(slices.Clone(batch), k, n)...)
	l.fits(dims...)
	full := func(v *value, rows, columns int) *graph.Node {
		v = l.widen(v, len(dims))
		node := graph.BroadcastToDims(l.plain(v), append(slices.Clone(batch), rows, columns)...)
		return graph.Reshape(node, count, rows, columns)
	}
	y := graph.DotGeneral(full(a, m, k), []int{2}, []int{0}, full(b, k, n), []int{1}, []int{0})
	return device(graph.Reshape(y, dims...), dims, natural(len(dims)))
}

var gemmOp = operator{
	inputs: [2]int{2, 3},
	device: func(l *lowering, n *node, in []*value) []*value {
		turned := func(v *value, turn bool) *value {
			if v.rank() != 2 {
				fail("multiplies arrays of shapes %v and %v instead of matrices", in[0].dims, in[1].dims)
			}
			if !turn {
				return v
			}
			if v.node == nil {
				return onHost(transposeArray(v.host, []int{1, 0}))
			}
			return device(v.node, []int{v.dims[1], v.dims[0]}, []int{1 - v.order[0], 1 - v.order[1]})
		}
		a, b := turned(in[0], n.int("transA", 0) != 0), turned(in[1], n.int("transB", 0) != 0)
		if a.dims[1] != b.dims[0] {
			fail("multiplies matrices of shapes %v and %v", a.dims, b.dims)
		}
		alpha, beta := n.float("alpha", 1), n.float("beta", 1)
		dims := []int{a.dims[0], b.dims[1]}
		if len(in) > 2 && alpha == 1 && beta == 1 && in[2].size() == dims[1] && in[2].dims[in[2].rank()-1] == dims[1] {
			bias := l.plain(l.lift(l.reshape(in[2], dims[1:])))
			return []*value{device(l.dense(l.plain(a), l.plain(b), bias, n.activation), dims, natural(2))}
		}
		y := graph.MulScalar(l.dense(l.plain(a), l.plain(b), nil, compute.ActivationNone), float64(alpha))
		out := device(y, dims, natural(2))
		if len(in) > 2 {
			c := l.lift(in[2])
			out = l.combine(graph.Add, out, like(c, graph.MulScalar(c.node, float64(beta))))
			if !slices.Equal(out.dims, dims) {
				fail("adds an array of shape %v to a matrix of shape %v", in[2].dims, dims)
			}
		}
		return []*value{like(out, l.activate(out.node, n.activation))}
	},
}

// softmax is taken over one axis, or with old operators over all from one on.
func softmaxOp(last func(x *graph.Node, axes ...int) *graph.Node) operator {
	return operator{
		inputs: [2]int{1, 1},
		device: func(l *lowering, n *node, in []*value) []*value {
			v := l.lift(in[0])
			if l.opset >= 13 {
				at := axis(n.int("axis", -1), v.rank())
				return []*value{like(v, last(v.node, v.at(at)))}
			}
			flat := l.reshape(v, flattenDims(n, v.dims, nil))
			return []*value{l.reshape(like(flat, last(flat.node, flat.at(1))), v.dims)}
		},
	}
}

// reduceAxes are the axes that an operator folds: those named, by input or attribute, or all.
func reduceAxes(n *node, in []*array, rank int) []int {
	list := axesInput(n, in)
	if len(list) == 0 {
		if n.int("noop_with_empty_axes", 0) != 0 {
			return nil
		}
		return natural(rank)
	}
	return axes(list, rank)
}

func reducedDims(n *node, dims, which []int) []int {
	var out []int
	for i, d := range dims {
		switch {
		case !slices.Contains(which, i):
			out = append(out, d)
		case n.int("keepdims", 1) != 0:
			out = append(out, 1)
		}
	}
	return out
}

func reduceOp(onDevice func(x *graph.Node, axes ...int) *graph.Node, host func(n *node, in []*array) []*array) operator {
	return operator{
		inputs: [2]int{1, 2},
		host:   host,
		device: func(l *lowering, n *node, in []*value) []*value {
			knownInput(in, 1, "axes")
			v := l.lift(in[0])
			which := reduceAxes(n, hosts(in), v.rank())
			return []*value{l.reshape(l.reduce(v, which, onDevice), reducedDims(n, v.dims, which))}
		},
	}
}

// reduce folds axes, which stay as axes of one.
func (l *lowering) reduce(v *value, which []int, op func(x *graph.Node, axes ...int) *graph.Node) *value {
	if len(which) == 0 {
		return v
	}
	at := make([]int, len(which))
	dims := slices.Clone(v.dims)
	for i, a := range which {
		at[i] = v.at(a)
		dims[a] = 1
	}
	return device(graph.Reshape(op(v.node, at...), physical(dims, v.order)...), dims, v.order)
}

// globalOp folds all axes of a picture but its channels.
func globalOp(op func(x *graph.Node, axes ...int) *graph.Node) operator {
	return operator{
		inputs: [2]int{1, 1},
		device: func(l *lowering, _ *node, in []*value) []*value {
			v := l.lift(in[0])
			if v.rank() < 3 {
				fail("needs pictures, not an array of shape %v", v.dims)
			}
			return []*value{l.reduce(v, natural(v.rank())[2:], op)}
		},
	}
}

var batchNormOp = operator{
	inputs: [2]int{5, 5},
	device: func(l *lowering, n *node, in []*value) []*value {
		v := l.lift(in[0])
		if v.rank() < 2 {
			fail("needs an array with channels, not one of shape %v", v.dims)
		}
		gain, shift := normalisation(n, hosts(in))
		if len(gain) != v.dims[1] {
			fail("has %d channels for an array of shape %v", len(gain), v.dims)
		}
		dims := slices.Repeat([]int{1}, v.rank())
		dims[1] = len(gain)
		y := l.combine(graph.Mul, v, onHost(floatArray(gain, dims...)))
		y = l.combine(graph.Add, y, onHost(floatArray(shift, dims...)))
		return []*value{like(y, l.activate(y.node, n.activation))}
	},
}

var layerNormOp = operator{
	inputs: [2]int{2, 3},
	device: func(l *lowering, n *node, in []*value) []*value {
		v := l.lift(in[0])
		from := axis(n.int("axis", -1), v.rank())
		which := natural(v.rank())[from:]
		mean := l.reduce(v, which, graph.ReduceMean)
		centred := like(v, graph.Sub(v.node, mean.node))
		variance := l.reduce(like(v, graph.Mul(centred.node, centred.node)), which, graph.ReduceMean)
		gain := graph.Reciprocal(graph.Sqrt(graph.AddScalar(variance.node, float64(n.float("epsilon", 1e-5)))))
		y := l.combine(graph.Mul, like(v, graph.Mul(centred.node, gain)), in[1])
		if len(in) > 2 {
			y = l.combine(graph.Add, y, in[2])
		}
		return []*value{y}
	},
}
