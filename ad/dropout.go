package ad

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
)

// Dropout replaces each element of x by zero with probability share, from 0 up to but not 1, and divides the others by
// 1 − share. The seed, an int32 array [1], the number of the draw and an element's place say which: equal ones, in whatever
// derivative and on whatever backend, drop the same elements.
func Dropout(x, seed *Value, draw uint32, share float64) *Value {
	if !(share >= 0 && share < 1) || seed.Size() != 1 {
		panic(fmt.Errorf("ad: a dropout of %v with a seed of shape %v", share, seed.Dims()))
	}
	if uint64(x.Size()) >= 1<<32 {
		panic(fmt.Errorf("ad: a dropout of %d elements repeats itself; use smaller batches", x.Size()))
	}
	t := x.tape
	word := func(v uint32) *graph.Node { return graph.Const(t.g, []uint32{v}) }
	start := graph.Add(graph.Bitcast(graph.Reshape(seed.node, 1), dtypes.Uint32), word(draw))
	place := graph.Iota(t.g, shapes.Make(dtypes.Uint32, x.Size()), 0)
	bits := mixBits(graph.Add(graph.Mul(place, word(0x9e3779b1)), mixBits(start)))
	// 24 bits are exact in float32.
	uniform := graph.ConvertDType(graph.BitwiseShiftRightLogicalScalar(bits, uint32(8)), dtypes.Float32)
	kept := graph.GreaterOrEqual(uniform, graph.Scalar(t.g, dtypes.Float32, share*(1<<24)))
	mask := graph.MulScalar(graph.ConvertDType(kept, x.node.DType()), 1/(1-share))
	return Mul(x, t.Input(graph.Reshape(mask, x.Dims()...)))
}

// mixBits spreads a change of any bit of a 32-bit word over all of them (the finalizer of MurmurHash3, Appleby 2011).
func mixBits(h *graph.Node) *graph.Node {
	word := func(v uint32) *graph.Node { return graph.Const(h.Graph(), []uint32{v}) }
	h = graph.BitwiseXor(h, graph.BitwiseShiftRightLogicalScalar(h, uint32(16)))
	h = graph.Mul(h, word(0x85ebca6b))
	h = graph.BitwiseXor(h, graph.BitwiseShiftRightLogicalScalar(h, uint32(13)))
	h = graph.Mul(h, word(0xc2b2ae35))
	return graph.BitwiseXor(h, graph.BitwiseShiftRightLogicalScalar(h, uint32(16)))
}
