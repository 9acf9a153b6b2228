// Package finetune adapts a model to pictures the way its users do: all weights, a low-rank adapter, DreamBooth,
// Custom Diffusion, SVDiff, Textual Inversion. It is a tool of its own, and the yardstick that unlearning is held against.
package finetune

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/train"
)

// Methods of fine-tuning.
const (
	Full       = "full"       // all weights of the UNet
	LoRA       = "lora"       // a fresh low-rank adapter
	DreamBooth = "dreambooth" // all weights, on pictures of one subject under one prompt, with prior pictures
	Custom     = "custom"     // keys and values of the cross-attention only (Custom Diffusion, Kumari et al. 2023)

	TextualInversion = "textual-inversion" // embeddings of one new word only (Gal et al. 2023)

	SVDiff = "svdiff" // singular values of the UNet's weights only (Han et al. 2023)
)

// Methods lists the methods.
func Methods() []string { return []string{Full, LoRA, DreamBooth, Custom, TextualInversion, SVDiff} }

// Config is a fine-tuning.
type Config struct {
	Method string `toml:"method"`
	Steps  int    `toml:"steps"` // optimizer steps

	BatchSize    int `toml:"batch_size"`
	Accumulation int `toml:"accumulation"` // batches whose gradients are averaged for one step

	Optimizer    string  `toml:"optimizer"` // sgd, adam, adamw, lion or adafactor
	LearningRate float64 `toml:"learning_rate"`
	WeightDecay  float64 `toml:"weight_decay"` // sgd, adam: added to the gradient; others: decoupled
	Momentum     float64 `toml:"momentum"`     // sgd
	Nesterov     bool    `toml:"nesterov"`     // sgd with momentum
	Schedule     string  `toml:"schedule"`     // constant, linear, cosine or polynomial
	WarmupSteps  int     `toml:"warmup_steps"`
	ClipNorm     float64 `toml:"clip_norm"` // limit of the gradient's norm; 0: none

	Rank    int      `toml:"rank"`    // lora
	Alpha   float64  `toml:"alpha"`   // lora; 0: equal to the rank, so that the adapter's scale is one
	Targets []string `toml:"targets"` // lora: parts of the paths of attention layers, or kinds of layers; none: all attention layers

	LoRADropout float64 `toml:"lora_dropout"` // lora: share of what goes into the adapter that training drops, as PEFT does

	TrainTextEncoder bool `toml:"train_text_encoder"` // full, dreambooth: all weights of the text encoder as well

	Placeholder string `toml:"placeholder"` // textual-inversion, custom: the new word, such as <cat>
	Initializer string `toml:"initializer"` // with a placeholder: a word of one token whose embedding the new ones start from
	Vectors     int    `toml:"vectors"`     // with a placeholder: embeddings that the word stands for

	InstancePrompt string  `toml:"instance_prompt"` // of all pictures, in place of captions; with a placeholder, empty: a photo of it
	PriorWeight    float64 `toml:"prior_weight"`    // dreambooth, custom, svdiff: weight of the loss on prior pictures

	ClassPrompt   string `toml:"class_prompt"`   // of all prior pictures, in place of captions; with it, missing ones are made
	PriorPictures int    `toml:"prior_pictures"` // with a class prompt: how many there shall be at least
	PriorSteps    int    `toml:"prior_steps"`    // with a class prompt: sampling steps of those that are made

	SNRGamma    float64 `toml:"snr_gamma"`    // min-SNR weights of timesteps, not of prior pictures; 0: none. See denoise.MinSNR
	NoiseOffset float64 `toml:"noise_offset"` // noise that is the same all over a channel; 0: none

	EMADecay       float64 `toml:"ema_decay"` // 0: none. The average is kept apart and is what gets saved
	CaptionDropout float64 `toml:"caption_dropout"`
	Flip           bool    `toml:"flip"`
	Resolution     int     `toml:"resolution"` // pixels; 0: the size the model was trained on
	Buckets        bool    `toml:"buckets"`    // keep aspect ratios, see data.Buckets; otherwise pictures become squares
	BucketUpscale  bool    `toml:"bucket_upscale"`

	GradientCheckpointing bool   `toml:"gradient_checkpointing"` // less memory for more time, see sd.Model
	Compute               string `toml:"compute"`                // what the UNet computes in, see nn.Compute; empty: float32
	VAETileSize           int    `toml:"vae_tile_size"`          // pixels; larger pictures are encoded by tiles. 0: whole

	Seed uint64 `toml:"seed"`
}

