package plan

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// methodRecipe is the example's recipe for another method.
func methodRecipe(t *testing.T, r unlearn.Recipe, method string) unlearn.Recipe {
	t.Helper()
	r.Method, r.Data = method, maps.Clone(r.Data)
	r.Preview.Every = 0
	switch method {
	case unlearn.ESD:
		r.Objective.Harm = unlearn.ESD
	case unlearn.ESDX, unlearn.ESDU:
		r.Objective.Harm, r.Trainable.Parameters = unlearn.ESD, "all"
		r.Latents.From, r.Latents.Prompts, r.Latents.Steps = unlearn.FromPrompts, []string{"a red ball"}, 4
		r.Data = nil
	case unlearn.SalUn:
		r.Objective.Harm, r.Objective.Retain, r.Trainable.Parameters = unlearn.Relabel, unlearn.Denoising, "all"
		r.Outer.Optimizer, r.Outer.WeightDecay = train.Adam, 0
	case unlearn.MetaUnlearn:
		r.Objective.Retain, r.Outer.SimulationsPerStep = unlearn.Denoising, 1
		r.Data["related"] = r.Data["people"]
		r.Simulations = []unlearn.Simulation{{Name: "relearning", Data: "harmful", Steps: 1, Optimizer: train.SGD, LearningRate: 1e-2}}
	case unlearn.SafeGen:
		r.Objective.Harm, r.Objective.Retain, r.Trainable.Parameters = unlearn.Mosaic, unlearn.Denoising, "all"
		r.Censor.Block = 8
	case unlearn.AdvUnlearn:
		r.Objective.Harm, r.Trainable.Parameters = unlearn.ESD, unlearn.TextEncoder
		r.Attack = unlearn.Attack{Warmup: 0, Steps: 2, Tokens: 2, LearningRate: 1e-2}
	case unlearn.LCFDSDNG, unlearn.LCFDSDLT:
		r.Objective.Harm, r.Objective.Retain = unlearn.ContrastLoss, unlearn.Denoising
		r.Contrast.Weight = 1e-2
	case unlearn.UCE, unlearn.RECE:
		r.Edit.Erase, r.Edit.Epochs = []string{"a red ball"}, 2
		r.Data = nil
	}
	if problems := r.Validate(); len(problems) > 0 {
		t.Fatalf("%s: %v", method, problems)
	}
	return r
}

// Every method of unlearning can be planned, with times, parameters and evaluations of its own.
func TestEveryMethod(t *testing.T) {
	o := tinyOptions(t)
	o.Rates.Host = 1e9
	c := openCompiler(t)
	evaluates := map[string]string{
		unlearn.ResAlign: "Hessian product", unlearn.LCFDSDNG: "pullback", unlearn.LCFDSDLT: "pullback", unlearn.MetaUnlearn: "gradient", unlearn.ESDX: "prediction",
		unlearn.UCE: "encoding a prompt",
	}
	trained := map[string]int{
		unlearn.UCE: 10240, unlearn.RECE: 10240, unlearn.SalUn: 792964, unlearn.Ascent: 9984, unlearn.ResAlign: 9984,
	}
	for _, method := range unlearn.Methods() {
		with := o
		with.Recipe = methodRecipe(t, o.Recipe, method)
		p, err := planOnce(c, with, 1)
		if err != nil {
			t.Errorf("%s: %v", method, err)
			continue
		}
		if p.Method != method || p.Steps != with.Recipe.TotalSteps() || p.Peak < processBytes || p.StepFLOPs <= 0 || p.StepSeconds <= 0 || p.Parameters.Theta == 0 {
			t.Errorf("%s: %+v", method, p)
		}
		if want := trained[method]; want != 0 && p.Parameters.Theta != want {
			t.Errorf("%s trains %d parameters, want %d", method, p.Parameters.Theta, want)
		}
		if want := evaluates[method]; want != "" && !slices.ContainsFunc(p.Evaluations, func(i Item) bool { return i.Name == want }) {
			t.Errorf("%s: no %s in %v", method, want, p.Evaluations)
		}
	}
}

