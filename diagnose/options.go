// Package diagnose looks at the landscape that a model stands in: how curved the harmful and the fine-tuning loss are
// there, whether the linear system of the hypergradient can be solved by the iteration that a recipe uses, how far the
// model is from the one it was made of, and what its losses do on the straight way to where fine-tuning takes it.
//
// L_FT is the denoising error ‖ε_θ(z_t, t, c) − ε‖² on benign pictures, L_harm the error on harmful ones with a minus
// sign, as in the paper (docs/method.md, section 1). θ, the parameters that derivatives are taken by, are all weights of
// the UNet or the factors of an adapter on top of them.
package diagnose

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
)

// What θ is.
const (
	AllWeights = "all"  // every weight of the UNet
	LoRA       = "lora" // the factors of a fresh adapter, which changes nothing as it stands
)

// Model is one of the models compared.
type Model struct {
	Name string `json:"name"`
	Dir  string `json:"dir"` // a diffusers directory
}

// Options are what a diagnosis depends on.
type Options struct {
	Models []Model // the first is the base, which the others are compared with

	Harmful data.Mixture
	Benign  data.Mixture // what fine-tuning learns from
	Retain  data.Mixture // none: its loss is left out

	// Tuning is the fine-tuning whose end is θ_FT; its batch size and resolution are those of all other draws as well, and
	// its rank, alpha and targets those of the adapter where θ is one. Its method is full, lora, custom or svdiff.
	Tuning finetune.Config

	Parameters string  // θ: AllWeights or LoRA
	DownStd    float64 // LoRA: standard deviation of the down factors; 0: 1/rank, as fine-tuning begins with

	Probes int // random probes of each trace, each on pictures of its own

	Draws           int     // batches that spectra and Richardson iterations are taken at, one by one
	PowerIterations int     // of power iteration at most, and of Lanczos' method
	Tolerance       float64 // of an eigenpair: ‖Hv − λv‖ ≤ Tolerance·|λ|

	Gamma      float64 // γ, radius of the Moreau envelope
	Iterations int     // K, of the Richardson iteration
	Damping    float64 // μ of the damped iteration; 1: plain

	From, To    float64 // ends of the line θ + s(θ_FT − θ)
	Points      int     // places on it; s = 0 and s = 1 are added where they are not among them
	LossBatches int     // batches that each loss on the line is averaged over

	Seed uint64
}

// Defaults are those of `resalign diagnose`, with the paper's γ and K, and the published evaluation's fine-tuning cut
// down to 100 steps. They name no models and no pictures yet.
func Defaults() Options {
	o := Options{
		Tuning: finetune.Defaults(finetune.Full), Parameters: AllWeights, Probes: 32,
		Draws: 2, PowerIterations: 30, Tolerance: 0.005, Gamma: 1, Iterations: 5, Damping: 1,
		From: -0.5, To: 1.5, Points: 21, LossBatches: 8, Seed: 42,
	}
	o.Tuning.Steps = 100
	return o
}

// Bounds on what a typing mistake can ask for.
const (
	maxDraws  = 1_000_000
	maxPoints = 10_000
)

// leastSample is how many draws an interval needs: with fewer, Student's t is all there is to see.
const leastSample = 4