// Defaults are the published evaluation's downstream fine-tuning for the given method: AdamW at 1e-5 with weight decay
// 1e-2, 200 steps of 1×4 pictures, gradients clipped to 1, random flips; LoRA at its usual 1e-4 and rank 4,
// Textual Inversion at 5e-4, SVDiff at the 1e-3 of its authors. Prior pictures are made as diffusers makes them, 100 in 50
// steps.
func Defaults(method string) Config {
	c := Config{
		Method: method, Steps: 200, BatchSize: 1, Accumulation: 4,
		Optimizer: train.AdamW, LearningRate: 1e-5, WeightDecay: 1e-2, Schedule: train.ConstantSchedule, ClipNorm: 1,
		Rank: 4, Vectors: 1, PriorWeight: 1, PriorPictures: 100, PriorSteps: 50, Flip: true, Seed: 42, Compute: string(nn.Float32),
	}
	switch method {
	case LoRA:
		c.LearningRate = 1e-4
	case DreamBooth:
		c.InstancePrompt = "a photo of *s person" // the instance prompt of the published simulations
		c.Flip = false
	case TextualInversion:
		c.LearningRate = 5e-4
	case SVDiff:
		c.LearningRate = 1e-3
		c.Flip = false
	}
	return c
}

// Problems lists what is wrong with the settings, each with the key it concerns.
func (c Config) Problems() []Problem {
	var out []Problem
	bad := func(key, format string, args ...any) { out = append(out, Problem{key, fmt.Sprintf(format, args...)}) }
	if !slices.Contains(Methods(), c.Method) {
		bad("method", "%q is not known; use %s", c.Method, strings.Join(Methods(), ", "))
	}
	atLeast := func(key string, value, least int) {
		if value < least {
			bad(key, "%d is too small; it must be at least %d", value, least)
		}
	}
	atLeast("steps", c.Steps, 0)
	atLeast("batch_size", c.BatchSize, 1)
	atLeast("accumulation", c.Accumulation, 1)
	atLeast("warmup_steps", c.WarmupSteps, 0)
	atLeast("resolution", c.Resolution, 0)
	atLeast("vae_tile_size", c.VAETileSize, 0)
	if c.Method == LoRA {
		atLeast("rank", c.Rank, 1)
	}
	if err := nn.Compute(c.Compute).Check(); err != nil {
		bad("compute", "%v", err)
	}
	if err := c.optimizer().Validate(); err != nil {
		bad("optimizer", "%v", err)
	}
	schedule := c.schedule()
	schedule.WarmupSteps = max(0, schedule.WarmupSteps) // reported above under its own key
	if err := schedule.Validate(); err != nil {
		bad("schedule", "%v", err)
	}
	notNegative := func(key string, value float64) {
		if !(value >= 0) || math.IsInf(value, 0) {
			bad(key, "%v must be a finite number, not below 0", value)
		}
	}
	notNegative("clip_norm", c.ClipNorm)
	notNegative("prior_weight", c.PriorWeight)
	notNegative("alpha", c.Alpha)
	notNegative("snr_gamma", c.SNRGamma)
	notNegative("noise_offset", c.NoiseOffset)
	if !(c.EMADecay >= 0 && c.EMADecay < 1) {
		bad("ema_decay", "%v must lie in 0 … 1, below 1", c.EMADecay)
	}
	if !(c.LoRADropout >= 0 && c.LoRADropout < 1) {
		bad("lora_dropout", "%v must lie in 0 … 1, below 1", c.LoRADropout)
	} else if c.LoRADropout > 0 && c.Method != LoRA {
		bad("lora_dropout", "%v is only for method %s", c.LoRADropout, LoRA)
	}
	if c.BucketUpscale && !c.Buckets {
		bad("bucket_upscale", "true is only for buckets")
	}
	if !(c.CaptionDropout >= 0 && c.CaptionDropout <= 1) {
		bad("caption_dropout", "%v must lie between 0 and 1", c.CaptionDropout)
	}
	if c.Method == DreamBooth && strings.TrimSpace(c.InstancePrompt) == "" {
		bad("instance_prompt", "dreambooth needs a prompt for the subject's pictures")
	}
	c.priorProblems(bad)
	c.textProblems(bad)
	return out
}

// Problem is a setting that cannot be used.
type Problem struct{ Key, Message string }

// Validate returns all problems as one error.
func (c Config) Validate() error {
	var parts []string
	for _, p := range c.Problems() {
		parts = append(parts, p.Key+": "+p.Message)
	}
	if len(parts) == 0 {
		return nil
	}
	return fmt.Errorf("fine-tuning: %s", strings.Join(parts, "; "))
}

// optimizer has its usual constants but the weight decay; Validate reports what it does not have.
func (c Config) optimizer() train.Optimizer {
	o, _ := train.DefaultOptimizer(c.Optimizer, c.LearningRate)
	o.WeightDecay, o.Momentum, o.Nesterov = c.WeightDecay, c.Momentum, c.Nesterov
	return o
}

func (c Config) schedule() train.Schedule {
	s := train.Schedule{Kind: c.Schedule, WarmupSteps: c.WarmupSteps}
	if c.Schedule == train.PolynomialSchedule {
		s.Power = 1
	}
	return s
}
