package denoise

import (
	"context"
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/train"
)

// trail is the last steps of a descent, kept so that a derivative can be taken back along them: exact reverse-mode
// differentiation of the optimizer, without any model of what it converges to.
type trail struct {
	limit  int
	prints []footprint
}

// footprint is one step of a descent: what it started from and what it used.
type footprint struct {
	point    Point
	gradient Vector // before scaling
	moments  Vector
	owned    bool // the moving tensors of point belong to the trail
	step     int  // counted from 1
	scale    float64
	rate     float64
}

func (f footprint) free(s Selection) {
	f.gradient.Free()
	f.moments.Free()
	if f.owned {
		s.Of(f.point).Free()
	}
}

// Record makes the descent keep its last steps, as many as are given, until it is freed. Each holds as much memory as
// the moving parameters, their gradient and the optimizer's moments.
func (d *Descent) Record(steps int) { d.trail = &trail{limit: steps} }

func (t *trail) add(s Selection, f footprint) {
	t.prints = append(t.prints, f)
	if len(t.prints) > t.limit {
		t.prints[0].free(s)
		t.prints = t.prints[1:]
	}
}

func (t *trail) free(s Selection) {
	if t == nil {
		return
	}
	for _, f := range t.prints {
		f.free(s)
	}
	t.prints = nil
}

// Unrolled takes right, a derivative by the parameters where the descent stands, back along its last steps, as many as are
// given or as it kept.
// Curvature returns H·v for the loss of a step, counted from 1 as the descent does, by the moving parameters at p. Each,
// if not nil, is given the derivative by the gradient of a step, through which parameters that do not move get their
// share. Limit is what gradients were clipped to; 0 is none. The moments of the first of the steps are taken as given.
func (d *Descent) Unrolled(
	ctx context.Context, space *Space, steps int, right Vector, limit float64,
	curvature func(step int, p Point, v Vector) (Vector, error), each func(step int, p Point, v Vector) error,
) (Vector, error) {
	if d.trail == nil || len(d.trail.prints) == 0 || steps < 1 {
		return nil, fmt.Errorf("%w: a descent that kept none of its steps cannot be unrolled", engine.ErrInternal)
	}
	if err := d.optimizer.CheckReversible(); err != nil {
		return nil, err
	}
	n, slots := d.selection.Len(), d.optimizer.StateSlots()
	adjoint, err := space.Mix(1, right, 0, right) // a copy
	if err != nil {
		return nil, err
	}
	var moments Vector // derivatives by the optimizer's state
	for range slots {
		zero, err := space.Mix(0, right, 0, right)
		if err != nil {
			adjoint.Free()
			return nil, err
		}
		moments = append(moments, zero...)
	}
	defer func() { adjoint.Free(); moments.Free() }()
	for _, print := range slices.Backward(d.trail.prints[max(0, len(d.trail.prints)-steps):]) {
		back, err := d.pullback(ctx, print, adjoint, moments)
		if err != nil {
			return nil, err
		}
		adjoint.Free()
		moments.Free()
		adjoint, moments = back[:n:n], back[2*n:]
		byGradient := back[n : 2*n : 2*n]
		if adjoint, err = d.throughLoss(space, print, adjoint, byGradient, limit, curvature, each); err != nil {
			return nil, err
		}
	}
	out := adjoint
	adjoint = nil
	return out, nil
}

// throughLoss adds what the adjoint gets by way of the step's gradient. It uses up both vectors.
func (d *Descent) throughLoss(
	space *Space, print footprint, adjoint, byGradient Vector, limit float64,
	curvature func(step int, p Point, v Vector) (Vector, error), each func(step int, p Point, v Vector) error,
) (_ Vector, err error) {
	defer func() {
		byGradient.Free()
		if err != nil {
			adjoint.Free()
		}
	}()
	unclipped, err := unclip(space, print, byGradient, limit)
	if err != nil {
		return nil, err
	}
	defer unclipped.Free()
	if each != nil {
		if err := each(print.step, print.point, unclipped); err != nil {
			return nil, err
		}
	}
	curved, err := curvature(print.step, print.point, unclipped)
	if err != nil {
		return nil, err
	}
	return space.Accumulate(adjoint, curved)
}

// unclip is the reverse of g ↦ s(g)·g for s = min(1, limit/(‖g‖+ε)), see ClipScale.
func unclip(space *Space, print footprint, v Vector, limit float64) (Vector, error) {
	if limit == 0 || print.scale >= 1 {
		return space.Mix(print.scale, v, 0, v)
	}
	norm, err := space.Norm(print.gradient)
	if err != nil {
		return nil, err
	}
	along, err := space.Dot(print.gradient, v)
	if err != nil {
		return nil, err
	}
	return space.Mix(print.scale, v, -print.scale*along/(norm*(norm+clipEps)), print.gradient)
}

// pullback is the reverse of one optimizer step: derivatives by the parameters, by the scaled gradient, and by the
// moments before it.
func (d *Descent) pullback(ctx context.Context, print footprint, adjoint, moments Vector) (Vector, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	f, err := d.net.function(ReverseGraph(d.optimizer, d.selection.Len()))
	if err != nil {
		return nil, err
	}
	numbers := Vector{engine.Scalar(d.optimizer.LR * print.rate), engine.Scalar(float64(print.step)), engine.Scalar(print.scale)}
	defer numbers.Free()
	return f.Call(slices.Concat(d.selection.Of(print.point), print.gradient, print.moments, adjoint, moments, numbers)...)
}

// ReverseGraph is the graph that takes derivatives back through one step of an optimizer over n parameters: where it
// started from, gradient and moments, the derivatives by the new parameters and moments, then rate, count and scale, to
// derivatives by the old parameters, the scaled gradient and the old moments.
func ReverseGraph(o train.Optimizer, n int) Graph {
	slots := o.StateSlots()
	return descentGraph("reverse of step", o, n, func(tape *ad.Tape, in []*ad.Value) []*ad.Value {
		part := func(k int) []*ad.Value { return in[k*n : (k+1)*n] }
		numbers := in[(3+2*slots)*n:]
		out := make([]*ad.Value, (2+slots)*n)
		for i := range n {
			var state, stateAdjoints []*ad.Value
			for s := range slots {
				state = append(state, part(2 + s)[i])
				stateAdjoints = append(stateAdjoints, part(3 + slots + s)[i])
			}
			a := o.Pullback(numbers[0].Node(), numbers[1].Node(), part(0)[i].Node(), scaled(part(1)[i], numbers[2]).Node(), ad.Nodes(state),
				part(2 + slots)[i].Node(), ad.Nodes(stateAdjoints))
			out[i], out[n+i] = tape.Input(a.Param), tape.Input(a.Grad)
			for s, node := range a.State {
				out[(2+s)*n+i] = tape.Input(node)
			}
		}
		return out
	})
}
