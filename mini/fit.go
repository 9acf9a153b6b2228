package mini

import (
	"context"
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// fitting is a short training run: Adam, a warm-up, a cosine decay to zero, gradients clipped to 1.
type fitting struct {
	name   string
	params *sd.Params // to start from; they are used up
	// loss builds the scalar to be minimised from the parameters and the tensors of a batch.
	loss func(w *nn.Weights, in []*ad.Value) *ad.Value
	// batch gives the tensors of a step, counted from 0; their shapes are the same in all steps.
	batch func(step int) []*engine.Tensor
	steps int
	lr    float64
}

const (
	warmupSteps  = 50
	gradientNorm = 1
	reportEvery  = 10
)

// run trains and returns the parameters and the loss of every step. Errors are those of ctx, of the engine, and of a
// loss that is no longer finite.
func (f fitting) run(ctx context.Context, e *engine.Engine, progress Progress) (_ *sd.Params, losses []float64, err error) {
	if f.steps < 1 {
		return nil, nil, fmt.Errorf("%s: %d training steps; use 1 or more", f.name, f.steps)
	}
	optimizer, err := train.DefaultOptimizer(train.Adam, f.lr)
	if err != nil {
		return nil, nil, err
	}
	params := f.params
	n := len(params.Tensors)
	step, err := ad.Compile(e, f.name, func(t *ad.Tape, in []*ad.Value) []*ad.Value {
		return f.update(t, optimizer, in[0], in[1], in[2:2+n], in[2+n:2+3*n], in[2+3*n:])
	})
	if err != nil {
		return nil, nil, err
	}
	defer step.Free()
	state := slices.Clone(params.Tensors) // parameters, then two moments of each
	for range optimizer.StateSlots() {
		for _, s := range params.Specs {
			state = append(state, engine.Float32s(make([]float32, s.Size()), s.EngineShape()...))
		}
	}
	defer func() {
		if err != nil {
			engine.Free(state...)
		}
	}()
	donate := append([]bool{false, false}, slices.Repeat([]bool{true}, len(state))...)
	schedule := train.Schedule{Kind: train.CosineSchedule, WarmupSteps: min(warmupSteps, f.steps/5)}
	for i := range f.steps {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		batch := f.batch(i)
		scalars := []*engine.Tensor{engine.Scalar(f.lr * schedule.At(i+1, f.steps+1)), engine.Scalar(float64(i + 1))}
		out, err := step.CallDonating(donate, slices.Concat(scalars, state, batch)...)
		engine.Free(scalars...)
		engine.Free(batch...)
		if err != nil {
			return nil, nil, err
		}
		state = out[1:]
		loss, err := engine.ScalarValue(out[0])
		engine.Free(out[0])
		if err == nil {
			err = train.CheckFinite(f.name+" loss", loss, i)
		}
		if err != nil {
			return nil, nil, err
		}
		losses = append(losses, loss)
		if (i+1)%reportEvery == 0 || i+1 == f.steps {
			progress.report(i+1, f.steps, fmt.Sprintf("loss %.4f", loss))
		}
	}
	engine.Free(state[n:]...)
	return params.WithTensors(state[:n]), losses, nil
}

// update is one step: the loss, the new parameters, their new moments.
func (f fitting) update(t *ad.Tape, o train.Optimizer, lr, count *ad.Value, values, moments, batch []*ad.Value) []*ad.Value {
	loss := f.loss(f.params.Weights(values), batch)
	var gradients []*graph.Node
	for _, g := range ad.Gradient(loss, values...) {
		gradients = append(gradients, g.Node())
	}
	gradients, _ = train.ClipByGlobalNorm(gradients, gradientNorm)
	n := len(values)
	out := make([]*ad.Value, 1+3*n)
	out[0] = loss
	for i, v := range values {
		param, state := o.Apply(lr.Node(), count.Node(), v.Node(), gradients[i], []*graph.Node{moments[i].Node(), moments[n+i].Node()})
		out[1+i], out[1+n+i], out[1+2*n+i] = t.Input(param), t.Input(state[0]), t.Input(state[1])
	}
	return out
}
