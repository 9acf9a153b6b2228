package unlearn

import (
	"fmt"
	"maps"
	"slices"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

// state is what a checkpoint holds beside tensors. There are no generators in it: every draw is a function of the step.
type state struct {
	Gradients float64               `json:"gradients"`
	Depth     float64               `json:"depth"`
	Chains    map[string]chainState `json:"chains,omitempty"`
	Centres   *centreCounts         `json:"centres,omitempty"`
}

type chainState struct {
	Steps int `json:"steps"`
	Used  int `json:"used"`
	Began int `json:"began"`
}

// centreCounts are the numbers of latents in the centres of lcfdsd.
type centreCounts struct {
	Retained int `json:"retained"`
	Harmful  int `json:"harmful"`
}

func (t *trainer) save() ([]weights.Deferred, any, error) {
	tensors := t.outer.Tensors("theta.")
	s := state{Gradients: t.gradients, Depth: t.depth, Chains: map[string]chainState{}}
	for _, name := range slices.Sorted(maps.Keys(t.views)) {
		c := t.views[name].chain
		if c == nil {
			continue
		}
		s.Chains[name] = chainState{Steps: c.steps, Used: c.used, Began: c.began}
		for i, x := range append(slices.Clone(c.delta), c.moments...) {
			tensors = append(tensors, denoise.Deferred(chainTensor(name, i), x))
		}
	}
	if c := t.contrast; c != nil {
		s.Centres = &centreCounts{c.retained.count, c.harmful.count}
		tensors = append(tensors, weights.DeferAll(c.tensors())...)
	}
	return tensors, s, nil
}

// chainTensor names the i-th tensor of a persistent simulation: its displacement, then its moments.
func chainTensor(simulation string, i int) string { return fmt.Sprintf("chain.%s.%d", simulation, i) }

func (t *trainer) restore(steps int, source weights.Source, read func(any) error) error {
	var s state
	if err := read(&s); err != nil {
		return err
	}
	if err := t.outer.Restore("theta.", steps, source); err != nil {
		return err
	}
	t.gradients, t.depth = s.Gradients, s.Depth
	if t.contrast != nil {
		if s.Centres == nil {
			return fmt.Errorf("checkpoint: it holds no centres of latents, which method %s goes on with", t.recipe.Method)
		}
		if err := t.contrast.restore(source, s.Centres.Retained, s.Centres.Harmful); err != nil {
			return err
		}
	}
	for name, at := range s.Chains {
		v := t.views[name]
		if v == nil {
			return fmt.Errorf("checkpoint: it holds a simulation %q that the recipe does not have", name)
		}
		n := v.phi.Len()
		var tensors denoise.Vector
		for i := range n * (1 + v.sim.Rule().StateSlots()) {
			x, err := source.Tensor(chainTensor(name, i))
			if err != nil {
				return fmt.Errorf("checkpoint: %w", err)
			}
			values, err := x.Float32()
			if err != nil {
				return fmt.Errorf("checkpoint: %w", err)
			}
			tensors = append(tensors, engine.Float32s(values, x.Shape...))
		}
		v.chain = &chain{delta: tensors[:n:n], moments: tensors[n:], steps: at.Steps, used: at.Used, began: at.Began}
	}
	return nil
}
