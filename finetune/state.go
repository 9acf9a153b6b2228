package finetune

import (
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

// begin starts the descent at a point, whose tensors become the descent's where the start is given up.
func (t *tuning) begin(point denoise.Point) (err error) {
	t.descent, err = denoise.NewDescent(t.net, t.selected, t.config.optimizer(), point)
	if err == nil && t.givenUp {
		t.descent.Own()
	}
	return err
}

// averageName is what the average of a parameter is called in a checkpoint.
func (t *tuning) averageName(i int) string { return "average." + t.selected.Specs(t.net)[i].Name }

// save lists the state of the descent, and the average. Nothing is copied before it is written.
func (t *tuning) save() ([]weights.Deferred, any, error) {
	if err := t.recordContamination(); err != nil {
		return nil, nil, err
	}
	out := t.descent.Tensors("")
	for i, x := range t.average {
		out = append(out, denoise.Deferred(t.averageName(i), x))
	}
	return out, struct{}{}, nil
}

// restore reads what save listed.
func (t *tuning) restore(steps int, source weights.Source, _ func(any) error) error {
	if err := t.descent.Restore("", steps, source); err != nil {
		return err
	}
	if t.config.EMADecay == 0 || steps == 0 {
		return nil
	}
	for i, like := range t.descent.Selected() {
		x, err := denoise.Restored(t.model.Engine, source, t.averageName(i), engine.Shape(like))
		if err != nil {
			return err
		}
		t.average = append(t.average, x)
	}
	return nil
}
