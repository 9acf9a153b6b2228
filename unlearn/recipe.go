// Package unlearn removes a concept from a model so that it stays removed: ResAlign, and the plain baselines that it is
// compared with, behind one recipe.
package unlearn

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// Methods.
const (
	ResAlign = "resalign" // simulated fine-tuning and the gradient through it (Li et al. 2025)
	Ascent   = "ascent"   // gradient ascent on harmful pictures, distillation on others
	ESD      = "esd"      // negative-guidance distillation (Gandikota et al. 2023), distillation on others
)

// Recipe is everything that a run depends on. Its keys are documented in docs/recipes.md.
type Recipe struct {
	Preset     string `toml:"preset"`
	Model      string `toml:"model"`       // a diffusers directory
	Out        string `toml:"out"`         // the run's folder
	Method     string `toml:"method"`      // resalign or a baseline
	Seed       uint64 `toml:"seed"`        // of every random number
	Engine     string `toml:"engine"`      // see `resalign doctor`
	Resolution int    `toml:"resolution"`  // of training pictures; 0: the model's own
	Cache      string `toml:"cache"`       // folder for encoded pictures and prompts; empty: memory only
	LoRAFormat string `toml:"lora_format"` // of the saved adapter, see finetune.LoRAFormats; empty: diffusers

	Objective     Objective          `toml:"objective"`
	Latents       Latents            `toml:"latents"`
	Saliency      Saliency           `toml:"saliency"`
	Meta          Meta               `toml:"meta"`
	Censor        Censor             `toml:"censor"`
	Attack        Attack             `toml:"attack"`
	Contrast      Contrast           `toml:"contrast"`
	Edit          Edit               `toml:"edit"`
	Trainable     Trainable          `toml:"trainable"`
	Outer         Outer              `toml:"outer"`
	Hypergradient Hypergradient      `toml:"hypergradient"`
	Data          map[string]Dataset `toml:"data"`
	Simulations   []Simulation       `toml:"simulation"`
	Phases        []Phase            `toml:"phase"`
	Memory        Memory             `toml:"memory"`
	Preview       generate.Preview   `toml:"preview"`
	Checkpoint    Checkpoint         `toml:"checkpoint"`
}

// Objective is L(θ) = (1−λ) L_harm(θ) + λ L_harm(θ*) + α R(θ) (method, section 1).
type Objective struct {
	Harm       string  `toml:"harm"`        // ascent: −‖ε_θ − ε‖²; esd: ‖ε_θ − negatively guided ε_θ₀‖²; or that of one method: relabel, mosaic, contrast
	Cap        float64 `toml:"cap"`         // ascent: the error of one picture from which on it is not raised further; 0: none
	Depth      float64 `toml:"depth"`       // ascent: the error on harmful pictures that is steered to and held; 0: as far as it goes
	Eta        float64 `toml:"eta"`         // esd: strength of the negative guidance
	BasePrompt string  `toml:"base_prompt"` // esd: what to think of instead; empty: the unconditional prediction
	Lambda     float64 `toml:"lambda"`      // λ, the weight of resilience
	Alpha      float64 `toml:"alpha"`       // α, the weight of retaining
	AlphaFinal float64 `toml:"alpha_final"` // α at the end: it grows over the second half by sigmoid(10(p − ½))
	Retain     string  `toml:"retain"`      // R: distillation from θ₀, which is what empty means, or denoising
}

// Trainable says what θ is.
type Trainable struct {
	Parameters string   `toml:"parameters"` // lora, all, or for method advunlearn text_encoder
	Rank       int      `toml:"rank"`
	Scale      float64  `toml:"scale"`
	Targets    []string `toml:"targets"`  // lora: parts of the paths of attention layers; none: all
	DownStd    float64  `toml:"down_std"` // lora: standard deviations of the first factors
	UpStd      float64  `toml:"up_std"`
}

// Outer is the optimizer of θ.
type Outer struct {
	Steps              int     `toml:"steps"`
	Optimizer          string  `toml:"optimizer"`
	LearningRate       float64 `toml:"learning_rate"`
	WeightDecay        float64 `toml:"weight_decay"`
	ClipNorm           float64 `toml:"clip_norm"` // limit of the hypergradient's norm; 0: none
	SimulationsPerStep int     `toml:"simulations_per_step"`
}

