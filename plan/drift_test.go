package plan

import (
	"context"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/unlearn"
)

// What a run compiles is what its plan compiles, program by program, and as much is computed.
func TestRunsOfUnlearning(t *testing.T) {
	o := tinyOptions(t)
	o.Rates.Host = 1e9
	example := methodRecipe(t, o.Recipe, unlearn.ResAlign)
	example.Hypergradient.Iterations = 1
	recipes := map[string]unlearn.Recipe{}
	for _, method := range unlearn.Methods() {
		if !slices.Contains([]string{unlearn.ResAlign, unlearn.ESDX, unlearn.LCFDSDNG, unlearn.UCE}, method) { // others are like these
			recipes[method] = methodRecipe(t, o.Recipe, method)
		}
	}
	with := func(name string, simulation int, change func(r *unlearn.Recipe)) {
		r := example
		r.Simulations = slices.Clone(example.Simulations[simulation : simulation+1])
		change(&r)
		recipes[name] = r
	}
	with("previews", 0, func(r *unlearn.Recipe) { r.Preview.Every = 1 })
	with("unrolled, checkpoints", 2, func(r *unlearn.Recipe) {
		r.Hypergradient.Solver, r.Memory.GradientCheckpointing = unlearn.Unrolled, true
	})
	with("metric, bfloat16", 1, func(r *unlearn.Recipe) {
		r.Hypergradient.Metric, r.Memory.Compute = unlearn.AdamMetric, string(nn.BFloat16)
	})
	with("gauss_newton", 1, func(r *unlearn.Recipe) { r.Hypergradient.Products = unlearn.GaussNewton })
	c := openCompiler(t)
	for name, r := range recipes {
		r.Out, r.Engine, r.Outer.Steps, r.Edit.Epochs = filepath.Join(t.TempDir(), "run"), "go", 1, 1
		r.Outer.SimulationsPerStep = max(1, len(r.Simulations)) // so that none is drawn
		o.Recipe = r
		comparePrograms(t, c, name, o, func(e *engine.Engine) error {
			_, err := unlearn.Run(context.Background(), e, r, unlearn.Hooks{})
			return err
		})
	}
}

func TestRunsOfFineTuning(t *testing.T) {
	o := tinyOptions(t)
	o.Rates.Host = 1e9
	c := openCompiler(t)
	for name, change := range map[string]func(j *finetune.Job){
		"full, checkpoints": func(j *finetune.Job) { j.GradientCheckpointing = true },
		"lora, dropout":     func(j *finetune.Job) { j.Method, j.LoRADropout = finetune.LoRA, 0.1 },
		"custom":            func(j *finetune.Job) { j.Method = finetune.Custom },
		"word": func(j *finetune.Job) {
			j.Method, j.Placeholder, j.Initializer, j.Vectors = finetune.TextualInversion, "<x>", "a", 2
		},
		"custom word": func(j *finetune.Job) { j.Method, j.Placeholder, j.Initializer = finetune.Custom, "<x>", "a" },
		"svdiff":      func(j *finetune.Job) { j.Method = finetune.SVDiff },
		"text":        func(j *finetune.Job) { j.TrainTextEncoder = true },
		"average":     func(j *finetune.Job) { j.EMADecay = 0.99 },
		"bfloat16":    func(j *finetune.Job) { j.Compute = string(nn.BFloat16) },
		"class": func(j *finetune.Job) {
			j.Method, j.InstancePrompt, j.ClassPrompt, j.Prior = finetune.DreamBooth, "x", "y", filepath.Join(t.TempDir(), "class")
			j.PriorPictures, j.PriorSteps = 3, 2
		},
	} {
		j := finetune.DefaultJob(finetune.Full)
		j.Model, j.Data, j.Steps, j.Accumulation, j.BatchSize = o.Model.Name, "examples/tiny/people", 2, 2, 2
		j.Preview.Every, j.Preview.Prompts, j.Preview.Options.Steps = 2, []string{"a person"}, 3
		change(&j)
		with := o
		with.Job = &j
		comparePrograms(t, c, name, with, func(e *engine.Engine) error {
			_, err := finetune.RunJob(context.Background(), e, filepath.Join(t.TempDir(), "run"), j, finetune.JobHooks{})
			return err
		})
	}
}

// comparePrograms compares the programs of a run with those of its plan, and how much they multiply.
func comparePrograms(t *testing.T, c *compiler, name string, o Options, run func(e *engine.Engine) error) {
	t.Helper()
	m := newMachine(c, newHeap(1, 0))
	planned, err := o.newCourse(m)
	if err == nil {
		err = planned.walk()
	}
	if err != nil {
		t.Fatalf("%s: plan: %v", name, err)
	}
	e, w := openWitnessed(t)
	defer e.Close()
	if err := run(e); err != nil {
		t.Fatalf("%s: run: %v", name, err)
	}
	known := map[string]*program{}
	for p := range m.known {
		known[p.signature()] = p
	}
	var did work
	for _, key := range slices.Sorted(maps.Keys(w.programs)) {
		p := w.programs[key]
		if name == "svdiff" && len(p.inputs) <= 5 { // matrices are taken apart and put together one by one; that is a formula
			continue
		}
		did.add(p, float64(w.runs[key]))
		if known[key] == nil {
			t.Errorf("%s: the run compiled a program that is not in the plan: %s; it ran %d times", name, key, w.runs[key])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(known)) {
		if w.programs[key] == nil {
			t.Errorf("%s: the plan has a program that the run did not compile: %s: %s", name, known[key].name, key)
		}
	}
	drawn := o.Job == nil && o.Recipe.Latents.From == unlearn.FromPrompts // how far latents are denoised
	if want := products(planned); !drawn && math.Abs(want/(did.flops+did.half+did.thin)-1) > 0.02 {
		t.Errorf("%s: %s in products are planned, the run did %s", name, FormatFLOPs(want), FormatFLOPs(did.flops+did.half+did.thin))
	}
}

// products are the operations of a whole run's products, but for taking matrices apart.
func products(c course) float64 {
	sum := func(s *session, steps int) float64 {
		total := s.prepare
		total.plus(s.step, float64(steps))
		total.plus(s.previews, 1)
		return total.flops + total.half + total.thin
	}
	switch c := c.(type) {
	case *trainer:
		return sum(c.session, c.r.Outer.Steps)
	case *tuner:
		if c.spectrum != nil {
			var apart work
			for _, m := range c.spectrum.Matrices {
				apart.decompose(m.Size())
			}
			c.prepare.flops -= apart.flops
		}
		return sum(c.session, c.j.Steps)
	case *editor:
		return sum(c.session, 0)
	}
	return 0
}
