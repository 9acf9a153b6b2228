package plan

import (
	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// measure has the device's compiler say what a program takes, once, if there is a device. Of the inputs those are given up
// that the first call gives up, as in a run.
func (c *compiler) measure(p *program, donate []bool) error {
	if c.device == nil || p.measured != nil {
		return nil
	}
	inputs := make([]engine.Input, len(p.shapes))
	for i, s := range p.shapes {
		inputs[i] = engine.Input{Dims: s.dims, Integer: s.integer, GivenUp: i < len(donate) && donate[i]}
	}
	f, err := c.device.Measure(p.name, inputs, func(g *graph.Graph, nodes []*graph.Node) []*graph.Node {
		tape := ad.NewTape(g, c.device.NativeConvolutions())
		in := make([]*ad.Value, len(nodes))
		for i, n := range nodes {
			in[i] = tape.Input(n)
		}
		return ad.Nodes(p.build(tape, in))
	})
	if err != nil {
		return err
	}
	bytes := int(f.Total())
	p.measured = &bytes
	return nil
}
