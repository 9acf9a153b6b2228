package unlearn

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/resalign/resalign/train"
)

// Interrupted once, with chains in progress, a run under each optimizer ends with the weights of one without a break.
func TestEveryOptimizerSimulatesAndResumes(t *testing.T) {
	for name, change := range map[string]func(r *Recipe){
		"nesterov":  func(r *Recipe) { r.Simulations[0].Momentum, r.Simulations[0].Nesterov = 0.9, true },
		"lion":      func(r *Recipe) { r.Simulations[0].Optimizer, r.Simulations[0].LearningRate = train.Lion, 1e-3 },
		"adafactor": func(r *Recipe) { r.Simulations[0].Optimizer, r.Outer.Optimizer = train.Adafactor, train.Lion },
		"unrolled lion": func(r *Recipe) {
			r.Simulations[0].Optimizer, r.Simulations[0].LearningRate = train.Lion, 1e-3
			r.Hypergradient.Solver = Unrolled
		},
	} {
		t.Run(name, func(t *testing.T) {
			fresh := func() Recipe {
				r := tinyRecipe(t, t.TempDir())
				r.Outer.Steps, r.Simulations[0].ChainReset = 3, 3
				change(&r)
				return r
			}
			whole, parts := fresh(), fresh()
			_, events := run(t, whole, Hooks{})
			finish := make(chan struct{})
			_, err := Run(context.Background(), openEngine(t), parts, Hooks{Finish: finish, OnEvent: func(e train.Event) {
				if e.Step == 2 {
					close(finish)
				}
			}})
			if !errors.Is(err, train.ErrInterrupted) {
				t.Fatal(err)
			}
			run(t, parts, Hooks{Resume: true})
			if !bytes.Equal(modelBytes(t, whole), modelBytes(t, parts)) {
				t.Error("the weights differ")
			}
			if number(t, events[1], "harmful_loss") == number(t, events[1], "harmful_loss_after") {
				t.Error("the simulation does not move")
			}
		})
	}
}

func TestOptimizersThatDoNotFit(t *testing.T) {
	for name, change := range map[string]func(r *Recipe){
		"unrolled Adafactor": func(r *Recipe) {
			r.Simulations[0].Optimizer, r.Hypergradient.Solver = train.Adafactor, Unrolled
		},
		"metric of Lion": func(r *Recipe) {
			r.Simulations[0].Optimizer, r.Hypergradient.Metric = train.Lion, AdamMetric
		},
		"Nesterov without momentum": func(r *Recipe) { r.Simulations[0].Nesterov = true },
		"momentum of Lion":          func(r *Recipe) { r.Simulations[0].Optimizer, r.Simulations[0].Momentum = train.Lion, 0.9 },
	} {
		r := tinyRecipe(t, t.TempDir())
		change(&r)
		problems := r.Validate()
		if len(problems) != 1 || problems[0].Key != "simulation[0].optimizer" {
			t.Errorf("%s: problems %v", name, problems)
		}
	}
}
