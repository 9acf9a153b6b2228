package train

import (
	"math"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// Constants of Adafactor (Shazeer and Stern 2018, algorithms 4 and 6), as in transformers' Adafactor with
// scale_parameter, relative_step and warmup_init off: the learning rate is the one that is given.
const (
	adafactorEps   = 1e-30 // ε₁, added to squared gradients
	adafactorLimit = 1     // d, the root mean square that an update is scaled down to
	adafactorDecay = 0.8   // the second moment keeps 1 − t^−0.8 of itself in step t
)

// factored returns the two axes over which Adafactor factors the second moment of a parameter, or false for vectors. They
// are the last two, except in a convolution's kernel [out, height, width, in]: there they are height and width, the last
// two of PyTorch's layout.
func factored(rank int) (row, column int, ok bool) {
	switch {
	case rank < 2:
		return 0, 0, false
	case rank == 4:
		return 1, 2, true
	}
	return rank - 2, rank - 1, true
}

// adafactorShape is the shape of a factor: the first slot holds the means over columns, the second those over rows. The
// second moment of a vector is kept whole in the first slot, and the second is a single unused number.
func adafactorShape(slot int, param []int) []int {
	row, column, ok := factored(len(param))
	switch {
	case ok && slot == 0:
		return slices.Delete(slices.Clone(param), column, column+1)
	case ok:
		return slices.Delete(slices.Clone(param), row, row+1)
	case slot == 0:
		return slices.Clone(param)
	}
	return []int{1}
}

func (o Optimizer) applyAdafactor(lr, step, param, grad *graph.Node, state []*graph.Node) (*graph.Node, []*graph.Node) {
	share := graph.Exp(graph.MulScalar(graph.Log(step), -adafactorDecay)) // t^−0.8, of the newest gradient
	average := func(old, new *graph.Node) *graph.Node {
		return graph.Add(graph.Mul(old, graph.OneMinus(share)), graph.Mul(new, share))
	}
	square := graph.AddScalar(graph.Square(grad), adafactorEps)
	update, next := grad, []*graph.Node{nil, state[1]}
	if row, column, ok := factored(param.Rank()); ok {
		rows := average(state[0], graph.ReduceMean(square, column))
		columns := average(state[1], graph.ReduceMean(square, row))
		// The axis of rows has the same number in both, as the one removed comes after it.
		relative := graph.Div(rows, graph.ReduceAndKeep(rows, graph.ReduceMean, row))
		update = graph.Mul(update, graph.ExpandAxes(graph.Rsqrt(relative), column))
		update = graph.Mul(update, graph.ExpandAxes(graph.Rsqrt(columns), row))
		next[0], next[1] = rows, columns
	} else {
		next[0] = average(state[0], square)
		update = graph.Mul(update, graph.Rsqrt(next[0]))
	}
	size := float64(param.Shape().Size())
	norm := graph.MulScalar(graph.Sqrt(graph.ReduceAllSum(graph.Square(update))), 1/math.Sqrt(size))
	update = graph.Div(update, graph.MaxScalar(graph.DivScalar(norm, adafactorLimit), 1))
	if o.WeightDecay != 0 {
		param = graph.Mul(param, graph.OneMinus(graph.MulScalar(lr, o.WeightDecay)))
	}
	return graph.Sub(param, graph.Mul(lr, update)), next
}
