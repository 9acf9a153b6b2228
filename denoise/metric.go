package denoise

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/train"
)

// metricFloor bounds the metric from below, in shares of its mean: Adam moves a coordinate that hardly ever has a gradient
// as far as any other, and a proximal term of weight zero would let the linear model move it anywhere.
const metricFloor = 1e-2

// Metric is the diagonal P in whose norm the descent's steps are steepest descent: for Adam the root of the second moment.
// It returns √P and 1/√P, scaled so that P has mean 1 over all coordinates. A proximal term ‖φ − θ‖²_P/2γ then describes
// where the optimizer goes.
func (d *Descent) Metric(ctx context.Context) (root, inverse Vector, err error) {
	if !d.optimizer.HasSecondMoments() {
		return nil, nil, fmt.Errorf("denoise: %s has no second moments to make a metric of", d.optimizer.Name)
	}
	if d.steps == 0 {
		return nil, nil, fmt.Errorf("denoise: an optimizer that has not taken a step has no metric")
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, context.Cause(ctx)
	}
	n := d.selection.Len()
	// The bias correction of the moments is a common factor, which the mean takes out again; it is left with ε.
	epsilon := engine.Scalar(d.optimizer.Eps * math.Sqrt(1-math.Pow(d.optimizer.Beta2, float64(d.steps))))
	defer engine.Free(epsilon)
	f, err := d.net.function(MetricGraph(d.optimizer, n))
	if err != nil {
		return nil, nil, err
	}
	out, err := f.Call(append(d.moments[n:2*n:2*n], epsilon)...)
	if err != nil {
		return nil, nil, err
	}
	return out[:n:n], out[n:], nil
}

// MetricGraph is the graph of [Descent.Metric] for so many parameters: second moments and an ε to √P and 1/√P.
func MetricGraph(o train.Optimizer, n int) Graph {
	return descentGraph("metric of", o, n, func(tape *ad.Tape, in []*ad.Value) []*ad.Value {
		roots, sum, size := make([]*ad.Value, n), (*ad.Value)(nil), 0
		for i := range n {
			roots[i] = tape.Input(graph.Add(graph.Sqrt(in[i].Node()), in[n].Node()))
			part := ad.SumAll(roots[i])
			if size += roots[i].Size(); sum == nil {
				sum = part
			} else {
				sum = ad.Add(sum, part)
			}
		}
		scale := ad.Reciprocal(ad.Scale(sum, 1/float64(size)))
		out := make([]*ad.Value, 2*n)
		for i, r := range roots {
			p := ad.Mul(r, ad.Reshape(scale, slices.Repeat([]int{1}, r.Rank())...))
			p = ad.AddNumber(p, metricFloor)
			out[i], out[n+i] = tape.Input(graph.Sqrt(p.Node())), ad.Rsqrt(p)
		}
		return out
	})
}
