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

// In bfloat16 a run logs nearly what it logs in float32, also with products that are differences of gradients.
func TestBFloat16UnlearnsNearlyTheSame(t *testing.T) {
	for _, products := range []string{exactProducts, centralDifferences} {
		var norms, residuals [2]float64
		for i := range norms {
			r := tinyRecipe(t, t.TempDir())
			r.Outer.Steps, r.Phases = 1, nil
			r.Hypergradient.Products = products
			if i == 1 {
				r.Memory.Compute = "bfloat16"
			}
			_, events := run(t, r, Hooks{})
			norms[i] = number(t, events[0], "hypergradient_norm")
			residuals[i] = events[0].Fields["residual"].([]float64)[0]
		}
		if e := math.Abs(norms[1]/norms[0] - 1); !(e < 0.03) || e == 0 {
			t.Errorf("%s: hypergradients of length %v", products, norms)
		}
		if e := math.Abs(residuals[1]/residuals[0] - 1); !(e < 0.1) {
			t.Errorf("%s: residuals %v", products, residuals)
		}
	}
	r := tinyRecipe(t, t.TempDir())
	r.Memory.Compute = "float16"
	if problems := r.Validate(); len(problems) != 1 || problems[0].Key != "memory.compute" {
		t.Errorf("float16: %v", problems)
	}
}
