package finetune

import (
	"math"
	"testing"
)

// Gradient checkpointing ends at the same weights, to rounding, and leaves the model as it was for others.
func TestGradientCheckpointingTrainsTheSame(t *testing.T) {
	m := load(t)
	d := blue(t)
	for _, method := range []string{Full, LoRA} {
		c := short(method)
		c.Optimizer = "sgd" // Adam's first steps are signs, which rounding can turn
		c.LearningRate = 1e-2
		plain, _ := tune(t, m, c, d, Hooks{})
		c.GradientCheckpointing = true
		sparing, _ := tune(t, m, c, d, Hooks{})
		want := trained(t, plain)
		for i, x := range trained(t, sparing) {
			for k, v := range x {
				if math.Abs(float64(v)-float64(want[i][k])) > 1e-5*(1+math.Abs(float64(want[i][k]))) {
					t.Fatalf("%s: parameter %d is %g, not %g", method, i, v, want[i][k])
				}
			}
		}
		if m.GradientCheckpointing {
			t.Error("the model was changed")
		}
	}
}
