package diffusion

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestSchedules(t *testing.T) {
	for _, kind := range []string{"linear", "scaled_linear", "squaredcos_cap_v2"} {
		for _, zeroSNR := range []bool{false, true} {
			cfg := StableDiffusion()
			cfg.BetaSchedule, cfg.RescaleBetasZeroSNR = kind, zeroSNR
			s, err := NewSchedule(cfg)
			if err != nil {
				t.Fatal(err)
			}
			if s.NumTrainTimesteps() != 1000 {
				t.Errorf("%d timesteps", s.NumTrainTimesteps())
			}
			for at, a := range s.AlphasCumprod {
				if a < 0 || a >= 1 || at > 0 && a >= s.AlphasCumprod[at-1] {
					t.Fatalf("%s: ᾱ of timestep %d is %v", kind, at, a)
				}
			}
			if last := s.AlphasCumprod[999]; (last == 0) != zeroSNR {
				t.Errorf("%s, zero SNR %v: the last ᾱ is %v", kind, zeroSNR, last)
			}
		}
	}
	// Closed forms: ᾱ_0 = 1 − β_0; the cosine schedule follows cos² of its equation until the cap.
	s, err := NewSchedule(StableDiffusion())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.AlphasCumprod[0]; math.Abs(got-(1-0.00085)) > 1e-15 {
		t.Errorf("ᾱ_0 = %v", got)
	}
	cfg := StableDiffusion()
	cfg.BetaSchedule = "squaredcos_cap_v2"
	if s, err = NewSchedule(cfg); err != nil {
		t.Fatal(err)
	}
	bar := func(at float64) float64 { return math.Pow(math.Cos((at/1000+0.008)/1.008*math.Pi/2), 2) }
	if got, want := s.AlphasCumprod[499], bar(500)/bar(0); math.Abs(got-want) > 1e-12 {
		t.Errorf("ᾱ_499 = %v, want %v", got, want)
	}
}

func TestTargets(t *testing.T) {
	latents, noise, times := []float32{1, 2, 3, 4}, []float32{-1, 0, 1, 2}, []int{10, 900}
	for _, prediction := range []PredictionType{Epsilon, VPrediction, Sample} {
		cfg := StableDiffusion()
		cfg.PredictionType = prediction
		s, err := NewSchedule(cfg)
		if err != nil {
			t.Fatal(err)
		}
		noisy, err := s.AddNoise(latents, noise, times)
		if err != nil {
			t.Fatal(err)
		}
		target, err := s.Target(latents, noise, times)
		if err != nil {
			t.Fatal(err)
		}
		// A model that hits the target predicts latents and noise exactly.
		for j := range latents {
			alpha, sigma, err := s.Coefficients(times[j/2])
			if err != nil {
				t.Fatal(err)
			}
			x, o := float64(noisy[j]), float64(target[j])
			cleanX, cleanOutput := prediction.clean(alpha, sigma)
			noiseX, noiseOutput := prediction.noise(alpha, sigma)
			if got := cleanX*x + cleanOutput*o; math.Abs(got-float64(latents[j])) > 1e-5 {
				t.Errorf("%s: latent %d is %v instead of %v", prediction, j, got, latents[j])
			}
			if got := noiseX*x + noiseOutput*o; math.Abs(got-float64(noise[j])) > 1e-5 {
				t.Errorf("%s: noise %d is %v instead of %v", prediction, j, got, noise[j])
			}
		}
	}
}

func TestMixRefusesWhatDoesNotFit(t *testing.T) {
	s, err := NewSchedule(StableDiffusion())
	if err != nil {
		t.Fatal(err)
	}
	four := make([]float32, 4)
	for want, c := range map[string]struct {
		latents, noise []float32
		times          []int
	}{
		"as many":          {four, four[:3], []int{1}},
		"no timesteps":     {four, four, nil},
		"cannot be":        {four, four, []int{1, 2, 3}},
		"sample 1: timest": {four, four, []int{1, 1000}},
		"timestep -1":      {four, four, []int{-1}},
	} {
		before := slices.Clone(c.latents)
		if _, err := s.AddNoise(c.latents, c.noise, c.times); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %q", err, want)
		}
		if _, err := s.Velocity(c.latents, c.noise, c.times); err == nil {
			t.Errorf("%q: the velocity was accepted", want)
		}
		if !slices.Equal(c.latents, before) {
			t.Error("the latents were changed")
		}
	}
}
