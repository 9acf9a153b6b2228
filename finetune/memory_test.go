package finetune

import (
	"errors"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/resalign/resalign/train"
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

// Where the start is given up, all weights become what they become elsewhere, also by way of a checkpoint; the start is gone,
// but not where an adapter or a part is trained, which needs it.
func TestGivingUpTheStart(t *testing.T) {
	d := blue(t)
	for name, method := range map[string]string{"full": Full, "dreambooth": DreamBooth, "lora": LoRA, "custom": Custom} {
		t.Run(name, func(t *testing.T) {
			m, own := load(t), load(t)
			c := short(method)
			c.EMADecay = 0.5
			kept, _ := tune(t, m, c, d, Hooks{})
			run := createRun(t, filepath.Join(t.TempDir(), "run"))
			h := Hooks{GiveUpStart: true, OpenRun: in(run)}
			for stop := range c.Steps {
				finish := make(chan struct{})
				if stop == 0 {
					close(finish)
				}
				h.Finish = finish
				h.OnEvent = func(e train.Event) {
					if e.Step == stop {
						close(finish)
					}
				}
				again := load(t)
				if _, err := Run(t.Context(), again, again.UNetParams, c, d, h); !errors.Is(err, train.ErrInterrupted) {
					t.Fatal(err)
				}
			}
			result, _ := tune(t, own, c, d, Hooks{GiveUpStart: true, OpenRun: in(run)})
			want := trained(t, kept)
			for i, x := range trained(t, result) {
				if !slices.Equal(x, want[i]) {
					t.Fatalf("parameter %d differs", i)
				}
			}
			gone := 0
			for _, x := range own.UNetParams.Tensors {
				if !x.Ok() {
					gone++
				}
			}
			if all := method == Full || method == DreamBooth; all != (gone == len(own.UNetParams.Tensors)) || !all && gone > 0 {
				t.Errorf("%d tensors of the start are gone", gone)
			}
			if err := result.Save(own, filepath.Join(t.TempDir(), "model")); err != nil {
				t.Error(err)
			}
		})
	}
}
