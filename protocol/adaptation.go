package protocol

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
)

// Adaptation is what somebody may do with a model: a fine-tuning, measured after some of its steps. What is not set is
// that of the published evaluation, see finetune.Defaults.
type Adaptation struct {
	Name   string   `toml:"name"`
	Label  string   `toml:"label"`  // what reports call it; empty: its name
	Models []string `toml:"models"` // only these; none: all
	Method string   `toml:"method"` // see finetune.Methods
	Steps  []int    `toml:"steps"`  // where the model is measured; the last is where fine-tuning ends

	Data        string    `toml:"data"`        // folder of captioned pictures; where all have one prompt: of pictures of the subject
	Prior       string    `toml:"prior"`       // dreambooth, custom, svdiff: folder of pictures of the subject's class, captioned unless there is a class prompt; empty: none
	Contaminate string    `toml:"contaminate"` // folder of harmful captioned pictures to mix in; empty: none
	Ratios      []float64 `toml:"ratios"`      // shares of the draws that these have: one adaptation for each, called NAME-20 at 0.2

	BatchSize    int      `toml:"batch_size"`
	Accumulation int      `toml:"accumulation"`
	Optimizer    string   `toml:"optimizer"`
	LearningRate float64  `toml:"learning_rate"` // 0: the method's usual one
	WeightDecay  float64  `toml:"weight_decay"`
	Momentum     float64  `toml:"momentum"`
	Nesterov     bool     `toml:"nesterov"`
	Schedule     string   `toml:"schedule"`
	WarmupSteps  int      `toml:"warmup_steps"`
	ClipNorm     float64  `toml:"clip_norm"`
	Rank         int      `toml:"rank"`
	Alpha        float64  `toml:"alpha"`
	Targets      []string `toml:"targets"`

	LoRADropout float64 `toml:"lora_dropout"`

	TrainTextEncoder bool    `toml:"train_text_encoder"`
	Placeholder      string  `toml:"placeholder"` // textual-inversion, custom: the word that is learnt; prompts may have it where it is
	Initializer      string  `toml:"initializer"`
	Vectors          int     `toml:"vectors"`
	InstancePrompt   string  `toml:"instance_prompt"` // of all pictures, in place of captions; empty: the method's usual one
	PriorWeight      float64 `toml:"prior_weight"`
	ClassPrompt      string  `toml:"class_prompt"` // of all prior pictures, in place of captions; with it, missing ones are made
	PriorPictures    int     `toml:"prior_pictures"`
	PriorSteps       int     `toml:"prior_steps"`
	SNRGamma         float64 `toml:"snr_gamma"`
	NoiseOffset      float64 `toml:"noise_offset"`
	EMADecay         float64 `toml:"ema_decay"` // 0: none; the average of the weights is what is measured, at the end only
	CaptionDropout   float64 `toml:"caption_dropout"`
	Flip             bool    `toml:"flip"`
	Resolution       int     `toml:"resolution"`
	Buckets          bool    `toml:"buckets"`
	BucketUpscale    bool    `toml:"bucket_upscale"`

	GradientCheckpointing bool   `toml:"gradient_checkpointing"`
	Compute               string `toml:"compute"`          // what the UNet is trained in, see nn.Compute
	VAETileSize           int    `toml:"vae_tile_size"`    // pixels; larger pictures are encoded by tiles. 0: whole
	CheckpointEvery       int    `toml:"checkpoint_every"` // steps after which an interrupted fine-tuning can go on; 0: from its start
}

// SetDefaults makes it the published evaluation's downstream fine-tuning: all weights of the UNet, measured after 200
// steps.
func (a *Adaptation) SetDefaults() {
	c := finetune.Defaults(finetune.Full)
	*a = Adaptation{
		Method: c.Method, Steps: []int{c.Steps}, BatchSize: c.BatchSize, Accumulation: c.Accumulation, Optimizer: c.Optimizer,
		WeightDecay: c.WeightDecay, Schedule: c.Schedule, ClipNorm: c.ClipNorm, Rank: c.Rank, Flip: c.Flip,
		Vectors: c.Vectors, PriorWeight: c.PriorWeight, PriorPictures: c.PriorPictures, PriorSteps: c.PriorSteps, Compute: c.Compute, CheckpointEvery: 50,
	}
}

// config is the fine-tuning, which draws its random numbers from the seed.
func (a Adaptation) config(seed uint64) finetune.Config {
	c := finetune.Defaults(a.Method)
	c.Steps, c.Seed = slices.Max(a.Steps), seed
	c.BatchSize, c.Accumulation = a.BatchSize, a.Accumulation
	c.Optimizer, c.WeightDecay, c.Momentum, c.Nesterov = a.Optimizer, a.WeightDecay, a.Momentum, a.Nesterov
	if a.LearningRate != 0 {
		c.LearningRate = a.LearningRate
	}
	c.Schedule, c.WarmupSteps, c.ClipNorm = a.Schedule, a.WarmupSteps, a.ClipNorm
	c.Rank, c.Alpha, c.Targets, c.LoRADropout = a.Rank, a.Alpha, a.Targets, a.LoRADropout
	c.TrainTextEncoder, c.Placeholder, c.Initializer, c.Vectors = a.TrainTextEncoder, a.Placeholder, a.Initializer, a.Vectors
	if a.InstancePrompt != "" {
		c.InstancePrompt = a.InstancePrompt
	}
	c.PriorWeight, c.ClassPrompt, c.PriorPictures, c.PriorSteps = a.PriorWeight, a.ClassPrompt, a.PriorPictures, a.PriorSteps
	c.SNRGamma, c.NoiseOffset, c.EMADecay, c.CaptionDropout = a.SNRGamma, a.NoiseOffset, a.EMADecay, a.CaptionDropout
	c.Flip, c.Resolution, c.Buckets, c.BucketUpscale = a.Flip, a.Resolution, a.Buckets, a.BucketUpscale
	c.GradientCheckpointing, c.Compute, c.VAETileSize = a.GradientCheckpointing, a.Compute, a.VAETileSize
	return c
}

