package diffusion

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// euler integrates the probability flow over the noise level (Karras et al. 2022, algorithm 2 without churn), with
// latents x = x₀ + σ·ε. The ancestral variant takes back some of the noise and adds fresh noise (k-diffusion,
// sample_euler_ancestral).
type euler struct {
	prediction PredictionType
	timesteps  []float64
	levels     []float64 // σ before each step, and after the last
	initSigma  float64
	noise      NoiseFunc // nil unless ancestral
}

func newEuler(cfg Config, s *Schedule, steps int, _ options) (Sampler, error) {
	spacing := or(cfg.TimestepSpacing, "linspace")
	timesteps, err := spaced(cfg, spacing, steps)
	if err != nil {
		return nil, err
	}
	all := sigmas(s)
	levels := make([]float64, steps, steps+1)
	for i, t := range timesteps {
		levels[i] = levelAt(t, all)
	}
	if cfg.UseKarrasSigmas {
		levels = karras(levels[0], levels[steps-1], steps)
		for i, level := range levels {
			timesteps[i] = timeOf(level, all)
		}
	}
	e := &euler{prediction: cfg.PredictionType, timesteps: timesteps, initSigma: levels[0]}
	if spacing == "leading" {
		e.initSigma = math.Hypot(levels[0], 1) // the first timestep is not the noisiest: start with signal's variance too
	}
	e.levels = append(levels, lastLevel(cfg.FinalSigmasType, all))
	return e, nil
}

func newEulerAncestral(cfg Config, s *Schedule, steps int, o options) (Sampler, error) {
	if o.noise == nil {
		return nil, errors.New("the sampler adds noise at each step and was given no source of it; use WithNoise")
	}
	sampler, err := newEuler(cfg, s, steps, o)
	if err != nil {
		return nil, err
	}
	sampler.(*euler).noise = o.noise
	return sampler, nil
}

func (e *euler) Timesteps() []float64    { return slices.Clone(e.timesteps) }
func (e *euler) InitNoiseSigma() float64 { return e.initSigma }

func (e *euler) ScaleModelInput(x []float32, i int) []float32 {
	return combine(make([]float32, len(x)), term{1 / math.Hypot(e.levels[i], 1), x})
}

func (e *euler) Step(modelOutput []float32, i int, x []float32) []float32 {
	level, next := e.levels[i], e.levels[i+1]
	target, fresh := next, 0.
	if e.noise != nil {
		fresh = next * math.Sqrt(max(level*level-next*next, 0)) / level
		target = math.Sqrt(max(next*next-fresh*fresh, 0))
	}
	alpha := 1 / math.Hypot(level, 1)
	cleanX, cleanOutput := e.prediction.clean(alpha, level*alpha)
	cleanX *= alpha // the model sees α·x
	// x + (x − x₀)/σ · (target − σ)
	step := (target - level) / level
	terms := []term{{1 + step*(1-cleanX), x}, {-step * cleanOutput, modelOutput}}
	if fresh > 0 {
		noise := e.noise(i, len(x))
		if len(noise) != len(x) {
			panic(fmt.Sprintf("diffusion: the noise function returned %d values where %d were asked for", len(noise), len(x)))
		}
		terms = append(terms, term{fresh, noise})
	}
	return combine(make([]float32, len(x)), terms...)
}
