package diffusion

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
)

// TestVariants compares every option with diffusers, on the stand-in model of VerifyGolden.
func TestVariants(t *testing.T) {
	data, err := os.ReadFile("testdata/variants.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Cases []struct {
			Config             json.RawMessage
			Steps              int
			Timesteps, Latents []float64
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Cases) < 90 {
		t.Fatalf("only %d cases", len(file.Cases))
	}
	noise := func(i, n int) []float32 {
		out := make([]float32, n)
		for j := range out {
			out[j] = float32(math.Sin(1.7*float64(j) + 0.9*float64(i)))
		}
		return out
	}
	for _, c := range file.Cases {
		cfg, err := parseConfig(c.Config)
		if err != nil {
			t.Errorf("%s: %v", c.Config, err)
			continue
		}
		s, err := NewSampler(cfg, "", c.Steps, WithNoise(noise))
		if err != nil {
			t.Errorf("%s: %v", c.Config, err)
			continue
		}
		x, want := make([]float32, len(c.Latents)), make([]float32, len(c.Latents))
		for j := range x {
			x[j], want[j] = float32(math.Cos(0.37*float64(j*j))*s.InitNoiseSigma()), float32(c.Latents[j])
		}
		near := func(a, b float64) bool { return math.Abs(a-b) < 2e-3 } // the reference interpolates in float32
		if !slices.EqualFunc(s.Timesteps(), c.Timesteps, near) {
			t.Errorf("%s: timesteps %v, want %v", c.Config, s.Timesteps(), c.Timesteps)
			continue
		}
		for i, at := range s.Timesteps() {
			output := make([]float32, len(x))
			for j, v := range s.ScaleModelInput(x, i) {
				output[j] = float32(0.7*math.Tanh(float64(v)) + 0.1*math.Sin(at/100) + 0.05*float64(v))
			}
			x = s.Step(output, i, x)
		}
		if e := relativeError(x, want); !(e < 1e-5) {
			t.Errorf("%s: relative error %.2g", c.Config, e)
		}
	}
}

// gaussian is the perfect model of data distributed as N(0, deviation²) in every number. Its probability flow is linear
// and keeps x/√(α²·deviation² + σ²) constant, so the end of sampling is known in closed form.
type gaussian struct {
	schedule  *Schedule
	deviation float64
}

func (g gaussian) spread(alpha, sigma float64) float64 {
	return alpha*alpha*g.deviation*g.deviation + sigma*sigma
}

func (g gaussian) output(x []float32, at float64) []float32 {
	level := levelAt(at, sigmas(g.schedule))
	alpha := 1 / math.Hypot(level, 1)
	sigma := level * alpha
	clean := alpha * g.deviation * g.deviation / g.spread(alpha, sigma)
	noise := sigma / g.spread(alpha, sigma)
	factor := map[PredictionType]float64{Epsilon: noise, Sample: clean, VPrediction: alpha*noise - sigma*clean}[g.schedule.PredictionType]
	return combine(make([]float32, len(x)), term{factor, x})
}

func (g gaussian) run(s Sampler, x []float32) []float32 {
	x = combine(make([]float32, len(x)), term{s.InitNoiseSigma(), x})
	for i, at := range s.Timesteps() {
		x = s.Step(g.output(s.ScaleModelInput(x, i), at), i, x)
	}
	return x
}

func TestSamplersFollowTheProbabilityFlow(t *testing.T) {
	const deviation = 0.7
	start := random.New(1, "start").Normals(64)
	for _, prediction := range []PredictionType{Epsilon, VPrediction, Sample} {
		for _, name := range []string{"ddim", "pndm", "dpmsolver", "dpmsolver_karras", "euler"} {
			cfg := StableDiffusion()
			cfg.PredictionType = prediction
			cfg.TimestepSpacing = "trailing" // all start at timestep 999
			schedule, err := NewSchedule(cfg)
			if err != nil {
				t.Fatal(err)
			}
			g := gaussian{schedule, deviation}
			errorAfter := func(steps int) float64 {
				s, err := NewSampler(cfg, name, steps)
				if err != nil {
					t.Fatal(err)
				}
				alpha, sigma, err := schedule.Coefficients(999)
				if err != nil {
					t.Fatal(err)
				}
				from := s.InitNoiseSigma() // euler's latents are divided by alpha
				if from > 1 {
					from *= alpha
				}
				want := combine(make([]float32, len(start)), term{from * deviation / math.Sqrt(g.spread(alpha, sigma)), start})
				return relativeError(g.run(s, start), want)
			}
			few, many := errorAfter(10), errorAfter(100)
			t.Logf("%s %s: %.2g, then %.2g", name, prediction, few, many)
			// Ten times as many steps: the error of a first-order sampler falls to about a tenth.
			if many > 0.03 || many > few/5 {
				t.Errorf("%s %s: error %.2g after 10 steps and %.2g after 100", name, prediction, few, many)
			}
		}
	}
}

func TestAncestralKeepsTheDistribution(t *testing.T) {
	cfg := StableDiffusion()
	schedule, err := NewSchedule(cfg)
	if err != nil {
		t.Fatal(err)
	}
	noise := func(i, n int) []float32 { return random.New(2, "noise", i).Normals(n) }
	s, err := NewSampler(cfg, "euler_ancestral", 200, WithNoise(noise))
	if err != nil {
		t.Fatal(err)
	}
	var square float64
	x := gaussian{schedule, 0.7}.run(s, random.New(2, "start").Normals(4000))
	for _, v := range x {
		square += float64(v) * float64(v) / float64(len(x))
	}
	// The standard error of the deviation is 0.7/√8000 = 0.008; the discretization adds about 0.01.
	if got := math.Sqrt(square); math.Abs(got-0.7) > 0.035 {
		t.Errorf("the samples deviate by %.3f instead of 0.7", got)
	}
}