// Problems lists the settings that cannot be used, each with its key, before any file is read.
func (o Options) Problems() []recipe.Problem {
	var out []recipe.Problem
	check := func(ok bool, key, format string, args ...any) {
		if !ok {
			out = append(out, recipe.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
		}
	}
	o.checkModels(check)
	check(len(o.Harmful) > 0, "harmful", "is missing; name a folder of captioned pictures")
	check(len(o.Benign) > 0, "benign", "is missing; name a folder of captioned pictures")
	within := func(key string, value, least, most int) {
		check(value >= least && value <= most, key, "%d must lie between %d and %d", value, least, most)
	}
	within("probes", o.Probes, leastSample, maxDraws)
	within("draws", o.Draws, 1, maxDraws)
	within("power_iterations", o.PowerIterations, 1, maxDraws)
	within("iterations", o.Iterations, 1, maxDraws)
	within("points", o.Points, 2, maxPoints)
	within("loss_batches", o.LossBatches, leastSample, maxDraws)
	check(o.Tolerance > 0 && o.Tolerance < 1, "tolerance", "%v must lie between 0 and 1", o.Tolerance)
	check(o.Gamma >= 0 && !math.IsInf(o.Gamma, 0), "gamma", "%v must be a finite number, not below 0", o.Gamma)
	check(o.Damping > 0 && o.Damping <= 1, "damping", "%v must be above 0 and at most 1", o.Damping)
	finite := !math.IsNaN(o.To-o.From) && !math.IsInf(o.To-o.From, 0)
	check(finite && o.From < 0, "from", "%v must be below 0, the model itself, and finite", o.From)
	check(finite && o.To >= 1, "to", "%v must be at least 1, the fine-tuned model, and finite", o.To)
	check(o.Parameters == AllWeights || o.Parameters == LoRA, "parameters", "%q is not known; use %s or %s", o.Parameters, AllWeights, LoRA)
	check(o.DownStd >= 0 && !math.IsInf(o.DownStd, 0), "down_std", "%v must be a finite number, not below 0", o.DownStd)
	o.checkTuning(check)
	return out
}

func (o Options) checkModels(check func(ok bool, key, format string, args ...any)) {
	check(len(o.Models) > 0, "models", "is missing; name at least one as NAME=FOLDER")
	seen := map[string]bool{}
	for _, m := range o.Models {
		// Files are named after models, on file systems that may not tell upper from lower case.
		key := strings.ToLower(m.Name)
		check(fileName(m.Name), "models", "name %q must not be empty, begin with a dot or hold one of / \\ : and blanks", m.Name)
		check(!seen[key], "models", "name %q is used twice; every model needs a name of its own", m.Name)
		check(m.Dir != "", "models", "%q has no folder; write NAME=FOLDER", m.Name)
		seen[key] = true
	}
}

func (o Options) checkTuning(check func(ok bool, key, format string, args ...any)) {
	c := o.Tuning
	methods := []string{finetune.Full, finetune.LoRA, finetune.Custom, finetune.SVDiff}
	for _, p := range c.Problems() {
		check(false, p.Key, "%s", p.Message)
	}
	check(slices.Contains(methods, c.Method) || !slices.Contains(finetune.Methods(), c.Method), "method",
		"%q learns a word or an instance prompt, under which the other losses are not taken; use %s", c.Method, strings.Join(methods, ", "))
	check(c.Steps != 0, "steps", "0 would leave the model where it is; fine-tune at least 1 step")
	check(c.Placeholder == "", "placeholder", "%q: the other losses know no new word; leave it out", c.Placeholder)
	check(c.InstancePrompt == "" || c.Method == finetune.DreamBooth, "instance_prompt", "%q: the other losses are taken under captions; give the benign pictures that caption", c.InstancePrompt)
	check(!c.TrainTextEncoder, "train_text_encoder", "true: θ is part of the UNet; leave it out")
	check(o.Parameters != LoRA || c.Rank >= 1, "rank", "%d must be at least 1", c.Rank)
}

func fileName(s string) bool {
	return s != "" && !strings.HasPrefix(s, ".") && !strings.ContainsAny(s, "/\\: \t\r\n")
}

// line is the places s on the way from θ (0) to θ_FT (1), ascending.
func (o Options) line() []float64 {
	var out []float64
	near := 1e-9 * (o.To - o.From)
	for i := range o.Points {
		s := o.From + (o.To-o.From)*float64(i)/float64(o.Points-1)
		for _, end := range []float64{0, 1} {
			if math.Abs(s-end) < near {
				s = end // where rounding missed it
			}
		}
		out = append(out, s)
	}
	out = append(out, 0, 1)
	slices.Sort(out)
	return slices.Compact(out)
}
