package unlearn

import (
	"math"
	"testing"
)

// A whole run with gradient checkpointing logs what a plain one logs, to rounding, for exact products over the adapter
// and over all weights.
func TestGradientCheckpointingUnlearnsTheSame(t *testing.T) {
	for _, parameters := range []string{"lora", "all"} {
		var values [2][]float64
		for i := range values {
			r := tinyRecipe(t, t.TempDir())
			r.Outer.Steps, r.Phases = 1, nil
			r.Trainable.Parameters = parameters
			r.Memory.GradientCheckpointing = i == 1
			_, events := run(t, r, Hooks{})
			for _, e := range events {
				values[i] = append(values[i], number(t, e, "hypergradient_norm"))
			}
		}
		for k, want := range values[0] {
			if got := values[1][k]; math.Abs(got-want) > 1e-4*math.Abs(want) || want == 0 {
				t.Errorf("%s: %v, not %v", parameters, values[1], values[0])
			}
		}
	}
}
