package engine

import (
	"fmt"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine/programs"
)

// Footprint is the device's memory that a compiled program takes beside its inputs, in bytes.
type Footprint struct {
	Temporary int64 // while it runs
	Outputs   int64
	Reused    int64 // of inputs that are given up, in which outputs lie
}

// Total is what must be free when the program starts.
func (f Footprint) Total() int64 { return f.Temporary + f.Outputs - f.Reused }

// Input describes an input of a function that has no numbers yet.
type Input struct {
	Dims    []int
	Integer bool // int32, else float32
	GivenUp bool // see [Function.CallDonating]
}

// Measure compiles a function for inputs of the given shapes, runs nothing, and says what memory a call takes. Only XLA can
// tell, as it decides about all of a program's memory in advance; other engines return an error. What a later call of a
// function of this name compiles is then found among the programs that are kept between runs, if they are.
func (e *Engine) Measure(name string, inputs []Input, build Build) (_ Footprint, err error) {
	defer catch(name, &err)
	if e.kind == "go" {
		return Footprint{}, fmt.Errorf("%s: the engine go does not know in advance what memory a program takes", name)
	}
	label := programs.NewLabel(name)
	defer label.Forget()
	donor := make([]bool, len(inputs))
	g := graph.NewGraph(e.backend, label.String()+"#0")
	defer g.Finalize()
	nodes := make([]*graph.Node, len(inputs)) // named as those of calls are, which tells the same programs apart from others
	for i, in := range inputs {
		dtype := dtypes.Float32
		if in.Integer {
			dtype = dtypes.Int32
		}
		donor[i] = in.GivenUp
		nodes[i] = graph.Parameter(g, fmt.Sprintf("arg%d", i), shapes.Make(dtype, in.Dims...))
	}
	label.Donate(donor)
	if err := g.Compile(build(g, nodes)...); err != nil {
		return Footprint{}, fmt.Errorf("%s: %s", name, firstLine(err.Error()))
	}
	return footprint(g.Executable())
}