// Every method of fine-tuning can be planned; what is trained is what the method says.
func TestEveryFineTuning(t *testing.T) {
	o := tinyOptions(t)
	o.Rates.Half, o.Rates.Host = 1e10, 1e9
	c := openCompiler(t)
	plan := func(change func(j *finetune.Job)) *Plan {
		t.Helper()
		j := finetune.DefaultJob(finetune.Full)
		j.Model, j.Data, j.Steps, j.Accumulation, j.BatchSize = o.Model.Name, "examples/tiny/people", 3, 2, 2
		change(&j)
		if problems := j.Validate(); len(problems) > 0 {
			t.Fatal(problems)
		}
		with := o
		with.Job = &j
		p, err := planOnce(c, with, 1)
		if err != nil {
			t.Fatalf("%s: %v", j.Method, err)
		}
		if p.Method != j.Method || p.Steps != 3 || p.StepSeconds <= 0 || p.Peak < processBytes {
			t.Errorf("%s: %+v", j.Method, p)
		}
		return p
	}
	full := plan(func(*finetune.Job) {})
	if full.Parameters.Theta != full.Parameters.UNet {
		t.Errorf("full trains %d of %d parameters", full.Parameters.Theta, full.Parameters.UNet)
	}
	for name, c := range map[string]struct {
		change func(j *finetune.Job)
		trains int
	}{
		"lora": {func(j *finetune.Job) { j.Method, j.LoRADropout = finetune.LoRA, 0.1 }, 9984},
		"dreambooth": {func(j *finetune.Job) {
			j.Method, j.InstancePrompt, j.Prior = finetune.DreamBooth, "x", "examples/tiny/retain"
		}, full.Parameters.UNet},
		"class": {func(j *finetune.Job) {
			j.Method, j.InstancePrompt, j.Prior, j.ClassPrompt = finetune.DreamBooth, "x", "none", "y"
		}, full.Parameters.UNet},
		"custom": {func(j *finetune.Job) { j.Method = finetune.Custom }, 10240},
		"word": {func(j *finetune.Job) {
			j.Method, j.Placeholder, j.Initializer, j.Vectors = finetune.TextualInversion, "<x>", "cat", 2
		}, 64},
		"custom word": {func(j *finetune.Job) { j.Method, j.Placeholder, j.Initializer = finetune.Custom, "<x>", "cat" }, 10240 + 32},
		"svdiff":      {func(j *finetune.Job) { j.Method = finetune.SVDiff }, 0},
		"text":        {func(j *finetune.Job) { j.TrainTextEncoder = true }, full.Parameters.UNet + full.Parameters.Text},
		"average":     {func(j *finetune.Job) { j.EMADecay = 0.99 }, full.Parameters.UNet},
		"bfloat16":    {func(j *finetune.Job) { j.Compute = string(nn.BFloat16) }, full.Parameters.UNet},
	} {
		if p := plan(c.change); c.trains != 0 && p.Parameters.Theta != c.trains {
			t.Errorf("%s trains %d parameters, not %d", name, p.Parameters.Theta, c.trains)
		}
	}
	if on := plan(func(j *finetune.Job) { j.GradientCheckpointing = true }); height(on, "gradient") > height(full, "gradient")*2/3 {
		t.Errorf("a gradient needs %d with checkpointing, %d without", height(on, "gradient"), height(full, "gradient"))
	}
}

// height is what an evaluation of a plan needs.
func height(p *Plan, name string) int64 {
	for _, i := range p.Evaluations {
		if i.Name == name {
			return i.Bytes
		}
	}
	return 0
}

// Half precision halves what a gradient keeps, but no Hessian product.
func TestHalfPrecision(t *testing.T) {
	o := tinyOptions(t)
	o.Recipe.Simulations = o.Recipe.Simulations[:1]
	c := openCompiler(t)
	whole, err := planOnce(c, o, 1)
	if err != nil {
		t.Fatal(err)
	}
	o.Recipe.Memory.Compute = string(nn.BFloat16)
	o.Rates.Half = 1e10
	half, err := planOnce(c, o, 1)
	if err != nil {
		t.Fatal(err)
	}
	if before, after := height(whole, "gradient"), height(half, "gradient"); after > before*8/10 {
		t.Errorf("a gradient needs %d in float32 and %d in bfloat16", before, after)
	}
	if before, after := height(whole, "Hessian product"), height(half, "Hessian product"); before != after {
		t.Errorf("a Hessian product, float32 always, needs %d and %d", before, after)
	}
}

// With XLA the device is planned: the weights and the largest evaluation beside what lives, no times.
func TestXLA(t *testing.T) {
	o := tinyOptions(t)
	o.XLA, o.Rates = true, Rates{}
	p, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	stays := int64(0)
	for _, i := range p.Resident {
		stays += i.Bytes
	}
	most := height(p, "Hessian product")
	if p.Engine != "xla" || p.Seconds != 0 || p.StepFLOPs == 0 || p.PeakLow != p.PeakHigh {
		t.Errorf("%+v", p)
	}
	if p.Peak < stays+most || p.Peak > stays+most+most/2 {
		t.Errorf("%d bytes at the highest; %d stay and the largest evaluation needs %d", p.Peak, stays, most)
	}
}

// A fine-tuning that does not fit is told which flags save most.
func TestFineTuningSwitches(t *testing.T) {
	o := tinyOptions(t)
	j := finetune.DefaultJob(finetune.Full)
	j.Model, j.Data, j.Steps, j.BatchSize = o.Model.Name, "examples/tiny/people", 2, 4
	o.Job, o.Memory, o.Rates.Half = &j, 50<<20, 1e10
	p, err := Make(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if p.Fits || len(p.Switches) != 3 {
		t.Fatalf("fits %v, with %v", p.Fits, p.Switches)
	}
	for _, s := range p.Switches {
		if !strings.HasPrefix(s.Set, "--") || s.Peak >= p.PeakHigh {
			t.Errorf("%+v beside a plan of %d", s, p.PeakHigh)
		}
	}
	if j.GradientCheckpointing || j.BatchSize != 4 {
		t.Errorf("trying switches changed the job: %+v", j)
	}
}