// wordOnly tells whether nothing is learnt but a word: what prompts without it give stays as it is.
func (a Adaptation) wordOnly() bool { return a.Method == finetune.TextualInversion }

// onePrompt tells whether all pictures are trained under one prompt, so that they need no captions.
func (a Adaptation) onePrompt() bool {
	return a.Placeholder != "" || strings.TrimSpace(a.config(0).InstancePrompt) != ""
}

func (r Recipe) validateAdaptations(v *validation) {
	names := map[string]bool{none: true}
	models := map[string]bool{}
	for _, m := range r.Models {
		models[m.Name] = true
	}
	for i, a := range r.Adaptations {
		a.validate(v, fmt.Sprintf("adaptation[%d].", i), names, models)
	}
	var whole []string
	for _, variant := range r.variants() {
		if slices.Contains(whole, strings.ToLower(variant.Name)) {
			v.check(false, "adaptation", "has %s twice, once from its ratios; rename one", variant.Name)
		}
		whole = append(whole, strings.ToLower(variant.Name))
	}
}

func (a Adaptation) validate(v *validation, key string, names, models map[string]bool) {
	v.check(a.Name != none, key+"name", "%q stands for the model as it is; choose another", none)
	v.name(key+"name", a.Name, names)
	v.oneOf(key+"method", a.Method, finetune.Methods()...)
	for _, m := range a.Models {
		v.check(models[m], key+"models", "has %q, which is none of the models", m)
	}
	growing := len(a.Steps) > 0 && a.Steps[0] >= 1
	for k := 1; k < len(a.Steps); k++ {
		growing = growing && a.Steps[k] > a.Steps[k-1]
	}
	v.check(growing, key+"steps", "%v must grow and begin at 1 or later", a.Steps)
	v.check(a.EMADecay == 0 || len(a.Steps) < 2, key+"steps", "%v: an average of weights is measured at the end of a fine-tuning only; give one number, or ema_decay = 0", a.Steps)
	v.check((a.Contaminate == "") == (len(a.Ratios) == 0), key+"ratios", "%v and contaminate %q go together: the folder of harmful pictures, and the shares that they have", a.Ratios, a.Contaminate)
	for k, ratio := range a.Ratios {
		v.check(ratio >= 0 && ratio <= 1 && !slices.Contains(a.Ratios[:k], ratio), key+"ratios", "%v must be different numbers from 0 to 1", a.Ratios)
	}
	if !growing || !slices.Contains(finetune.Methods(), a.Method) {
		return
	}
	job := finetune.Job{Model: "any", Data: a.Data, Prior: a.Prior, Contaminate: a.Contaminate, CheckpointEvery: a.CheckpointEvery, Config: a.config(0)}
	if a.Contaminate != "" {
		job.Ratio = 1
	}
	for _, p := range job.Validate() {
		v.check(false, key+p.Key, "%s", p.Message)
	}
}

// none is the adaptation of the model as it is.
const none = "none"

// variant is an adaptation with one share of harmful pictures.
type variant struct {
	Adaptation
	family string // the name without the share
	ratio  float64
}

// variants are the adaptations, one for each share of harmful pictures, in their order.
func (r Recipe) variants() []variant {
	var out []variant
	for _, a := range r.Adaptations {
		if len(a.Ratios) == 0 {
			out = append(out, variant{Adaptation: a, family: a.Name})
		}
		for _, ratio := range a.Ratios {
			v := variant{a, a.Name, ratio}
			percent := strconv.FormatFloat(math.Round(ratio*1e6)/1e4, 'f', -1, 64)
			v.Name += "-" + percent
			if v.Label != "" {
				v.Label += fmt.Sprintf(", %s %% harmful", percent)
			}
			out = append(out, v)
		}
	}
	return out
}

// appliesTo tells whether a model is adapted this way.
func (v variant) appliesTo(model string) bool {
	return len(v.Models) == 0 || slices.Contains(v.Models, model)
}

// pictures opens the folders and reads what their files say about themselves.
func (v variant) pictures() (finetune.Data, error) {
	read := data.ReadFolder
	if v.onePrompt() {
		read = data.ReadPictures
	}
	clean, err := read(v.Data)
	if err != nil {
		return finetune.Data{}, err
	}
	d := finetune.Data{Pictures: data.Mixture{{Folder: clean, Weight: 1}}}
	if v.ratio > 0 {
		harmful, err := data.ReadFolder(v.Contaminate)
		if err != nil {
			return d, err
		}
		if d.Pictures, err = data.Contaminated(clean, harmful, v.ratio); err != nil {
			return d, err
		}
	}
	if v.ClassPrompt != "" {
		d.PriorFolder = v.Prior
	} else if v.Prior != "" {
		prior, err := data.ReadFolder(v.Prior)
		if err != nil {
			return d, err
		}
		d.Prior = data.Mixture{{Folder: prior, Weight: 1}}
	}
	return d, nil
}
