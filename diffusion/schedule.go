// Package diffusion has the noise schedules and the samplers of latent diffusion models.
//
// All of it runs on the host: coefficients are float64, latents are float32 slices in any layout (a step treats every
// number alike). The reference is diffusers 0.18.2, from which checkpoints take the names of the fields and their
// defaults; VerifyGolden compares with it.
package diffusion

import (
	"errors"
	"fmt"
	"math"
)

// Schedule is the forward process x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε over the timesteps 0 … NumTrainTimesteps−1.
type Schedule struct {
	// AlphasCumprod is ᾱ_t by timestep (Ho et al. 2020, equation 4).
	AlphasCumprod []float64
	// PredictionType is what a model of this schedule is trained to output; see Target.
	PredictionType PredictionType
}

// NewSchedule returns the noise schedule of a configuration.
func NewSchedule(cfg Config) (*Schedule, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Schedule{AlphasCumprod: make([]float64, cfg.NumTrainTimesteps), PredictionType: cfg.PredictionType}
	product := 1.0
	for t := range s.AlphasCumprod {
		product *= 1 - beta(cfg, t)
		s.AlphasCumprod[t] = product
	}
	if cfg.RescaleBetasZeroSNR {
		removeSignal(s.AlphasCumprod)
	}
	return s, nil
}

// beta is β_t, the variance of the noise that timestep t adds.
func beta(cfg Config, t int) float64 {
	steps := float64(cfg.NumTrainTimesteps)
	part := float64(t) / (steps - 1)
	switch cfg.BetaSchedule {
	case "scaled_linear": // linear in √β (Rombach et al. 2022, latent-diffusion's "linear")
		root := math.Sqrt(cfg.BetaStart) + part*(math.Sqrt(cfg.BetaEnd)-math.Sqrt(cfg.BetaStart))
		return root * root
	case "squaredcos_cap_v2": // Nichol and Dhariwal 2021, equation 17
		bar := func(t float64) float64 {
			c := math.Cos((t/steps + 0.008) / 1.008 * math.Pi / 2)
			return c * c
		}
		return min(1-bar(float64(t)+1)/bar(float64(t)), 0.999)
	default:
		return cfg.BetaStart + part*(cfg.BetaEnd-cfg.BetaStart)
	}
}

// removeSignal shifts and scales √ᾱ so that the last timestep has no signal left and the first keeps its own
// (Lin et al. 2023, algorithm 1).
func removeSignal(alphasCumprod []float64) {
	last := len(alphasCumprod) - 1
	first, rest := math.Sqrt(alphasCumprod[0]), math.Sqrt(alphasCumprod[last])
	for t, a := range alphasCumprod {
		root := (math.Sqrt(a) - rest) * first / (first - rest)
		alphasCumprod[t] = root * root
	}
}

// NumTrainTimesteps is the number of timesteps of the forward process.
func (s *Schedule) NumTrainTimesteps() int { return len(s.AlphasCumprod) }

// Coefficients returns √ᾱ_t and √(1−ᾱ_t), the parts of signal and noise in x_t.
func (s *Schedule) Coefficients(timestep int) (signal, noise float64, err error) {
	if timestep < 0 || timestep >= len(s.AlphasCumprod) {
		return 0, 0, fmt.Errorf("timestep %d is outside 0 … %d", timestep, len(s.AlphasCumprod)-1)
	}
	a := s.AlphasCumprod[timestep]
	return math.Sqrt(a), math.Sqrt(1 - a), nil
}

// AddNoise returns x_t = √ᾱ_t·latents + √(1−ᾱ_t)·noise. latents and noise are [N, …] in row-major order with one
// timestep for each of the N samples.
func (s *Schedule) AddNoise(latents, noise []float32, timesteps []int) ([]float32, error) {
	return s.mix(latents, noise, timesteps, func(alpha, sigma float64) (float64, float64) { return alpha, sigma })
}

// Velocity returns v = √ᾱ_t·noise − √(1−ᾱ_t)·latents (Salimans and Ho 2022), with shapes as in AddNoise.
func (s *Schedule) Velocity(latents, noise []float32, timesteps []int) ([]float32, error) {
	return s.mix(latents, noise, timesteps, func(alpha, sigma float64) (float64, float64) { return -sigma, alpha })
}

// Target returns what a model of this schedule should output for AddNoise of the same arguments: the noise, the
// velocity or the latents, according to PredictionType. The result may share memory with an argument.
func (s *Schedule) Target(latents, noise []float32, timesteps []int) ([]float32, error) {
	switch s.PredictionType {
	case VPrediction:
		return s.Velocity(latents, noise, timesteps)
	case Sample:
		return latents, nil
	default:
		return noise, nil
	}
}

func (s *Schedule) mix(latents, noise []float32, timesteps []int, weigh func(alpha, sigma float64) (float64, float64)) ([]float32, error) {
	samples := len(timesteps)
	switch {
	case len(latents) != len(noise):
		return nil, fmt.Errorf("there are %d latent values but %d noise values; they must be as many", len(latents), len(noise))
	case samples == 0:
		return nil, errors.New("there are no timesteps; each sample needs one")
	case len(latents)%samples != 0:
		return nil, fmt.Errorf("%d latent values cannot be divided into %d samples, one for each timestep", len(latents), samples)
	}
	size := len(latents) / samples
	out := make([]float32, len(latents))
	for n, t := range timesteps {
		alpha, sigma, err := s.Coefficients(t)
		if err != nil {
			return nil, fmt.Errorf("sample %d: %w", n, err)
		}
		ofLatents, ofNoise := weigh(alpha, sigma)
		from := n * size
		combine(out[from:from+size], term{ofLatents, latents[from : from+size]}, term{ofNoise, noise[from : from+size]})
	}
	return out, nil
}