// Solvers of (I + γH) x = g.
const (
	Richardson        = "richardson"
	ConjugateGradient = "conjugate_gradient"
	FirstOrder        = "first_order" // x = g
	Unrolled          = "unrolled"    // no model of fine-tuning: back through its last steps as they were taken
)

// Second-order products.
const (
	exactProducts      = "exact"
	centralDifferences = "central_differences" // of two gradients: slower, in less memory
	GaussNewton        = "gauss_newton"        // of the positive part of the Hessian, at half the cost
)

// Metrics of the proximal model.
const (
	PlainMetric = "plain" // ‖φ − θ‖²: what gradient descent stays near in
	AdamMetric  = "adam"  // ‖φ − θ‖² weighted by the root of Adam's second moments
)

// Hypergradient is how the gradient through fine-tuning is taken (method, section 2).
type Hypergradient struct {
	Solver     string  `toml:"solver"`
	Iterations int     `toml:"iterations"` // K; unrolled: how many of the last steps
	Gamma      float64 `toml:"gamma"`      // γ, the radius of the Moreau envelope
	Damping    float64 `toml:"damping"`    // μ of the damped Richardson iteration; 1: plain
	Metric     string  `toml:"metric"`     // of the proximal term: plain, or adam
	Products   string  `toml:"products"`   // exact, central_differences of two gradients, or gauss_newton
	Residual   bool    `toml:"residual"`   // spend one product more on the residual of the last iterate
}

// Dataset is one named set of pictures: a folder, or several by weight.
type Dataset struct {
	Folder string `toml:"folder"`
	Parts  []Part `toml:"part"`
	Batch  int    `toml:"batch"` // pictures per batch; 0: 1 for harmful and simulations, 4 for retain
	Flip   bool   `toml:"flip"`
	Prompt string `toml:"prompt"` // one prompt for all pictures, in place of captions
}

// Part is a folder of a mixture.
type Part struct {
	Folder string  `toml:"folder"`
	Weight float64 `toml:"weight"`
}

// What a simulated fine-tuning trains.
const (
	SameParameters = "same"            // θ itself: the adapter under training, or all weights
	FreshAdapter   = "fresh"           // a new adapter on top of the unlearned weights: what a user of LoRA does
	AllWeights     = "all"             // all weights of the UNet, whatever θ is
	CrossAttention = "cross-attention" // keys and values of the cross-attention, as Custom Diffusion does; where θ is an adapter
)

// Simulation is one configuration of downstream fine-tuning, of which each outer step draws some.
type Simulation struct {
	Name         string   `toml:"name"`
	Data         string   `toml:"data"` // a key of [data]
	Steps        int      `toml:"steps"`
	Optimizer    string   `toml:"optimizer"`
	LearningRate float64  `toml:"learning_rate"`
	WeightDecay  float64  `toml:"weight_decay"`
	Momentum     float64  `toml:"momentum"` // sgd
	Nesterov     bool     `toml:"nesterov"` // sgd with momentum
	ClipNorm     float64  `toml:"clip_norm"`
	Schedule     string   `toml:"schedule"`     // of the learning rate: constant, linear, cosine or polynomial; empty: constant
	WarmupSteps  int      `toml:"warmup_steps"` // of linear growth of the learning rate
	Adapts       string   `toml:"adapts"`       // same, fresh, all or cross-attention; empty: same
	Rank         int      `toml:"rank"`         // fresh; 0: the rank of θ, or 4
	Targets      []string `toml:"targets"`      // fresh: parts of the paths of attention layers, or kinds of layers; none: all attention layers
	Prior        string   `toml:"prior"`        // DreamBooth: a key of [data] whose loss is added
	PriorWeight  float64  `toml:"prior_weight"` // 0: 1
	// ChainReset, if above 0, continues the simulation from where it stood at the previous outer step instead of starting
	// anew, and starts anew every so many outer steps in which it is drawn: deep simulations at a fraction of the cost.
	ChainReset int `toml:"chain_reset"`
}

// Phase replaces settings of the objective for some of the outer steps. Phases follow one another; their steps add up
// to the run's.
type Phase struct {
	Steps        int      `toml:"steps"`
	Lambda       *float64 `toml:"lambda"`
	Alpha        *float64 `toml:"alpha"`
	LearningRate *float64 `toml:"learning_rate"`
}

