package diffusion

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Sampler walks from noise to latents, one model call per timestep:
//
//	x := noise × InitNoiseSigma()
//	for i, t := range Timesteps() {
//		output := model(ScaleModelInput(x, i), t)
//		x = Step(output, i, x)
//	}
//
// A sampler remembers the model outputs of earlier steps: make a fresh one for each picture (or batch), and call Step
// once for each i, in order. It keeps no argument and changes none. It is not safe for concurrent use. Slices of
// different lengths are a programming error and panic.
type Sampler interface {
	// Timesteps are the times at which the model is called, falling, in units of training timesteps. They need not be
	// whole numbers (euler), and there may be more (pndm, one more) or fewer (repeated ones are left out by dpmsolver)
	// than the steps asked for.
	Timesteps() []float64
	// InitNoiseSigma is the standard deviation of the noise to start from.
	InitNoiseSigma() float64
	// ScaleModelInput returns what the model is to be called with at step i. It may be x itself.
	ScaleModelInput(x []float32, i int) []float32
	// Step returns the latents after step i, given the model's output for it and the latents before.
	Step(modelOutput []float32, i int, x []float32) []float32
}

// NoiseFunc returns n standard normal numbers for step i of a sampler that adds noise as it goes.
type NoiseFunc func(i, n int) []float32

// Option is an option of NewSampler.
type Option func(*options)

type options struct{ noise NoiseFunc }

// WithNoise gives a stochastic sampler its noise; the others do not call it.
func WithNoise(noise NoiseFunc) Option { return func(o *options) { o.noise = noise } }

// The scheduler classes of diffusers that have a sampler here.
const (
	ddimClass      = "DDIMScheduler"
	pndmClass      = "PNDMScheduler"
	dpmSolverClass = "DPMSolverMultistepScheduler"
	eulerClass     = "EulerDiscreteScheduler"
	ancestralClass = "EulerAncestralDiscreteScheduler"
)

// kinds are the samplers by name; the first of a class is the one its configuration asks for.
func kinds() []kind {
	return []kind{
		{"ddim", ddimClass, newDDIM},
		{"pndm", pndmClass, newPNDM},
		{"dpmsolver", dpmSolverClass, newDPMSolver},
		{"dpmsolver++", dpmSolverClass, newDPMSolver},
		{"dpmsolver_karras", dpmSolverClass, newDPMSolverKarras},
		{"dpmsolver++_karras", dpmSolverClass, newDPMSolverKarras},
		{"euler", eulerClass, newEuler},
		{"euler_ancestral", ancestralClass, newEulerAncestral},
	}
}

type kind struct {
	name, class string
	make        func(cfg Config, s *Schedule, steps int, o options) (Sampler, error)
}

// SamplerNames are the names NewSampler knows.
func SamplerNames() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

func classNames() []string {
	var names []string
	for _, k := range kinds() {
		if !slices.Contains(names, k.class) {
			names = append(names, k.class)
		}
	}
	return names
}

// NewSampler returns a sampler that takes the given number of steps over the noise schedule of a configuration. name is
// one of SamplerNames; an empty name stands for the configuration's own class.
func NewSampler(cfg Config, name string, steps int, opts ...Option) (Sampler, error) {
	schedule, err := NewSchedule(cfg)
	if err != nil {
		return nil, err
	}
	if steps < 1 || steps > cfg.NumTrainTimesteps {
		return nil, fmt.Errorf("the number of sampling steps is %d; it must be from 1 to %d", steps, cfg.NumTrainTimesteps)
	}
	var o options
	for _, set := range opts {
		set(&o)
	}
	for _, k := range kinds() {
		if name != k.name && (name != "" || cfg.Class != k.class) {
			continue
		}
		sampler, err := k.make(cfg, schedule, steps, o)
		if err != nil {
			return nil, fmt.Errorf("%s with %d steps: %w", k.name, steps, err)
		}
		return sampler, nil
	}
	return nil, fmt.Errorf("there is no sampler %q; use %s", name, strings.Join(SamplerNames(), ", "))
}

// spaced returns the timesteps of ddim, pndm and euler, falling (Lin et al. 2023, table 2). Linspace ones are not
// rounded.
func spaced(cfg Config, spacing string, steps int) ([]float64, error) {
	total := cfg.NumTrainTimesteps
	out := make([]float64, steps)
	switch spacing {
	case "leading":
		for i := range out {
			out[i] = float64((steps-1-i)*(total/steps) + cfg.StepsOffset)
		}
	case "linspace":
		if steps == 1 {
			return nil, errors.New("one step under linspace spacing would visit timestep 0 alone; use at least 2 steps")
		}
		out = evenly(total-1, steps-1)
		out = append(out, 0)
	case "trailing":
		for i := range out {
			out[i] = math.RoundToEven(float64(total)-float64(i)*float64(total)/float64(steps)) - 1
		}
	}
	return out, checkTimesteps(out, total)
}

// evenly divides the way from last down to 0 into the given number of steps and returns their beginnings. The order of
// operations is numpy.linspace's: it decides how a half is rounded.
func evenly(last, steps int) []float64 {
	out := make([]float64, steps)
	stride := float64(last) / float64(steps)
	for i := range out {
		out[i] = float64(steps-i) * stride
	}
	out[0] = float64(last)
	return out
}

func checkTimesteps(timesteps []float64, total int) error {
	for _, t := range timesteps {
		if t < 0 || t > float64(total-1) {
			return fmt.Errorf("the timestep %g is outside 0 … %d; use fewer steps or a smaller steps_offset", t, total-1)
		}
	}
	return nil
}

// or returns value, or the default where value is empty or nil.
func or(value, byDefault string) string {
	if value == "" {
		return byDefault
	}
	return value
}

func orBool(value *bool, byDefault bool) bool {
	if value == nil {
		return byDefault
	}
	return *value
}

// finalAlpha is the ᾱ that ddim and pndm step to from the last timestep.
func finalAlpha(cfg Config, s *Schedule, byDefault bool) float64 {
	if orBool(cfg.SetAlphaToOne, byDefault) {
		return 1
	}
	return s.AlphasCumprod[0]
}

// term is one summand of a linear combination of latents.
type term struct {
	factor float64
	values []float32
}

// combine writes the sum of the terms to out, which may be one of them, and returns it. Sums are formed in float64.
func combine(out []float32, terms ...term) []float32 {
	for _, t := range terms {
		if len(t.values) != len(out) {
			panic(fmt.Sprintf("diffusion: latents and model outputs of %d and %d values do not belong together", len(out), len(t.values)))
		}
	}
	for j := range out {
		var sum float64
		for _, t := range terms {
			sum += t.factor * float64(t.values[j])
		}
		out[j] = float32(sum)
	}
	return out
}
