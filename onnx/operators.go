package onnx

import (
	"maps"
	"math"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// Operators lists the operators that can be computed, by their names in ONNX.
func Operators() []string { return slices.Sorted(maps.Keys(operators)) }

var operators = map[string]operator{
	// Shapes.
	"Constant":        {inputs: [2]int{0, 0}, host: hostConstant},
	"ConstantOfShape": {inputs: [2]int{1, 1}, host: hostConstantOfShape},
	"Range":           {inputs: [2]int{3, 3}, host: hostRange},
	"Shape":           {inputs: [2]int{1, 1}},
	"Size":            {inputs: [2]int{1, 1}},
	"Reshape":         reshapeOp(2, reshapeDims),
	"Flatten":         reshapeOp(1, flattenDims),
	"Squeeze":         reshapeOp(2, squeezeDims),
	"Unsqueeze":       reshapeOp(2, unsqueezeDims),
	"Transpose":       transposeOp,
	"Concat":          concatOp,
	"Split":           splitOp,
	"Slice":           sliceOp,
	"Gather":          gatherOp,
	"Expand":          expandOp,
	"Pad":             padOp,
	"Identity":        identityOp,
	"Dropout":         identityOp,
	"Cast":            castOp,
	"Equal":           compareOp(func(x, y float64) bool { return x == y }),
	"Greater":         compareOp(func(x, y float64) bool { return x > y }),
	"Less":            compareOp(func(x, y float64) bool { return x < y }),
	"Where":           {inputs: [2]int{3, 3}, host: hostWhere},
	"Mod":             {inputs: [2]int{2, 2}, host: hostBinary(func(x, y float32) float32 { return float32(math.Mod(float64(x), float64(y))) }, floorMod)},

	// Numbers, one by one.
	"Add": binaryOp(2, graph.Add, func(x, y float32) float32 { return x + y }, func(x, y int64) int64 { return x + y }),
	"Sub": binaryOp(2, graph.Sub, func(x, y float32) float32 { return x - y }, func(x, y int64) int64 { return x - y }),
	"Mul": binaryOp(2, graph.Mul, func(x, y float32) float32 { return x * y }, func(x, y int64) int64 { return x * y }),
	"Div": binaryOp(2, graph.Div, func(x, y float32) float32 { return x / y }, quotient),
	"Min": binaryOp(maxNames, graph.Min, func(x, y float32) float32 { return min(x, y) }, func(x, y int64) int64 { return min(x, y) }),
	"Max": binaryOp(maxNames, graph.Max, func(x, y float32) float32 { return max(x, y) }, func(x, y int64) int64 { return max(x, y) }),
	"Sum": binaryOp(maxNames, graph.Add, func(x, y float32) float32 { return x + y }, func(x, y int64) int64 { return x + y }),
	"Pow": powOp,
	"Neg": signedOp(graph.Neg, func(x float32) float32 { return -x }, func(x int64) int64 { return -x }),
	"Abs": signedOp(graph.Abs, func(x float32) float32 { return float32(math.Abs(float64(x))) }, func(x int64) int64 { return max(x, -x) }),
	"Floor": signedOp(graph.Floor,
		func(x float32) float32 { return float32(math.Floor(float64(x))) }, func(x int64) int64 { return x }),
	"Ceil": signedOp(graph.Ceil,
		func(x float32) float32 { return float32(math.Ceil(float64(x))) }, func(x int64) int64 { return x }),
	"Sqrt":       unaryOp(graph.Sqrt, math.Sqrt),
	"Reciprocal": unaryOp(graph.Reciprocal, func(x float64) float64 { return 1 / x }),
	"Exp":        unaryOp(graph.Exp, math.Exp),
	"Log":        unaryOp(graph.Log, math.Log),
	"Erf":        unaryOp(graph.Erf, math.Erf),
	"Sigmoid":    unaryOp(graph.Sigmoid, func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }),
	"Tanh":       unaryOp(graph.Tanh, math.Tanh),
	"Clip":       clipOp,

	// Activations.
	"Relu": activationOp(func(_ *node, x *graph.Node) *graph.Node { return graph.MaxScalar(x, 0) }),
	"LeakyRelu": activationOp(func(n *node, x *graph.Node) *graph.Node {
		return leaky(x, n.float("alpha", 0.01))
	}),
	"HardSigmoid": activationOp(func(n *node, x *graph.Node) *graph.Node {
		return hardSigmoid(x, n.float("alpha", 0.2), n.float("beta", 0.5))
	}),
	"HardSwish": activationOp(func(_ *node, x *graph.Node) *graph.Node { return graph.Mul(x, hardSigmoid(x, 1./6, 0.5)) }),
	"Elu":       activationOp(elu),
	"Gelu":      activationOp(gelu),
	"Softplus":  activationOp(func(_ *node, x *graph.Node) *graph.Node { return softplus(x) }),
	"Mish":      activationOp(func(_ *node, x *graph.Node) *graph.Node { return graph.Mul(x, graph.Tanh(softplus(x))) }),
	"PRelu":     preluOp,

	// Matrices.
	"MatMul":             matMulOp,
	"Gemm":               gemmOp,
	"Softmax":            softmaxOp(graph.Softmax),
	"LogSoftmax":         softmaxOp(graph.LogSoftmax),
	"BatchNormalization": batchNormOp,
	"LayerNormalization": layerNormOp,
	"ReduceMean":         reduceOp(graph.ReduceMean, nil),
	"ReduceSum":          reduceOp(graph.ReduceSum, hostReduce(0, func(s, v float64) float64 { return s + v })),
	"ReduceMax":          reduceOp(graph.ReduceMax, hostReduce(math.Inf(-1), math.Max)),
	"ReduceMin":          reduceOp(graph.ReduceMin, hostReduce(math.Inf(1), math.Min)),
	"ReduceProd":         {inputs: [2]int{1, 2}, host: hostReduce(1, func(s, v float64) float64 { return s * v })},

	// Pictures.
	"Conv":              convOp,
	"MaxPool":           maxPoolOp,
	"AveragePool":       averagePoolOp,
	"GlobalAveragePool": globalOp(graph.ReduceMean),
	"GlobalMaxPool":     globalOp(graph.ReduceMax),
	"Resize":            resizeOp,
	"Upsample":          resizeOp,
}