// Memory holds what saves memory at the cost of time or of digits.
type Memory struct {
	GradientCheckpointing bool   `toml:"gradient_checkpointing"` // keep only the inputs of the UNet's blocks for derivatives
	Compute               string `toml:"compute"`                // of predictions and gradients, see nn.Compute; empty: float32
	VAETileSize           int    `toml:"vae_tile_size"`          // pixels; larger pictures are encoded by tiles. 0: whole
}

// Checkpoint says how often the run is saved.
type Checkpoint struct {
	Every int `toml:"every"`
	Keep  int `toml:"keep"`
}

// Defaults are the constants of the public recipe for Stable Diffusion 1.4 (method, section 4), but for its pool of
// simulations, which depends on the data: see the preset of that name.
func Defaults() Recipe {
	return Recipe{
		Method: ResAlign, Seed: 42, Engine: "auto", LoRAFormat: string(weights.DiffusersLoRA),
		Objective:     Objective{Harm: Ascent, Eta: 1, Lambda: 0.8, Alpha: 1.6, AlphaFinal: 2, Retain: Distillation},
		Latents:       defaultLatents(),
		Saliency:      defaultSaliency(),
		Meta:          defaultMeta(),
		Censor:        defaultCensor(),
		Attack:        defaultAttack(),
		Contrast:      defaultContrast(),
		Edit:          defaultEdit(),
		Trainable:     Trainable{Parameters: "lora", Rank: 4, Scale: 1, DownStd: 0.008, UpStd: 0.002},
		Outer:         Outer{Steps: 160, Optimizer: train.AdamW, LearningRate: 2e-4, WeightDecay: 1e-2, ClipNorm: 0.2, SimulationsPerStep: 3},
		Hypergradient: Hypergradient{Solver: Richardson, Iterations: 5, Gamma: 1, Damping: 1, Metric: PlainMetric, Products: exactProducts, Residual: true},
		Memory:        Memory{Compute: string(nn.Float32)},
		Preview:       generate.Preview{Options: generate.Defaults()},
		Checkpoint:    Checkpoint{Every: 10, Keep: 2},
	}
}

// simulates tells whether the run needs simulated fine-tuning at all.
func (r Recipe) simulates() bool { return r.Method == ResAlign || r.Method == MetaUnlearn }

// Validate lists every setting that cannot be used, by its key.
func (r Recipe) Validate() []recipe.Problem {
	v := &validation{}
	r.validateMethod(v)
	v.present("model", r.Model)
	v.present("out", r.Out)
	r.validateLoRAFormat(v)
	o := r.Objective
	v.oneOf("objective.harm", o.Harm, Ascent, ESD, Relabel, Mosaic, ContrastLoss)
	v.oneOf("objective.retain", cmp.Or(o.Retain, Distillation), Distillation, Denoising)
	v.between("objective.lambda", o.Lambda, 0, 1)
	v.notNegative("objective.cap", o.Cap)
	v.notNegative("objective.depth", o.Depth)
	v.check(o.Depth == 0 || o.Harm == Ascent, "objective.depth", "only harm = \"ascent\" has a depth to hold")
	v.notNegative("objective.eta", o.Eta)
	v.notNegative("objective.alpha", o.Alpha)
	v.notNegative("objective.alpha_final", o.AlphaFinal)
	v.oneOf("trainable.parameters", r.Trainable.Parameters, "lora", "all", TextEncoder)
	v.check(r.Trainable.Parameters != "lora" || r.Trainable.Rank >= 1, "trainable.rank", "%d must be at least 1", r.Trainable.Rank)
	v.notNegative("trainable.down_std", r.Trainable.DownStd)
	v.notNegative("trainable.up_std", r.Trainable.UpStd)
	v.optimizer("outer", r.Outer.Rule())
	v.check(r.Outer.Steps >= 1, "outer.steps", "%d must be at least 1", r.Outer.Steps)
	v.notNegative("outer.clip_norm", r.Outer.ClipNorm)
	v.check(r.Checkpoint.Every >= 1, "checkpoint.every", "%d must be at least 1", r.Checkpoint.Every)
	v.check(r.Checkpoint.Keep >= 1, "checkpoint.keep", "%d must be at least 1", r.Checkpoint.Keep)
	v.check(r.Memory.VAETileSize >= 0, "memory.vae_tile_size", "%d must not be below 0", r.Memory.VAETileSize)
	v.oneOf("memory.compute", cmp.Or(r.Memory.Compute, string(nn.Float32)), nn.Computes()...)
	v.check(r.Preview.Every >= 0, "preview.every", "%d must not be below 0", r.Preview.Every)
	v.check(r.Preview.Every == 0 || len(r.Preview.Prompts) > 0, "preview.prompts", "previews need at least one prompt")
	r.validateData(v)
	r.validatePhases(v)
	if r.Method == ResAlign {
		r.validateHypergradient(v)
		r.validateSimulations(v)
	}
	return v.problems
}

