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
	Method string   `toml:"method"` // full, lora, dreambooth or custom
	Steps  []int    `toml:"steps"`  // where the model is measured; the last is where fine-tuning ends

	Data        string    `toml:"data"`        // folder of captioned pictures; dreambooth: of pictures of the subject
	Prior       string    `toml:"prior"`       // dreambooth: folder of captioned pictures of the subject's class; empty: none
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

	TrainTextEncoder bool    `toml:"train_text_encoder"`
	InstancePrompt   string  `toml:"instance_prompt"` // dreambooth; empty: the usual one
	PriorWeight      float64 `toml:"prior_weight"`
	SNRGamma         float64 `toml:"snr_gamma"`
	NoiseOffset      float64 `toml:"noise_offset"`
	CaptionDropout   float64 `toml:"caption_dropout"`
	Flip             bool    `toml:"flip"`
	Resolution       int     `toml:"resolution"`

	GradientCheckpointing bool `toml:"gradient_checkpointing"`
	CheckpointEvery       int  `toml:"checkpoint_every"` // steps after which an interrupted fine-tuning can go on; 0: from its start
}

// SetDefaults makes it the published evaluation's downstream fine-tuning: all weights of the UNet, measured after 200
// steps.
func (a *Adaptation) SetDefaults() {
	c := finetune.Defaults(finetune.Full)
	*a = Adaptation{
		Method: c.Method, Steps: []int{c.Steps}, BatchSize: c.BatchSize, Accumulation: c.Accumulation, Optimizer: c.Optimizer,
		WeightDecay: c.WeightDecay, Schedule: c.Schedule, ClipNorm: c.ClipNorm, Rank: c.Rank, PriorWeight: c.PriorWeight, Flip: c.Flip,
		CheckpointEvery: 50,
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
	c.Rank, c.Alpha, c.Targets, c.TrainTextEncoder = a.Rank, a.Alpha, a.Targets, a.TrainTextEncoder
	if a.InstancePrompt != "" {
		c.InstancePrompt = a.InstancePrompt
	}
	c.PriorWeight, c.SNRGamma, c.NoiseOffset, c.CaptionDropout = a.PriorWeight, a.SNRGamma, a.NoiseOffset, a.CaptionDropout
	c.Flip, c.Resolution, c.GradientCheckpointing = a.Flip, a.Resolution, a.GradientCheckpointing
	return c
}

// methods are those whose result shows in pictures of ordinary prompts: a word that was learnt is in none of them.
func methods() []string {
	return []string{finetune.Full, finetune.LoRA, finetune.DreamBooth, finetune.Custom}
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
	v.oneOf(key+"method", a.Method, methods()...)
	v.check(a.Data != "", key+"data", "is missing; name a folder of pictures")
	for _, m := range a.Models {
		v.check(models[m], key+"models", "has %q, which is none of the models", m)
	}
	growing := len(a.Steps) > 0 && a.Steps[0] >= 1
	for k := 1; k < len(a.Steps); k++ {
		growing = growing && a.Steps[k] > a.Steps[k-1]
	}
	v.check(growing, key+"steps", "%v must grow and begin at 1 or later", a.Steps)
	v.check(!a.TrainTextEncoder || len(a.Steps) < 2, key+"steps", "%v: a fine-tuning that trains the text encoder is measured at its end only; give one number", a.Steps)
	v.check(a.CheckpointEvery >= 0, key+"checkpoint_every", "%d must not be below 0", a.CheckpointEvery)
	v.check(a.Prior == "" || a.Method == finetune.DreamBooth, key+"prior", "%q is only for method %s", a.Prior, finetune.DreamBooth)
	v.check((a.Contaminate == "") == (len(a.Ratios) == 0), key+"ratios", "%v and contaminate %q go together: the folder of harmful pictures, and the shares that they have", a.Ratios, a.Contaminate)
	v.check(a.Contaminate == "" || a.Method != finetune.DreamBooth, key+"contaminate", "%q does not go with method %s, which gives all pictures one prompt", a.Contaminate, a.Method)
	for k, ratio := range a.Ratios {
		v.check(ratio >= 0 && ratio <= 1 && !slices.Contains(a.Ratios[:k], ratio), key+"ratios", "%v must be different numbers from 0 to 1", a.Ratios)
	}
	if !growing || !slices.Contains(methods(), a.Method) {
		return
	}
	for _, p := range a.config(0).Problems() {
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
	if v.Method == finetune.DreamBooth {
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
	if v.Prior != "" {
		prior, err := data.ReadFolder(v.Prior)
		if err != nil {
			return d, err
		}
		d.Prior = data.Mixture{{Folder: prior, Weight: 1}}
	}
	return d, nil
}
