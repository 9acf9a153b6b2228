package plan

import (
	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// ask has the device's compiler say what memory a program takes, and the timer how long a call lasts, once, if there are
// any. Of the inputs those are given up that the first call gives up, as in a run.
func (c *compiler) ask(p *program, donate []bool) (err error) {
	inputs := make([]engine.Input, len(p.shapes))
	for i, s := range p.shapes {
		inputs[i] = engine.Input{Dims: s.dims, Integer: s.integer, GivenUp: i < len(donate) && donate[i]}
	}
	if c.device != nil && p.measured == nil {
		f, err := ad.Measure(c.device, p.name, inputs, p.build)
		if err != nil {
			return err
		}
		bytes := int(f.Total())
		p.measured = &bytes
	}
	if c.timer != nil && p.seconds == 0 {
		p.seconds, err = ad.Time(c.ctx, c.timer, p.name, inputs, p.build)
	}
	return err
}
