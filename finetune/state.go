package finetune

import (
	"fmt"
	"slices"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

// entry is a tensor of a checkpoint.
type entry struct {
	name  string
	shape []int
}

// entries lists the parameters that are trained and the moments of their optimizer, slot by slot, as
// [denoise.Descent.Tensors] does.
func (t *tuning) entries(point denoise.Point) (params, moments []entry) {
	specs := t.selected.Specs(t.net)
	for i, x := range t.selected.Of(point) {
		params = append(params, entry{"parameter." + specs[i].Name, engine.Shape(x)})
	}
	rule := t.config.optimizer()
	for slot := range rule.StateSlots() {
		for i, s := range specs {
			moments = append(moments, entry{fmt.Sprintf("moment%d.%s", slot, s.Name), rule.StateShape(slot, params[i].shape)})
		}
	}
	return params, moments
}

// begin starts the descent at a point. Where the start is given up, the first step takes its memory, as every later one takes
// that of the step before, and the moments lie where the engine computes from the first on.
func (t *tuning) begin(point denoise.Point) (err error) {
	if !t.givenUp {
		t.descent, err = denoise.NewDescent(t.net, t.selected, t.config.optimizer(), point)
		return err
	}
	_, entries := t.entries(point)
	moments := make(denoise.Vector, len(entries))
	for i, e := range entries {
		if moments[i], err = t.model.Engine.Zeros(e.shape...); err != nil {
			moments.Free()
			return err
		}
	}
	t.continueFrom(point, moments, 0)
	return nil
}

// continueFrom goes on from a point, whose selected parameters become the descent's, with the moments after so many steps.
func (t *tuning) continueFrom(point denoise.Point, moments denoise.Vector, steps int) {
	t.descent = denoise.ContinueDescent(t.net, t.selected, t.config.optimizer(), point, t.selected.Of(point), moments, steps)
}

// takeMoments gives what the moments are now. The descent goes on with them; one that took no step yet begins again, as it does
// not own where it stands.
func (t *tuning) takeMoments() (denoise.Vector, error) {
	point, steps := t.descent.Point(), t.descent.Steps()
	moments := t.descent.TakeMoments()
	if steps == 0 && !t.givenUp {
		return moments, t.begin(point)
	}
	t.continueFrom(point, moments, steps)
	return moments, nil
}

// save lists the state of the descent, and the average. Nothing is copied before it is written.
func (t *tuning) save() ([]weights.Deferred, any, error) {
	if err := t.recordContamination(); err != nil {
		return nil, nil, err
	}
	var out []weights.Deferred
	add := func(name string, x *engine.Tensor) { out = append(out, denoise.Deferred(name, x)) }
	params, entries := t.entries(t.descent.Point())
	moments, err := t.takeMoments()
	if err != nil {
		return nil, nil, err
	}
	for i, x := range t.descent.Selected() {
		add(params[i].name, x)
	}
	for i, x := range moments {
		add(entries[i].name, x)
	}
	for i, x := range t.average {
		add("average."+t.selected.Specs(t.net)[i].Name, x)
	}
	return out, struct{}{}, nil
}

// restore reads what save listed, after letting go of what it replaces.
func (t *tuning) restore(steps int, source weights.Source, _ func(any) error) error {
	point := t.descent.Point()
	params, moments := t.entries(point)
	t.descent.Free()
	read := func(entries []entry) (denoise.Vector, error) {
		out := make(denoise.Vector, len(entries))
		for i, e := range entries {
			x, err := source.Tensor(e.name)
			if err == nil && !slices.Equal(x.Shape, e.shape) {
				err = fmt.Errorf("%s is %v, not %v", e.name, x.Shape, e.shape)
			}
			if err == nil {
				out[i], err = t.model.Engine.Made(x.Float32Into, e.shape...)
			}
			if err != nil {
				out.Free()
				return nil, fmt.Errorf("checkpoint: %w", err)
			}
		}
		return out, nil
	}
	at, err := read(params)
	if err != nil {
		return err
	}
	state, err := read(moments)
	if err != nil {
		at.Free()
		return err
	}
	t.continueFrom(t.selected.Put(point, at), state, steps)
	if t.config.EMADecay == 0 || steps == 0 {
		return nil
	}
	averages := slices.Clone(params)
	for i, s := range t.selected.Specs(t.net) {
		averages[i].name = "average." + s.Name
	}
	t.average, err = read(averages)
	return err
}