func TestDPMSolverKarrasVisitsEachTimestepOnce(t *testing.T) {
	s, err := NewSampler(StableDiffusion(), "dpmsolver_karras", 200)
	if err != nil {
		t.Fatal(err)
	}
	times := s.Timesteps()
	if len(times) >= 200 || len(times) < 100 || times[0] != 999 || times[len(times)-1] != 0 {
		t.Errorf("%d timesteps %v", len(times), times)
	}
	for i := 1; i < len(times); i++ {
		if times[i] >= times[i-1] {
			t.Errorf("timestep %v follows %v", times[i], times[i-1])
		}
	}
}

func TestStepKeepsAndChangesNoArgument(t *testing.T) {
	model := func(x []float32) []float32 { return combine(make([]float32, len(x)), term{0.3, x}) }
	for _, name := range SamplerNames() {
		run := func(spoil bool) []float32 {
			noise := func(i, n int) []float32 { return random.New(3, i).Normals(n) }
			s, err := NewSampler(StableDiffusion(), name, 8, WithNoise(noise))
			if err != nil {
				t.Fatal(err)
			}
			x := random.New(3, "x").Normals(16)
			for i := range s.Timesteps() {
				before := slices.Clone(x)
				output := model(s.ScaleModelInput(x, i))
				next := s.Step(output, i, x)
				if !slices.Equal(x, before) {
					t.Errorf("%s changes its argument at step %d", name, i)
				}
				if spoil {
					clear(output)
					clear(x)
				}
				x = next
			}
			return x
		}
		if got, want := run(true), run(false); !slices.Equal(got, want) {
			t.Errorf("%s keeps an argument", name)
		}
	}
}

func TestWrongLengthsPanicClearly(t *testing.T) {
	s, err := NewSampler(StableDiffusion(), "ddim", 4)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if message := fmt.Sprint(recover()); !strings.Contains(message, "4 and 3 values") {
			t.Errorf("got %q", message)
		}
	}()
	s.Step(make([]float32, 3), 0, make([]float32, 4))
}

func TestNewSamplerRefuses(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		change  func(*Config)
		sampler string
		steps   int
		want    string
	}{
		"unknown name":       {nil, "heun", 10, "dpmsolver_karras"},
		"no steps":           {nil, "ddim", 0, "from 1 to 1000"},
		"too many steps":     {nil, "ddim", 1001, "from 1 to 1000"},
		"offset":             {nil, "ddim", 1000, "steps_offset"},
		"warm-up":            {func(c *Config) { c.SkipPRKSteps = &no }, "pndm", 10, "skip_prk_steps"},
		"warm-up by default": {func(c *Config) { c.SkipPRKSteps = nil }, "", 10, "skip_prk_steps"},
		"no noise":           {nil, "euler_ancestral", 10, "WithNoise"},
		"one linspace step":  {nil, "euler", 1, "at least 2 steps"},
		"all clipped":        {func(c *Config) { c.LambdaMinClipped = 50 }, "dpmsolver", 10, "lambda_min_clipped"},
		"dpmsolver leading":  {func(c *Config) { c.TimestepSpacing = "leading" }, "dpmsolver", 1000, "leading"},
		"class":              {func(c *Config) { c.Class = "X" }, "ddim", 10, "_class_name"},
		"no signal, ddim": {
			func(c *Config) { c.RescaleBetasZeroSNR, c.TimestepSpacing = true, "trailing" }, "ddim", 10,
			"rescale_betas_zero_snr",
		},
		"no signal, pndm": {func(c *Config) {
			c.RescaleBetasZeroSNR, c.TimestepSpacing, c.PredictionType, c.SkipPRKSteps = true, "trailing", VPrediction, &yes
		}, "pndm", 10, "rescale_betas_zero_snr"},
	} {
		cfg := StableDiffusion()
		if c.change != nil {
			c.change(&cfg)
		}
		if _, err := NewSampler(cfg, c.sampler, c.steps); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, c.want)
		}
	}
}

func TestEveryStepCountGivesTimestepsInRange(t *testing.T) {
	for _, name := range SamplerNames() {
		for _, spacing := range []string{"", "leading", "linspace", "trailing"} {
			cfg := StableDiffusion()
			cfg.NumTrainTimesteps, cfg.TimestepSpacing, cfg.StepsOffset = 100, spacing, 0
			for steps := 2; steps < 100; steps++ {
				s, err := NewSampler(cfg, name, steps, WithNoise(func(_, n int) []float32 { return make([]float32, n) }))
				if err != nil {
					t.Errorf("%s %s %d: %v", name, spacing, steps, err)
					continue
				}
				x := []float32{1}
				for i, at := range s.Timesteps() {
					if at < 0 || at > 99 {
						t.Errorf("%s %s %d: timestep %v", name, spacing, steps, at)
					}
					x = s.Step([]float32{0.5}, i, x)
				}
				if v := float64(x[0]); math.IsNaN(v) || math.IsInf(v, 0) {
					t.Errorf("%s %s %d: latents %v", name, spacing, steps, v)
				}
			}
		}
	}
}

func TestTinyModelConfiguration(t *testing.T) {
	cfg, err := LoadConfig(filepath.Join("..", "testdata", "golden", "tiny-sd", "scheduler", "scheduler_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSampler(cfg, "", 10)
	if err != nil {
		t.Fatal(err)
	}
	if times := s.Timesteps(); len(times) != 11 || times[0] != 901 || times[10] != 1 {
		t.Errorf("timesteps %v", times)
	}
}
