package onnx

import (
	"math"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
)

// unaryOp computes elementwise.
func unaryOp(onDevice func(x *graph.Node) *graph.Node, onHost func(x float64) float64) operator {
	return operator{
		inputs: [2]int{1, 1},
		host:   hostUnary(func(x float32) float32 { return float32(onHost(float64(x))) }, nil),
		device: func(l *lowering, _ *node, in []*value) []*value {
			v := l.lift(in[0])
			return []*value{like(v, onDevice(v.node))}
		},
	}
}

// signedOp computes elementwise, on whole numbers too.
func signedOp(onDevice func(x *graph.Node) *graph.Node, floats func(x float32) float32, ints func(x int64) int64) operator {
	op := unaryOp(onDevice, nil)
	op.host = hostUnary(floats, ints)
	return op
}

// binaryOp computes elementwise on two arrays, or more one after the other.
func binaryOp(most int, onDevice func(x, y *graph.Node) *graph.Node, floats func(x, y float32) float32, ints func(x, y int64) int64) operator {
	least := min(most, 2)
	if most > 2 {
		least = 1
	}
	return operator{
		inputs: [2]int{least, most},
		host:   hostBinary(floats, ints),
		device: func(l *lowering, _ *node, in []*value) []*value {
			out := in[0]
			for _, v := range in[1:] {
				if v == nil {
					fail("combines an input that is not there")
				}
				out = l.combine(onDevice, out, v)
			}
			return []*value{l.lift(out)}
		},
	}
}

func (l *lowering) combine(op func(x, y *graph.Node) *graph.Node, a, b *value) *value {
	nodes, dims, order := l.joint(a, b)
	l.fits(dims...)
	return device(op(nodes[0], nodes[1]), dims, order)
}

func compareOp(holds func(x, y float64) bool) operator {
	return operator{inputs: [2]int{2, 2}, host: hostCompare(holds)}
}

func quotient(x, y int64) int64 {
	if y == 0 {
		fail("divides by zero")
	}
	return x / y
}

// floorMod is the remainder with the sign of the divisor, as Python's.
func floorMod(x, y int64) int64 {
	r := quotient(x, y)
	if r = x - r*y; r != 0 && (r < 0) != (y < 0) {
		r += y
	}
	return r
}

func power(x, y *graph.Node) *graph.Node { return graph.Pow(x, y) }

var powOp = func() operator {
	op := binaryOp(2, power,
		func(x, y float32) float32 { return float32(math.Pow(float64(x), float64(y))) },
		func(x, y int64) int64 { return int64(math.Pow(float64(x), float64(y))) })
	general := op.device
	op.device = func(l *lowering, n *node, in []*value) []*value {
		if in[0].host == nil && in[1].host != nil && in[1].size() == 1 {
			v := in[0]
			switch number(in[1].host, 0) {
			case 2:
				return []*value{like(v, graph.Mul(v.node, v.node))}
			case 0.5:
				return []*value{like(v, graph.Sqrt(v.node))}
			}
		}
		return general(l, n, in)
	}
	return op
}()

var castOp = operator{
	inputs: [2]int{1, 1},
	host:   hostCast,
	device: func(l *lowering, n *node, in []*value) []*value {
		if to := DType(n.int("to", 0)); !to.IsFloat() {
			fail("casts what depends on the picture to %s, which is not supported", to)
		}
		return []*value{l.lift(in[0])}
	},
}

var clipOp = operator{
	inputs: [2]int{1, 3},
	host: func(n *node, in []*array) []*array {
		low, high := clipBounds(n, in)
		return hostUnary(
			func(x float32) float32 { return min(max(x, low), high) },
			func(x int64) int64 { return int64(min(max(float64(x), float64(low)), float64(high))) },
		)(n, in)
	},
	device: func(l *lowering, n *node, in []*value) []*value {
		v := l.lift(in[0])
		knownInput(in, 1, "lower bound")
		knownInput(in, 2, "upper bound")
		low, high := clipBounds(n, hosts(in))
		x := v.node
		if low > -math.MaxFloat32 {
			x = graph.MaxScalar(x, float64(low))
		}
		if high < math.MaxFloat32 {
			x = graph.MinScalar(x, float64(high))
		}
		return []*value{like(v, x)}
	},
}

func clipBounds(n *node, in []*array) (low, high float32) {
	low, high = n.float("min", -math.MaxFloat32), n.float("max", math.MaxFloat32)
	if len(in) > 1 {
		low = number(in[1], low)
	}
	if len(in) > 2 {
		high = number(in[2], high)
	}
	return low, high
}

// activationOp applies a function with numbers from the operator's attributes.
func activationOp(write func(n *node, x *graph.Node) *graph.Node) operator {
	return operator{
		inputs: [2]int{1, 1},
		device: func(l *lowering, n *node, in []*value) []*value {
			v := l.lift(in[0])
			return []*value{like(v, write(n, v.node))}
		},
	}
}

func leaky(x *graph.Node, slope float32) *graph.Node {
	return graph.Add(graph.MaxScalar(x, 0), graph.MulScalar(graph.MinScalar(x, 0), float64(slope)))
}

func hardSigmoid(x *graph.Node, slope, offset float32) *graph.Node {
	return graph.MinScalar(graph.MaxScalar(graph.AddScalar(graph.MulScalar(x, float64(slope)), float64(offset)), 0), 1)
}

func elu(n *node, x *graph.Node) *graph.Node {
	below := graph.AddScalar(graph.Exp(graph.MinScalar(x, 0)), -1)
	return graph.Add(graph.MaxScalar(x, 0), graph.MulScalar(below, float64(n.float("alpha", 1))))
}

func gelu(n *node, x *graph.Node) *graph.Node {
	if n.text("approximate", "none") == "tanh" {
		cube := graph.Mul(graph.Mul(x, x), x)
		inner := graph.MulScalar(graph.Add(x, graph.MulScalar(cube, 0.044715)), math.Sqrt(2/math.Pi))
		return graph.MulScalar(graph.Mul(x, graph.AddScalar(graph.Tanh(inner), 1)), 0.5)
	}
	return graph.MulScalar(graph.Mul(x, graph.AddScalar(graph.Erf(graph.MulScalar(x, 1/math.Sqrt2)), 1)), 0.5)
}

// softplus is ln(1 + eˣ), which neither overflows nor loses what is small.
func softplus(x *graph.Node) *graph.Node {
	return graph.Add(graph.MaxScalar(x, 0), graph.Log1P(graph.Exp(graph.Neg(graph.Abs(x)))))
}

var preluOp = operator{
	inputs: [2]int{2, 2},
	device: func(l *lowering, _ *node, in []*value) []*value {
		return []*value{l.combine(func(x, slope *graph.Node) *graph.Node {
			return graph.Add(graph.MaxScalar(x, 0), graph.Mul(graph.MinScalar(x, 0), slope))
		}, in[0], in[1])}
	},
}

// activate applies an activation that was drawn into the operator before it.
func (l *lowering) activate(x *graph.Node, kind compute.ActivationType) *graph.Node {
	switch kind {
	case compute.ActivationRelu:
		return graph.MaxScalar(x, 0)
	case compute.ActivationSigmoid:
		return graph.Sigmoid(x)
	case compute.ActivationSilu:
		if l.native {
			return graph.Mul(x, graph.Sigmoid(x))
		}
		return graph.BackendFusedActivation(x, compute.ActivationConfig{Type: kind})
	}
	return x
}