func (r Recipe) validateLoRAFormat(v *validation) {
	if err := finetune.CheckLoRAFormat(r.LoRAFormat); err != nil {
		v.check(false, "lora_format", "%v", err)
		return
	}
	plain := cmp.Or(r.LoRAFormat, string(weights.DiffusersLoRA)) == string(weights.DiffusersLoRA)
	v.check(plain || !r.closedForm() && r.Trainable.Parameters == "lora", "lora_format", "%q is for runs that train an adapter; use trainable.parameters = \"lora\"", r.LoRAFormat)
}

func (r Recipe) validateData(v *validation) {
	for _, name := range slices.Sorted(maps.Keys(r.Data)) {
		d, key := r.Data[name], "data."+name
		v.check((d.Folder != "") != (len(d.Parts) > 0), key, "give either folder or [[%s.part]] tables", key)
		v.check(d.Batch >= 0, key+".batch", "%d must not be below 0", d.Batch)
		for i, p := range d.Parts {
			v.present(fmt.Sprintf("%s.part[%d].folder", key, i), p.Folder)
			v.check(p.Weight > 0 && !math.IsInf(p.Weight, 0), fmt.Sprintf("%s.part[%d].weight", key, i), "%v must be above 0", p.Weight)
		}
	}
	for _, name := range r.needs() {
		_, ok := r.Data[name]
		v.check(ok, "data."+name, "the method needs this set of pictures: add [data.%s] with folder = \"…\"", name)
	}
}

func (r Recipe) validatePhases(v *validation) {
	total := 0
	for i, p := range r.Phases {
		key := fmt.Sprintf("phase[%d]", i)
		v.check(p.Steps >= 1, key+".steps", "%d must be at least 1", p.Steps)
		total += p.Steps
		for name, value := range map[string]*float64{"lambda": p.Lambda, "alpha": p.Alpha, "learning_rate": p.LearningRate} {
			if value != nil {
				v.notNegative(key+"."+name, *value)
			}
		}
		if p.Lambda != nil {
			v.between(key+".lambda", *p.Lambda, 0, 1)
		}
	}
	v.check(len(r.Phases) == 0 || total == r.Outer.Steps, "phase", "the phases have %d steps, but outer.steps = %d", total, r.Outer.Steps)
}

func (r Recipe) validateHypergradient(v *validation) {
	h := r.Hypergradient
	v.oneOf("hypergradient.solver", h.Solver, Richardson, ConjugateGradient, FirstOrder, Unrolled)
	v.oneOf("hypergradient.products", h.Products, exactProducts, centralDifferences, GaussNewton)
	v.oneOf("hypergradient.metric", h.Metric, PlainMetric, AdamMetric)
	v.check(h.Metric != AdamMetric || h.Solver == Richardson || h.Solver == ConjugateGradient, "hypergradient.metric", "%s belongs to a proximal model, and solver %q uses none", AdamMetric, h.Solver)
	for i, s := range r.Simulations {
		o := s.Rule()
		v.check(h.Metric != AdamMetric || o.HasSecondMoments(), fmt.Sprintf("simulation[%d].optimizer", i), "%s has no second moments, which hypergradient.metric = %q is made of", s.Optimizer, AdamMetric)
		if err := o.CheckReversible(); err != nil {
			v.check(h.Solver != Unrolled, fmt.Sprintf("simulation[%d].optimizer", i), "solver %q does not go with it: %v", Unrolled, err)
		}
	}
	v.check(h.Iterations >= 1, "hypergradient.iterations", "%d must be at least 1", h.Iterations)
	v.notNegative("hypergradient.gamma", h.Gamma)
	v.check(h.Damping > 0 && h.Damping <= 1, "hypergradient.damping", "%v must be above 0 and at most 1", h.Damping)
}

