package ad

import (
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"
)

// Add is a + b. Axes of one are repeated to fit, as in every binary operation here; ranks must agree.
func Add(a, b *Value) *Value {
	x, y := broadcastPair(a, b)
	return a.tape.value(graph.Add(x, y), func(v *Value, i int) *Value {
		if i == 0 {
			return SumTo(v, a.Dims()...)
		}
		return SumTo(v, b.Dims()...)
	}, a, b)
}

// Sub is a − b.
func Sub(a, b *Value) *Value {
	x, y := broadcastPair(a, b)
	return a.tape.value(graph.Sub(x, y), func(v *Value, i int) *Value {
		if i == 0 {
			return SumTo(v, a.Dims()...)
		}
		return Neg(SumTo(v, b.Dims()...))
	}, a, b)
}

// Mul is the elementwise product.
func Mul(a, b *Value) *Value {
	x, y := broadcastPair(a, b)
	return a.tape.value(graph.Mul(x, y), func(v *Value, i int) *Value {
		if i == 0 {
			return SumTo(Mul(v, b), a.Dims()...)
		}
		return SumTo(Mul(v, a), b.Dims()...)
	}, a, b)
}

// Neg is −x.
func Neg(x *Value) *Value { return Scale(x, -1) }

// Scale is c·x for a number c, which is not rounded to half precision even where x is.
func Scale(x *Value, c float64) *Value {
	scaled := func(n *graph.Node) *graph.Node { return graph.MulScalar(n, c) }
	n := x.node
	if representable(c, n.DType()) {
		n = scaled(n)
	} else {
		n = inFloat32(n, scaled)
	}
	return x.tape.value(n, func(v *Value, _ int) *Value { return Scale(v, c) }, x)
}

// AddNumber is x + c for a number c.
func AddNumber(x *Value, c float64) *Value {
	return x.tape.value(graph.AddScalar(x.node, c), func(v *Value, _ int) *Value { return v }, x)
}

// Square is x².
func Square(x *Value) *Value { return Mul(x, x) }

// Exp is e^x.
func Exp(x *Value) *Value {
	var y *Value
	y = x.tape.value(graph.Exp(x.node), func(v *Value, _ int) *Value { return Mul(v, y) }, x)
	return y
}

// Log is the natural logarithm.
func Log(x *Value) *Value {
	return x.tape.value(graph.Log(x.node), func(v *Value, _ int) *Value { return Mul(v, Reciprocal(x)) }, x)
}

// Reciprocal is 1/x.
func Reciprocal(x *Value) *Value {
	var y *Value
	y = x.tape.value(graph.Reciprocal(x.node), func(v *Value, _ int) *Value { return Neg(Mul(v, Square(y))) }, x)
	return y
}

// Rsqrt is 1/√x.
func Rsqrt(x *Value) *Value {
	var y *Value
	y = x.tape.value(graph.Reciprocal(graph.Sqrt(x.node)), func(v *Value, _ int) *Value {
		return Scale(Mul(v, Mul(y, Square(y))), -0.5)
	}, x)
	return y
}

// Sigmoid is 1/(1 + e^−x).
func Sigmoid(x *Value) *Value {
	var y *Value
	y = x.tape.value(graph.Sigmoid(x.node), func(v *Value, _ int) *Value {
		return Mul(v, Sub(y, Square(y)))
	}, x)
	return y
}

// Erf is the error function.
func Erf(x *Value) *Value {
	return x.tape.value(graph.Erf(x.node), func(v *Value, _ int) *Value {
		return Mul(v, Scale(Exp(Neg(Square(x))), 2/math.Sqrt(math.Pi)))
	}, x)
}

// Minimum is min(x, c) for a number c; where x = c the derivative is that of x.
func Minimum(x *Value, c float64) *Value {
	return x.tape.value(graph.MinScalar(x.node, c), func(v *Value, _ int) *Value {
		below := graph.ConvertDType(graph.LessOrEqual(x.node, graph.Scalar(x.tape.g, x.node.DType(), c)), x.node.DType())
		return Mul(v, x.tape.Input(below))
	}, x)
}

// Softmax is taken over the last axis.
func Softmax(x *Value) *Value { return SoftmaxTo(x, x.DType()) }

// SoftmaxTo is Softmax, computed in the type of x and rounded to another one. The derivative keeps only the rounded
// result; it is computed in float32 at least.
func SoftmaxTo(x *Value, to dtypes.DType) *Value {
	var y *Value
	from := x.DType()
	y = x.tape.value(graph.ConvertDType(graph.Softmax(x.node, -1), to), func(v *Value, _ int) *Value {
		return softmaxBack(v, y, from)
	}, x)
	return y
}

// softmaxBack is the cotangent of a softmax's argument, of type from, given its result y and the cotangent v of that.
func softmaxBack(v, y *Value, from dtypes.DType) *Value {
	wide := y.DType()
	if wide.IsHalfPrecision() {
		wide = dtypes.Float32
	}
	v, y = Convert(v, wide), Convert(y, wide)
	weighted := Mul(v, y)
	rows := append([]int(nil), weighted.Dims()...)
	rows[len(rows)-1] = 1
	return Convert(Sub(weighted, Mul(y, SumTo(weighted, rows...))), from)
}

// ConstantSinCos is the sine and cosine of x, taken as constants by derivatives: timesteps and sizes are never
// differentiated.
func ConstantSinCos(x *Value) (sin, cos *Value) {
	return x.tape.Input(graph.Sin(x.node)), x.tape.Input(graph.Cos(x.node))
}
