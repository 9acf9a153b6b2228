package denoise

import (
	"context"
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// Descent is an optimizer on its way through parameter space: where it is, its moments, and how many steps it took. The
// selected tensors and the moments are its own; the others belong to whoever made the point it started from.
type Descent struct {
	net       *Network
	selection Selection
	optimizer train.Optimizer

	point   Point
	moments Vector // slot by slot
	owned   bool   // the selected tensors of point were made here
	steps   int
	trail   *trail // where it is recorded; nil: nowhere

	partBytes int // how large a part of a step may be; 0: what the engine needs
}

// NewDescent starts at a point, which stays as it is, with fresh moments.
func NewDescent(n *Network, s Selection, o train.Optimizer, start Point) (*Descent, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	d := &Descent{net: n, selection: s, optimizer: o, point: slices.Clone(start)}
	for slot := range o.StateSlots() {
		for _, t := range s.Of(start) {
			zeros, err := n.Model.Engine.Zeros(o.StateShape(slot, engine.Shape(t))...)
			if err != nil {
				d.moments.Free()
				return nil, err
			}
			d.moments = append(d.moments, zeros)
		}
	}
	return d, nil
}

// Own makes the parameters that move the descent's, which frees them, before the first step: that step then takes their
// memory, as every later one takes that of the step before.
func (d *Descent) Own() { d.owned = true }

// Point is where the descent stands. It stays valid until the next step.
func (d *Descent) Point() Point { return d.point }

// Steps is the number of steps taken.
func (d *Descent) Steps() int { return d.steps }

// Selected are the parameters that move, where they stand.
func (d *Descent) Selected() Vector { return d.selection.Of(d.point) }

// Step moves against the gradient, which is multiplied by scale first (for clipping), at the given share of the
// optimizer's learning rate. The gradient is used up.
func (d *Descent) Step(ctx context.Context, gradient Vector, scale, rate float64) error {
	kept := false
	defer func() {
		if !kept {
			gradient.Free()
		}
	}()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	n, slots := d.selection.Len(), d.optimizer.StateSlots()
	if len(gradient) != n {
		return fmt.Errorf("denoise: a gradient of %d tensors for %d parameters", len(gradient), n)
	}
	rateTensor, stepTensor, scaleTensor := engine.Scalar(d.optimizer.LR*rate), engine.Scalar(float64(d.steps+1)), engine.Scalar(scale)
	defer engine.Free(rateTensor, stepTensor, scaleTensor)
	next, moments := make(Vector, n), make(Vector, slots*n)
	done := false
	defer func() {
		if !done {
			next.Free()
			moments.Free()
		}
	}()
	from := d.Selected()
	for _, part := range d.parts() {
		k := part.To - part.From
		take := func(v Vector) Vector { return v[part.From:part.To] }
		inputs := slices.Concat(take(from), take(gradient))
		for s := range slots {
			inputs = append(inputs, take(d.moments[s*n:(s+1)*n])...)
		}
		donate := make([]bool, len(inputs)+3)
		for i := range inputs {
			donate[i] = d.trail == nil && (i >= k || d.owned)
		}
		f, err := d.net.function(StepGraph(d.optimizer, k))
		if err != nil {
			return err
		}
		out, err := f.CallDonating(donate, append(inputs, rateTensor, stepTensor, scaleTensor)...)
		if err != nil {
			return err
		}
		copy(take(next), out)
		for s := range slots {
			copy(take(moments[s*n:(s+1)*n]), out[(1+s)*k:])
		}
	}
	if d.trail != nil {
		kept = true
		d.trail.add(d.selection, footprint{point: d.point, gradient: gradient, moments: d.moments, owned: d.owned, step: d.steps + 1, scale: scale, rate: rate})
	}
	d.point = d.selection.Put(d.point, next)
	d.moments, d.owned = moments, true
	d.steps++
	done = true
	return nil
}

// Span is a range of the parameters that move.
type Span struct{ From, To int }

// stepPartBytes is how large the parameters of one part of a step may be together.
const stepPartBytes = 256 << 20

// StepParts divides a step of parameters of the given sizes in bytes. On the Go engine what is given up holds the results,
// and all moves at once. XLA gives inputs back only when a program ends, so several programs, one after the other, need new
// parameters and moments beside the old ones for one part at a time.
func StepParts(xla bool, bytes []int) []Span {
	if !xla {
		return []Span{{0, len(bytes)}}
	}
	return stepParts(bytes, stepPartBytes)
}

func stepParts(bytes []int, limit int) []Span {
	var out []Span
	from, held := 0, 0
	for i, size := range bytes {
		if i > from && held+size > limit {
			out = append(out, Span{from, i})
			from, held = i, 0
		}
		held += size
	}
	return append(out, Span{from, len(bytes)})
}

func (d *Descent) parts() []Span {
	var bytes []int
	for _, t := range d.Selected() {
		bytes = append(bytes, 4*t.Size())
	}
	if d.partBytes > 0 {
		return stepParts(bytes, d.partBytes)
	}
	return StepParts(d.net.Model.Engine.Kind() != "go", bytes)
}

// StepGraph is the graph of one step of an optimizer over n parameters: parameters, gradients and moments, slot by slot, then
// rate, count and scale, to parameters and moments. The rate is an input, so that one program serves a whole schedule.
func StepGraph(o train.Optimizer, n int) Graph {
	slots := o.StateSlots()
	return descentGraph("step", o, n, func(tape *ad.Tape, in []*ad.Value) []*ad.Value {
		params, grads, moments, numbers := in[:n], in[n:2*n], in[2*n:(2+slots)*n], in[(2+slots)*n:]
		out := make([]*ad.Value, (1+slots)*n)
		for i := range n {
			var state []*ad.Value
			for s := range slots {
				state = append(state, moments[s*n+i])
			}
			next, states := o.Apply(numbers[0].Node(), numbers[1].Node(), params[i].Node(), scaled(grads[i], numbers[2]).Node(), ad.Nodes(state))
			out[i] = tape.Input(next)
			for s, node := range states {
				out[(1+s)*n+i] = tape.Input(node)
			}
		}
		return out
	})
}

// scaled is an array times a single number.
func scaled(v, number *ad.Value) *ad.Value {
	return ad.Mul(v, ad.Reshape(number, slices.Repeat([]int{1}, v.Rank())...))
}

// Release gives up the selected tensors to the caller, who frees them, and frees the moments.
func (d *Descent) Release() (p Point, owned bool) {
	d.trail.free(d.selection)
	engine.Free(d.moments...)
	d.moments = nil
	return d.point, d.owned
}

// Free releases everything the descent made.
func (d *Descent) Free() {
	d.trail.free(d.selection)
	engine.Free(d.moments...)
	if d.owned {
		engine.Free(d.Selected()...)
	}
	d.moments, d.owned = nil, false
}

// Tensors lists the moving parameters and the moments for a checkpoint, under names that begin with prefix. They are read
// when they are written, before the next step.
func (d *Descent) Tensors(prefix string) []weights.Deferred {
	var out []weights.Deferred
	add := func(kind string, specs []nn.Spec, v Vector) {
		for i, s := range specs {
			out = append(out, Deferred(prefix+kind+s.Name, v[i]))
		}
	}
	specs := d.selection.Specs(d.net)
	add("parameter.", specs, d.Selected())
	for slot := range d.optimizer.StateSlots() {
		add(fmt.Sprintf("moment%d.", slot), specs, d.moments[slot*len(specs):][:len(specs)])
	}
	return out
}

// Deferred is a tensor as a file is to hold it: copied from the engine when it is written.
func Deferred(name string, x *engine.Tensor) weights.Deferred {
	shape := engine.Shape(x)
	return weights.Deferred{Name: name, DType: weights.F32, Shape: shape, Read: func() (read *weights.Tensor, err error) {
		err = engine.Read(x, func(values []float32) error {
			read = weights.NewFloat32(name, shape, values)
			return nil
		})
		return read, err
	}}
}

// Restore goes back to where Tensors and Steps were taken. What it replaces is freed before: after an error the descent can
// only be freed.
func (d *Descent) Restore(prefix string, steps int, source weights.Source) error {
	specs := d.selection.Specs(d.net)
	shapes := make([][]int, len(specs))
	for i, x := range d.Selected() {
		shapes[i] = engine.Shape(x)
	}
	d.Free()
	read := func(kind string, shape func(i int) []int) (Vector, error) {
		out := make(Vector, len(specs))
		for i, s := range specs {
			var err error
			if out[i], err = Restored(d.net.Model.Engine, source, prefix+kind+s.Name, shape(i)); err != nil {
				out.Free()
				return nil, err
			}
		}
		return out, nil
	}
	params, err := read("parameter.", func(i int) []int { return shapes[i] })
	if err != nil {
		return err
	}
	var moments Vector
	for slot := range d.optimizer.StateSlots() {
		v, err := read(fmt.Sprintf("moment%d.", slot), func(i int) []int { return d.optimizer.StateShape(slot, shapes[i]) })
		if err != nil {
			params.Free()
			moments.Free()
			return err
		}
		moments = append(moments, v...)
	}
	d.point, d.moments, d.owned, d.steps = d.selection.Put(d.point, params), moments, true, steps
	return nil
}

// Restored is a tensor of a checkpoint, read to where an engine computes.
func Restored(e *engine.Engine, source weights.Source, name string, shape []int) (*engine.Tensor, error) {
	t, err := source.Tensor(name)
	if err == nil && !slices.Equal(t.Shape, shape) {
		err = fmt.Errorf("%s is %v, not %v", name, t.Shape, shape)
	}
	var x *engine.Tensor
	if err == nil {
		x, err = e.Made(t.Float32Into, shape...)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return x, nil
}

// ContinueDescent goes on where another descent stopped, possibly at another place: selected are the moving parameters
// and moments the optimizer's state after the given number of steps; both become the descent's own.
func ContinueDescent(n *Network, s Selection, o train.Optimizer, fixed Point, selected, moments Vector, steps int) *Descent {
	return &Descent{net: n, selection: s, optimizer: o, point: s.Put(fixed, selected), moments: moments, owned: true, steps: steps}
}

// TakeMoments hands the optimizer's state to the caller. The descent can take no further step.
func (d *Descent) TakeMoments() Vector {
	m := d.moments
	d.moments = nil
	return m
}