func (r Recipe) validateSimulations(v *validation) {
	v.check(len(r.Simulations) > 0, "simulation", "method %s needs at least one [[simulation]] to draw from", r.Method)
	j := r.Outer.SimulationsPerStep
	v.check(j >= 1 && j <= max(1, len(r.Simulations)), "outer.simulations_per_step", "%d must lie between 1 and the number of simulations, %d", j, len(r.Simulations))
	seen := map[string]bool{}
	for i, s := range r.Simulations {
		key := fmt.Sprintf("simulation[%d]", i)
		v.present(key+".name", s.Name)
		// Two simulations of one name would share their data's random numbers, and no log could tell them apart.
		v.check(!seen[s.Name], key+".name", "%q is used twice; every simulation needs a name of its own", s.Name)
		seen[s.Name] = true
		v.dataset(r, key+".data", s.Data)
		if s.Prior != "" {
			v.dataset(r, key+".prior", s.Prior)
		}
		v.oneOf(key+".adapts", cmp.Or(s.Adapts, SameParameters), SameParameters, FreshAdapter, AllWeights, CrossAttention)
		v.check(s.Adapts != CrossAttention || r.Trainable.Parameters == "lora", key+".adapts", "%q needs trainable.parameters = \"lora\"; use %q", CrossAttention, SameParameters)
		v.check(len(s.Targets) == 0 || s.Adapts == FreshAdapter, key+".targets", "%q are only for adapts = %q", s.Targets, FreshAdapter)
		v.check(s.WarmupSteps >= 0, key+".warmup_steps", "%d must not be below 0", s.WarmupSteps)
		schedule := s.schedule()
		schedule.WarmupSteps = max(0, schedule.WarmupSteps)
		if err := schedule.Validate(); err != nil {
			v.check(false, key+".schedule", "%v", err)
		}
		v.check(s.Steps >= 1, key+".steps", "%d must be at least 1", s.Steps)
		v.check(s.Rank >= 0, key+".rank", "%d must not be below 0", s.Rank)
		v.check(s.ChainReset >= 0, key+".chain_reset", "%d must not be below 0", s.ChainReset)
		v.notNegative(key+".prior_weight", s.PriorWeight)
		v.notNegative(key+".clip_norm", s.ClipNorm)
		v.optimizer(key, s.Rule())
	}
}

// Rule is the outer optimizer's.
func (o Outer) Rule() train.Optimizer { return rule(o.Optimizer, o.LearningRate, o.WeightDecay) }

// Rule is the optimizer of the simulation.
func (s Simulation) Rule() train.Optimizer {
	o := rule(s.Optimizer, s.LearningRate, s.WeightDecay)
	o.Momentum, o.Nesterov = s.Momentum, s.Nesterov
	return o
}

// schedule is that of the simulation's learning rate.
func (s Simulation) schedule() train.Schedule {
	out := train.Schedule{Kind: cmp.Or(s.Schedule, train.ConstantSchedule), WarmupSteps: s.WarmupSteps}
	if out.Kind == train.PolynomialSchedule {
		out.Power = 1
	}
	return out
}

// rule is an optimizer with its usual constants but the weight decay; Validate reports what it does not have.
func rule(name string, rate, decay float64) train.Optimizer {
	o, _ := train.DefaultOptimizer(name, rate)
	o.WeightDecay = decay
	return o
}

// validation collects problems.
type validation struct{ problems []recipe.Problem }

func (v *validation) check(ok bool, key, format string, args ...any) {
	if !ok {
		v.problems = append(v.problems, recipe.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
	}
}

func (v *validation) present(key, value string) {
	v.check(strings.TrimSpace(value) != "", key, "is missing")
}

func (v *validation) oneOf(key, value string, allowed ...string) {
	v.check(slices.Contains(allowed, value), key, "%q is not known; use %s", value, strings.Join(allowed, ", "))
}

func (v *validation) notNegative(key string, value float64) {
	v.check(value >= 0 && !math.IsInf(value, 0), key, "%v must be a finite number, not below 0", value)
}

func (v *validation) between(key string, value, low, high float64) {
	v.check(value >= low && value <= high, key, "%v must lie between %v and %v", value, low, high)
}

func (v *validation) optimizer(key string, o train.Optimizer) {
	if err := o.Validate(); err != nil {
		v.check(false, key+".optimizer", "%v", err)
	}
}

func (v *validation) dataset(r Recipe, key, name string) {
	_, ok := r.Data[name]
	v.check(ok, key, "%q is not a set of pictures of this recipe; there are %s", name, strings.Join(slices.Sorted(maps.Keys(r.Data)), ", "))
}
