package engine

import (
	"fmt"
	"sync"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/resalign/resalign/engine/programs"
)

// Tensor is an array of numbers that lives on the engine's device; the Go engine's device is the host's memory.
type Tensor = tensors.Tensor

// Function is a computation that is compiled on its first call for each combination of input shapes, and then reused.
type Function struct {
	engine *Engine
	name   string
	exec   *graph.Exec
	key    string // of a shared function
	label  programs.Label
	told   sync.Once // the compiler, which inputs are given up
}

// Build writes the graph of a function: from its input nodes to its output nodes. It may panic with an error; Call
// returns it.
type Build func(g *graph.Graph, inputs []*graph.Node) []*graph.Node

// NewFunction prepares a function; name appears in errors. It takes at least one input.
func (e *Engine) NewFunction(name string, build Build) (f *Function, err error) {
	defer catch(name, &err)
	exec, err := graph.NewExec(e.backend, func(inputs []*graph.Node) []*graph.Node {
		return build(inputs[0].Graph(), inputs)
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f = &Function{engine: e, name: name, exec: exec, label: programs.NewLabel(name)}
	exec.WithName(f.label.String())
	exec.SetMaxCache(-1) // shapes are few and chosen by the caller; a limit would turn into a late failure
	return f, nil
}

// Call runs the function. Inputs stay valid.
func (f *Function) Call(inputs ...*Tensor) ([]*Tensor, error) {
	return f.CallDonating(nil, inputs...)
}

// CallDonating runs the function and gives up the inputs for which donate is true: their memory may be reused for the
// outputs, and they must not be used again, whether or not the call succeeds.
func (f *Function) CallDonating(donate []bool, inputs ...*Tensor) (outputs []*Tensor, err error) {
	defer catch(f.name, &err)
	args := make([]any, len(inputs))
	for i, t := range inputs {
		if t == nil || !t.Ok() {
			return nil, fmt.Errorf("%w: %s: input %d was freed or never set", ErrInternal, f.name, i)
		}
		args[i] = t
		if i < len(donate) && donate[i] {
			if args[i], err = graph.DonateTensorBuffer(t, f.engine.backend, 0); err != nil {
				return nil, fmt.Errorf("%s: input %d: %w", f.name, i, err)
			}
		}
	}
	if f.engine.kind == "go" {
		keepHeadroom()
	} else if len(donate) > 0 {
		f.told.Do(func() { f.label.Donate(donate) })
	}
	outputs, err = f.exec.Call(args...)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", f.name, firstLine(err.Error()))
	}
	return outputs, nil
}

// Free releases the compiled programs, or leaves them to the others who share them.
func (f *Function) Free() {
	if f.key != "" {
		f.engine.giveBack(f.key)
		return
	}
	f.exec.Finalize()
	f.label.Forget()
}

// Free releases tensors at once instead of when the garbage collector finds them. Nil and freed ones are skipped.
func Free(ts ...*Tensor) {
	for _, t := range ts {
		if t != nil && t.Ok() {
			_ = t.FinalizeAll() // fails only for a backend that is already closed, and then there is nothing to free
		}
	}
}
