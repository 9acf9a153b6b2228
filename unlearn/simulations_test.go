package unlearn

import (
	"testing"

	"github.com/resalign/resalign/train"
)

// Each way to fine-tune that a simulation knows ends at another harmful loss, and the run goes through.
func TestEverySimulationIsItsOwn(t *testing.T) {
	seen := map[float64]string{}
	for name, change := range map[string]func(s *Simulation){
		"constant":        func(*Simulation) {},
		"linear":          func(s *Simulation) { s.Schedule = train.LinearSchedule },
		"cosine, warmed":  func(s *Simulation) { s.Schedule, s.WarmupSteps = train.CosineSchedule, 1 },
		"cross-attention": func(s *Simulation) { s.Adapts = CrossAttention },
		"fresh everywhere": func(s *Simulation) {
			s.Adapts, s.LearningRate, s.Targets = FreshAdapter, 1, []string{"attention", "feed-forward", "convolutions"}
		},
	} {
		r := tinyRecipe(t, t.TempDir())
		r.Outer.Steps, r.Simulations[0].Steps, r.Simulations[0].LearningRate = 1, 3, 0.1
		change(&r.Simulations[0])
		_, events := run(t, r, Hooks{})
		after := number(t, events[0], "harmful_loss_after")
		if other, ok := seen[after]; ok {
			t.Errorf("%s ends where %s does", name, other)
		}
		seen[after] = name
	}
}

// Warm-up has a first step of rate 0: one step of a simulation then changes nothing, and a chain is past it in its second draw.
func TestScheduleOfAChain(t *testing.T) {
	for _, reset := range []int{0, 3} {
		r := tinyRecipe(t, t.TempDir())
		r.Outer.Steps, r.Outer.LearningRate, r.Outer.WeightDecay = 2, 1e-9, 0
		s := &r.Simulations[0]
		s.Steps, s.WarmupSteps, s.LearningRate, s.ChainReset = 1, 1, 0.1, reset
		_, events := run(t, r, Hooks{})
		for i, e := range events {
			moved := number(t, e, "harmful_loss") != number(t, e, "harmful_loss_after")
			if want := reset > 0 && i > 0; moved != want {
				t.Errorf("chain of %d, draw %d: the simulation moves: %v", reset, i+1, moved)
			}
		}
	}
}

func TestSimulationsThatDoNotFit(t *testing.T) {
	for key, change := range map[string]func(r *Recipe){
		"simulation[0].schedule":     func(r *Recipe) { r.Simulations[0].Schedule = "sine" },
		"simulation[0].warmup_steps": func(r *Recipe) { r.Simulations[0].WarmupSteps = -1 },
		"simulation[0].targets":      func(r *Recipe) { r.Simulations[0].Targets = []string{"attn2"} },
		"simulation[0].adapts": func(r *Recipe) {
			r.Simulations[0].Adapts, r.Trainable.Parameters = CrossAttention, "all"
		},
	} {
		r := tinyRecipe(t, t.TempDir())
		change(&r)
		if problems := r.Validate(); len(problems) != 1 || problems[0].Key != key {
			t.Errorf("%s: problems %v", key, problems)
		}
	}
}
