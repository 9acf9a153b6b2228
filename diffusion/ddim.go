package diffusion

import (
	"errors"
	"math"
	"slices"
)

// ddim is the deterministic sampler of Song et al. (2021), equation 12 with σ = 0.
type ddim struct {
	prediction PredictionType
	alphas     []float64 // ᾱ by timestep
	final      float64   // ᾱ before timestep 0
	stride     int
	timesteps  []float64
}

func newDDIM(cfg Config, s *Schedule, steps int, _ options) (Sampler, error) {
	timesteps, err := spaced(cfg, or(cfg.TimestepSpacing, "leading"), steps)
	if err != nil {
		return nil, err
	}
	d := &ddim{
		prediction: cfg.PredictionType,
		alphas:     s.AlphasCumprod,
		final:      finalAlpha(cfg, s, true),
		stride:     cfg.NumTrainTimesteps / steps,
		timesteps:  rounded(timesteps),
	}
	if cfg.PredictionType == Epsilon && d.alphas[int(d.timesteps[0])] == 0 {
		return nil, errors.New("rescale_betas_zero_snr leaves no signal at the first step, where prediction_type epsilon " +
			"says nothing about the picture; use a v_prediction model or leading spacing")
	}
	return d, nil
}

// rounded rounds in place, halves to even numbers as numpy does.
func rounded(timesteps []float64) []float64 {
	for i, t := range timesteps {
		timesteps[i] = math.RoundToEven(t)
	}
	return timesteps
}

func (d *ddim) Timesteps() []float64                         { return slices.Clone(d.timesteps) }
func (d *ddim) InitNoiseSigma() float64                      { return 1 }
func (d *ddim) ScaleModelInput(x []float32, _ int) []float32 { return x }

func (d *ddim) Step(modelOutput []float32, i int, x []float32) []float32 {
	t := int(d.timesteps[i])
	before := d.final
	if t >= d.stride {
		before = d.alphas[t-d.stride]
	}
	alpha, sigma := math.Sqrt(d.alphas[t]), math.Sqrt(1-d.alphas[t])
	cleanX, cleanOutput := d.prediction.clean(alpha, sigma)
	noiseX, noiseOutput := d.prediction.noise(alpha, sigma)
	toClean, toNoise := math.Sqrt(before), math.Sqrt(1-before)
	return combine(make([]float32, len(x)),
		term{toClean*cleanX + toNoise*noiseX, x},
		term{toClean*cleanOutput + toNoise*noiseOutput, modelOutput})
}
