package diffusion

import (
	"fmt"
	"math"
)

// Check is one comparison with the reference.
type Check struct {
	Group     string  // e.g. "pndm.epsilon.30"
	RelErr    float64 // relative L2 error
	Tolerance float64
}

// OK reports whether the error is within the tolerance; an error that is no number is not.
func (c Check) OK() bool { return c.RelErr <= c.Tolerance }

// goldenTolerance is what float32 latents allow over 30 steps.
const goldenTolerance = 1e-5

// VerifyGolden compares schedule and samplers with reference tensors: alphas_cumprod, add_noise.{x0,noise,t,out},
// velocity.out, and for each sampler, prediction type and number of steps NAME.TYPE.STEPS.{timesteps,x_init,
// init_noise_sigma,x_final}, where the model is i ↦ 0.7·tanh(i) + 0.1·sin(t/100) + 0.05·i. get returns the values
// (integers converted) and the shape of a tensor.
func VerifyGolden(get func(name string) ([]float32, []int, error)) ([]Check, error) {
	g := &goldenSet{get: get}
	g.schedule()
	for _, name := range []string{"ddim", "pndm", "dpmsolver", "dpmsolver_karras", "euler"} {
		for _, prediction := range []PredictionType{Epsilon, VPrediction} {
			for _, steps := range []int{7, 30} {
				g.sampler(name, prediction, steps)
			}
		}
	}
	return g.checks, g.err
}

// goldenSet collects checks until the first error.
type goldenSet struct {
	get    func(name string) ([]float32, []int, error)
	checks []Check
	err    error
}

func (g *goldenSet) tensor(name string) []float32 {
	if g.err != nil {
		return nil
	}
	values, _, err := g.get(name)
	if err != nil {
		g.err = fmt.Errorf("reference tensor %s: %w", name, err)
	}
	return values
}

func (g *goldenSet) compare(group string, got, want []float32) {
	g.checks = append(g.checks, Check{group, relativeError(got, want), goldenTolerance})
}

func (g *goldenSet) schedule() {
	alphas, times := g.tensor("alphas_cumprod"), g.tensor("add_noise.t")
	x0, noise := g.tensor("add_noise.x0"), g.tensor("add_noise.noise")
	noisy, velocity := g.tensor("add_noise.out"), g.tensor("velocity.out")
	if g.err != nil {
		return
	}
	s, err := NewSchedule(StableDiffusion())
	if err != nil {
		g.err = err
		return
	}
	own := make([]float32, len(s.AlphasCumprod))
	for t, a := range s.AlphasCumprod {
		own[t] = float32(a)
	}
	g.compare("alphas_cumprod", own, alphas)
	timesteps := make([]int, len(times))
	for i, t := range times {
		timesteps[i] = int(t)
	}
	got, err := s.AddNoise(x0, noise, timesteps)
	if err != nil {
		g.err = fmt.Errorf("reference tensors add_noise.*: %w", err)
		return
	}
	g.compare("add_noise", got, noisy)
	if got, err = s.Velocity(x0, noise, timesteps); err != nil {
		g.err = fmt.Errorf("reference tensors add_noise.*: %w", err)
		return
	}
	g.compare("velocity", got, velocity)
}

func (g *goldenSet) sampler(name string, prediction PredictionType, steps int) {
	group := fmt.Sprintf("%s.%s.%d", name, prediction, steps)
	times, x := g.tensor(group+".timesteps"), g.tensor(group+".x_init")
	sigma, want := g.tensor(group+".init_noise_sigma"), g.tensor(group+".x_final")
	if g.err != nil {
		return
	}
	cfg := StableDiffusion()
	cfg.PredictionType = prediction
	s, err := NewSampler(cfg, name, steps)
	if err != nil {
		g.err = err
		return
	}
	timesteps := s.Timesteps()
	own := make([]float32, len(timesteps))
	for i, t := range timesteps {
		own[i] = float32(t)
	}
	g.compare(group+".timesteps", own, times)
	g.compare(group+".init_noise_sigma", []float32{float32(s.InitNoiseSigma())}, sigma)
	for i, t := range timesteps {
		output := make([]float32, len(x))
		for j, v := range s.ScaleModelInput(x, i) {
			output[j] = float32(0.7*math.Tanh(float64(v)) + 0.1*math.Sin(t/100) + 0.05*float64(v))
		}
		x = s.Step(output, i, x)
	}
	g.compare(group, x, want)
}

// relativeError is ‖got − want‖ / ‖want‖, infinite when the lengths differ.
func relativeError(got, want []float32) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var difference, size float64
	for i := range want {
		d, w := float64(got[i])-float64(want[i]), float64(want[i])
		difference += d * d
		size += w * w
	}
	if difference == 0 {
		return 0
	}
	return math.Sqrt(difference / size)
}
