package diffusion

import (
	"errors"
	"math"
	"slices"
)

// dpmSolver is DPM-Solver++ of first or second order, multistep (Lu et al. 2022b, algorithm 2).
type dpmSolver struct {
	prediction    PredictionType
	timesteps     []float64
	levels        []float64 // σ/α before each step, and after the last
	order         int
	heun          bool
	lowOrderAtEnd bool

	before []float32 // predicted clean latents of the previous step
}

// fewSteps is the number of steps from which a last step of full order is stable (diffusers' lower_order_final).
const fewSteps = 15

func newDPMSolverKarras(cfg Config, s *Schedule, steps int, o options) (Sampler, error) {
	cfg.UseKarrasSigmas = true
	return newDPMSolver(cfg, s, steps, o)
}

func newDPMSolver(cfg Config, s *Schedule, steps int, _ options) (Sampler, error) {
	all := sigmas(s)
	var timesteps []float64
	if cfg.UseKarrasSigmas {
		for _, level := range karras(all[len(all)-1], all[0], steps) {
			timesteps = append(timesteps, timeOf(level, all))
		}
		rounded(timesteps)
	} else {
		var err error
		if timesteps, err = dpmSpaced(cfg, all, steps); err != nil {
			return nil, err
		}
	}
	timesteps = slices.Compact(timesteps) // close noise levels can round to the same timestep
	d := &dpmSolver{
		prediction: cfg.PredictionType,
		timesteps:  timesteps,
		order:      cfg.SolverOrder,
		heun:       cfg.SolverType == "heun",
	}
	for _, t := range timesteps {
		d.levels = append(d.levels, all[int(t)])
	}
	d.levels = append(d.levels, lastLevel(or(cfg.FinalSigmasType, "sigma_min"), all))
	// A step of second order to no noise at all would be infinitely long on the solver's own scale.
	d.lowOrderAtEnd = cfg.EulerAtFinal || cfg.LowerOrderFinal && len(timesteps) < fewSteps || d.levels[len(timesteps)] == 0
	return d, nil
}

// dpmSpaced returns the solver's timesteps, falling and rounded. Unlike the other samplers it divides the way down to
// timestep 0 and leaves out the end.
func dpmSpaced(cfg Config, levels []float64, steps int) ([]float64, error) {
	// The half log SNR is −ln σ; it falls with the timestep.
	last := len(levels)
	for last > 0 && -math.Log(levels[last-1]) < cfg.LambdaMinClipped {
		last--
	}
	if last < 2 {
		return nil, errors.New("lambda_min_clipped leaves no timestep to visit; use a lower one")
	}
	var out []float64
	switch or(cfg.TimestepSpacing, "linspace") {
	case "leading":
		stride := last / (steps + 1)
		if stride == 0 {
			return nil, errors.New("leading spacing needs a timestep more than there are steps; use fewer steps")
		}
		for i := steps; i > 0; i-- {
			out = append(out, float64(i*stride+cfg.StepsOffset))
		}
	case "linspace":
		out = evenly(last-1, steps)
	case "trailing":
		for i := range steps {
			t := math.RoundToEven(float64(last)-float64(i)*float64(cfg.NumTrainTimesteps)/float64(steps)) - 1
			if t < 0 {
				break // clipped: the way is shorter than the steps cover
			}
			out = append(out, t)
		}
	}
	return rounded(out), checkTimesteps(out, len(levels))
}

func (d *dpmSolver) Timesteps() []float64                         { return slices.Clone(d.timesteps) }
func (d *dpmSolver) InitNoiseSigma() float64                      { return 1 }
func (d *dpmSolver) ScaleModelInput(x []float32, _ int) []float32 { return x }

func (d *dpmSolver) Step(modelOutput []float32, i int, x []float32) []float32 {
	from, to := d.levels[i], d.levels[i+1]
	alpha, alphaTo := 1/math.Hypot(from, 1), 1/math.Hypot(to, 1)
	cleanX, cleanOutput := d.prediction.clean(alpha, from*alpha)
	clean := combine(make([]float32, len(x)), term{cleanX, x}, term{cleanOutput, modelOutput})
	before := d.before
	d.before = clean
	if from == to {
		return slices.Clone(x) // Karras' last level is the schedule's least
	}

	// With h the step in half log SNR: e^−h = to/from, and σ_to/σ_from = e^−h·α_to/α_from.
	decay := to / from
	terms := []term{{decay * alphaTo / alpha, x}, {alphaTo * (1 - decay), clean}}
	atEnd := i == len(d.timesteps)-1
	if d.order == 2 && i > 0 && (!atEnd || !d.lowOrderAtEnd) {
		h, hBefore := math.Log(from/to), math.Log(d.levels[i-1]/from)
		weight := (1 - decay) / 2
		if d.heun {
			weight = 1 - (1-decay)/h
		}
		weight *= alphaTo * h / hBefore
		terms = append(terms, term{weight, clean}, term{-weight, before})
	}
	return combine(make([]float32, len(x)), terms...)
}
