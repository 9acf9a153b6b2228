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

// In bfloat16 the weights go nearly the same way, and the model is left as it was for others.
func TestBFloat16TrainsNearlyTheSame(t *testing.T) {
	m := load(t)
	d := blue(t)
	for _, method := range []string{Full, LoRA} {
		c := short(method)
		c.Optimizer, c.LearningRate = "sgd", 1e-2
		start := c
		start.Steps = 0
		at, _ := tune(t, m, start, d, Hooks{})
		plain, _ := tune(t, m, c, d, Hooks{})
		c.Compute = "bfloat16"
		half, _ := tune(t, m, c, d, Hooks{})
		from, want := trained(t, at), trained(t, plain)
		var apart, way float64
		for i, x := range trained(t, half) {
			for k, v := range x {
				apart += math.Pow(float64(v-want[i][k]), 2)
				way += math.Pow(float64(want[i][k]-from[i][k]), 2)
			}
		}
		if e := math.Sqrt(apart / way); !(e < 0.05) || e < 1e-5 {
			t.Errorf("%s: ends %g of the way apart", method, e)
		} else {
			t.Logf("%s: ends %.2g of the way apart", method, e)
		}
		if m.Compute != "" {
			t.Error("the model was changed")
		}
	}
	c := short(Full)
	c.Compute = "float16"
	if problems := c.Problems(); len(problems) != 1 || problems[0].Key != "compute" {
		t.Errorf("float16: %v", problems)
	}
}
