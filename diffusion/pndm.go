package diffusion

import (
	"errors"
	"math"
	"slices"
)

// pndm is the pseudo linear multistep sampler of Liu et al. (2022), algorithm 2, without the Runge–Kutta warm-up:
// instead, the first step is taken twice, the second time with the mean of two outputs (as in latent-diffusion's plms).
type pndm struct {
	prediction PredictionType
	alphas     []float64 // ᾱ by timestep
	final      float64   // ᾱ before timestep 0
	stride     int
	timesteps  []float64

	outputs [][]float32 // of the last steps, at most four, the newest last
	start   []float32   // the latents before the first step
}

func newPNDM(cfg Config, s *Schedule, steps int, _ options) (Sampler, error) {
	// The class itself defaults to the warm-up; for another class the field says nothing.
	if !orBool(cfg.SkipPRKSteps, cfg.Class != pndmClass) {
		return nil, errors.New("skip_prk_steps is false or missing, which is not supported; set it to true")
	}
	timesteps, err := spaced(cfg, or(cfg.TimestepSpacing, "leading"), steps)
	if err != nil {
		return nil, err
	}
	timesteps = rounded(timesteps)
	if steps > 1 {
		timesteps = slices.Insert(timesteps, 1, timesteps[1])
	}
	if s.AlphasCumprod[int(timesteps[0])] == 0 {
		return nil, errors.New("rescale_betas_zero_snr leaves no signal at the first step, from where pndm cannot start; " +
			"use ddim, euler or dpmsolver")
	}
	return &pndm{
		prediction: cfg.PredictionType,
		alphas:     s.AlphasCumprod,
		final:      finalAlpha(cfg, s, false),
		stride:     cfg.NumTrainTimesteps / steps,
		timesteps:  timesteps,
	}, nil
}

func (p *pndm) Timesteps() []float64                         { return slices.Clone(p.timesteps) }
func (p *pndm) InitNoiseSigma() float64                      { return 1 }
func (p *pndm) ScaleModelInput(x []float32, _ int) []float32 { return x }

func (p *pndm) Step(modelOutput []float32, i int, x []float32) []float32 {
	from := int(p.timesteps[i])
	to := from - p.stride
	if i == 1 {
		// The second call looks at where the first step led, and takes that step again from its start.
		from, to = from+p.stride, from
		x = p.start
	} else {
		if len(p.outputs) == 4 {
			p.outputs = slices.Delete(p.outputs, 0, 1)
		}
		p.outputs = append(p.outputs, slices.Clone(modelOutput))
	}
	if i == 0 {
		p.start = slices.Clone(x)
	}
	return p.transfer(p.average(modelOutput, i), from, to, x)
}

// average is the estimate of the model's output along the step: Adams and Bashforth's formulas of rising order.
func (p *pndm) average(modelOutput []float32, i int) []float32 {
	back := func(n int) []float32 { return p.outputs[len(p.outputs)-n] }
	out := make([]float32, len(modelOutput))
	switch {
	case i == 0:
		return modelOutput
	case i == 1:
		return combine(out, term{0.5, modelOutput}, term{0.5, back(1)})
	case len(p.outputs) == 2:
		return combine(out, term{3. / 2, back(1)}, term{-1. / 2, back(2)})
	case len(p.outputs) == 3:
		return combine(out, term{23. / 12, back(1)}, term{-16. / 12, back(2)}, term{5. / 12, back(3)})
	}
	return combine(out, term{55. / 24, back(1)}, term{-59. / 24, back(2)}, term{37. / 24, back(3)}, term{-9. / 24, back(4)})
}

// transfer moves x between two timesteps (Liu et al. 2022, equation 9).
func (p *pndm) transfer(output []float32, from, to int, x []float32) []float32 {
	a, b := p.alphas[from], p.final
	if to >= 0 {
		b = p.alphas[to]
	}
	noiseX, noiseOutput := p.prediction.noise(math.Sqrt(a), math.Sqrt(1-a))
	ofNoise := (b - a) / (a*math.Sqrt(1-b) + math.Sqrt(a*(1-a)*b))
	return combine(make([]float32, len(x)),
		term{math.Sqrt(b/a) - ofNoise*noiseX, x},
		term{-ofNoise * noiseOutput, output})
}
