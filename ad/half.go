package ad

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/dtypes/bfloat16"
	"github.com/gomlx/gomlx/core/graph"
)

// Precision says in which types of numbers a product is taken: its factors are rounded to Factors, products are added up
// in float32 at least, and the result is rounded to Result. Derivatives are products of the same kind, each in the type of
// what it is the derivative by, so that a parameter in float32 gets a derivative in float32.
type Precision struct{ Factors, Result dtypes.DType }

// DType is the type of the value's numbers.
func (v *Value) DType() dtypes.DType { return v.node.DType() }

// Convert rounds x to another type. Its derivative is the cotangent in the type of x.
func Convert(x *Value, to dtypes.DType) *Value {
	from := x.DType()
	if from == to {
		return x
	}
	return x.tape.value(x.tape.convert(x.node, to), func(v *Value, _ int) *Value { return Convert(v, from) }, x)
}

func (t *Tape) convert(n *graph.Node, to dtypes.DType) *graph.Node {
	if n.DType() == to {
		return n
	}
	return t.memoize(fmt.Sprintf("convert %d to %s", n.Id(), to), func() *graph.Node { return graph.ConvertDType(n, to) })
}

// inFloat32 is f of a node, in float32 where the node is of half precision.
func inFloat32(n *graph.Node, f func(n *graph.Node) *graph.Node) *graph.Node {
	if !n.DType().IsHalfPrecision() {
		return f(n)
	}
	return graph.ConvertDType(f(graph.ConvertDType(n, dtypes.Float32)), n.DType())
}

// InFloat32 is f(activations, parameters), computed in float32 where the activations are of half precision, and rounded
// to their type. The derivative keeps the arguments as they came and nothing of what f computes in float32, which takes
// twice their memory: on the Go backend as [Checkpoint] does it, on others by leaving it to the compiler, which computes
// elementwise operations again where they are used. What is said of f there holds here.
func InFloat32(f func(activations, parameters []*Value) *Value, activations, parameters []*Value) *Value {
	half := activations[0].DType()
	if !half.IsHalfPrecision() {
		return f(activations, parameters)
	}
	whole := func(activations, parameters []*Value) *Value {
		wide := make([]*Value, len(activations))
		for i, a := range activations {
			wide[i] = Convert(a, dtypes.Float32)
		}
		return Convert(f(wide, parameters), half)
	}
	if activations[0].tape.native {
		return whole(activations, parameters)
	}
	return Checkpoint(whole, activations, parameters)
}

// representable tells whether c is a number of the given type, or of no half-precision one and rounded as any other.
func representable(c float64, dtype dtypes.DType) bool {
	switch dtype {
	case dtypes.BFloat16:
		return float64(bfloat16.FromFloat64(c).Float32()) == c
	case dtypes.Float16:
		return false
	default:
		return true
	}
}
