package diffusion

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Config is a noise schedule and a sampler, with the names and meanings of diffusers' scheduler_config.json. Empty and
// nil fields stand for the default of the sampler that is used, which differs between the scheduler classes.
type Config struct {
	Class string // diffusers' scheduler class, e.g. "PNDMScheduler"

	NumTrainTimesteps   int
	BetaSchedule        string // "linear", "scaled_linear" or "squaredcos_cap_v2"
	BetaStart, BetaEnd  float64
	RescaleBetasZeroSNR bool // the last training step is pure noise (Lin et al. 2023, algorithm 1)
	PredictionType      PredictionType

	TimestepSpacing string // "leading", "linspace" or "trailing"; empty: leading for ddim and pndm, linspace otherwise
	StepsOffset     int    // added to the timesteps under "leading" spacing
	SetAlphaToOne   *bool  // ddim, pndm: the last step ends at no noise at all, not at timestep 0; nil: ddim true, pndm false
	SkipPRKSteps    *bool  // pndm: no Runge–Kutta warm-up; false is not supported; nil: true unless Class is PNDM's
	UseKarrasSigmas bool   // dpmsolver, euler: noise levels of Karras et al. (2022), equation 5

	// FinalSigmasType says where dpmsolver and euler end: at "zero" noise or at "sigma_min", that of timestep 0. Empty:
	// zero for euler, and sigma_min for dpmsolver, since configurations without the field predate its introduction.
	FinalSigmasType  string
	SolverOrder      int     // dpmsolver: 1 or 2
	SolverType       string  // dpmsolver: "midpoint" or "heun"
	LowerOrderFinal  bool    // dpmsolver: the last of fewer than 15 steps is of first order
	EulerAtFinal     bool    // dpmsolver: the last step is of first order
	LambdaMinClipped float64 // dpmsolver: training steps with a lower half log SNR are not visited

	// Ignored lists the fields of the file that this package does not know, sorted, for the caller to warn about.
	Ignored []string
}

// StableDiffusion is the configuration of Stable Diffusion 1.x (scheduler/scheduler_config.json of
// CompVis/stable-diffusion-v1-4).
func StableDiffusion() Config {
	c := defaults()
	c.Class = "PNDMScheduler"
	c.BetaSchedule, c.BetaStart, c.BetaEnd = "scaled_linear", 0.00085, 0.012
	c.StepsOffset = 1
	alphaToOne, skipPRK := false, true
	c.SetAlphaToOne, c.SkipPRKSteps = &alphaToOne, &skipPRK
	return c
}

// defaults are those of the scheduler classes in diffusers.
func defaults() Config {
	return Config{
		NumTrainTimesteps: 1000,
		BetaSchedule:      "linear",
		BetaStart:         0.0001,
		BetaEnd:           0.02,
		PredictionType:    Epsilon,
		SolverOrder:       2,
		SolverType:        "midpoint",
		LowerOrderFinal:   true,
		LambdaMinClipped:  math.Inf(-1),
	}
}

// maxTrainTimesteps bounds what a configuration can make the program allocate; models have 1000.
const maxTrainTimesteps = 100_000

// Validate returns an error for the first field whose value this package cannot honour.
func (c Config) Validate() error {
	for _, f := range []struct {
		name, value string
		supported   []string
	}{
		{"_class_name", c.Class, classNames()},
		{"beta_schedule", c.BetaSchedule, []string{"linear", "scaled_linear", "squaredcos_cap_v2"}},
		{"prediction_type", string(c.PredictionType), []string{string(Epsilon), string(VPrediction), string(Sample)}},
		{"timestep_spacing", c.TimestepSpacing, []string{"", "leading", "linspace", "trailing"}},
		{"final_sigmas_type", c.FinalSigmasType, []string{"", "zero", "sigma_min"}},
		{"solver_type", c.SolverType, []string{"midpoint", "heun"}},
	} {
		if !slices.Contains(f.supported, f.value) {
			return unsupported(f.name, fmt.Sprintf("%q", f.value), f.supported...)
		}
	}
	switch {
	case c.NumTrainTimesteps < 2 || c.NumTrainTimesteps > maxTrainTimesteps:
		return fmt.Errorf("num_train_timesteps is %d; it must be from 2 to %d", c.NumTrainTimesteps, maxTrainTimesteps)
	case !(c.BetaStart > 0 && c.BetaStart <= c.BetaEnd && c.BetaEnd < 1):
		return fmt.Errorf("beta_start is %v and beta_end %v; they must satisfy 0 < beta_start ≤ beta_end < 1", c.BetaStart, c.BetaEnd)
	case c.StepsOffset < 0 || c.StepsOffset >= c.NumTrainTimesteps:
		return fmt.Errorf("steps_offset is %d; it must be from 0 to %d", c.StepsOffset, c.NumTrainTimesteps-1)
	case c.SolverOrder != 1 && c.SolverOrder != 2:
		return unsupported("solver_order", fmt.Sprint(c.SolverOrder), "1", "2")
	case math.IsNaN(c.LambdaMinClipped) || math.IsInf(c.LambdaMinClipped, 1):
		return fmt.Errorf("lambda_min_clipped is %v; it must be a number or -Infinity", c.LambdaMinClipped)
	}
	return nil
}

// unsupported is the error for a value that is refused by name.
func unsupported(field, value string, supported ...string) error {
	supported = slices.DeleteFunc(slices.Clone(supported), func(s string) bool { return s == "" })
	return fmt.Errorf("%s is %s, which is not supported; use %s", field, value, strings.Join(supported, ", "))
}

// PredictionType says what the model's output is.
type PredictionType string

// The prediction types. With x = α·x₀ + σ·ε and α² + σ² = 1 the model outputs ε, v = α·ε − σ·x₀ (Salimans and Ho 2022,
// section 4), or x₀ itself.
const (
	Epsilon     PredictionType = "epsilon"
	VPrediction PredictionType = "v_prediction"
	Sample      PredictionType = "sample"
)

// clean returns the coefficients of the predicted noise-free latents: x₀ = ofX·x + ofOutput·output.
func (p PredictionType) clean(alpha, sigma float64) (ofX, ofOutput float64) {
	switch p {
	case VPrediction:
		return alpha, -sigma
	case Sample:
		return 0, 1
	default:
		return 1 / alpha, -sigma / alpha
	}
}

// noise returns the coefficients of the predicted noise: ε = ofX·x + ofOutput·output.
func (p PredictionType) noise(alpha, sigma float64) (ofX, ofOutput float64) {
	switch p {
	case VPrediction:
		return sigma, alpha
	case Sample:
		return 1 / sigma, -alpha / sigma
	default:
		return 0, 1
	}
}
