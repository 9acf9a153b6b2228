package denoise

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/random"
)

// The weights of diffusers' train_text_to_image with γ = 5, whose compute_snr works in float32.
func TestMinSNR(t *testing.T) {
	s, err := diffusion.NewSchedule(diffusion.StableDiffusion())
	if err != nil {
		t.Fatal(err)
	}
	for step, want := range map[int][2]float64{
		0:   {0.004253724267486561, 0.00425010850954526},
		100: {0.5914453809743357, 0.5288841620333181},
		500: {1, 0.27633248628329765},
		999: {1, 0.004660094099163987},
	} {
		signal, noise, err := s.Coefficients(step)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range []diffusion.PredictionType{diffusion.Epsilon, diffusion.VPrediction} {
			if got := MinSNR(p, signal, noise, 5); math.Abs(got/want[i]-1) > 1e-4 {
				t.Errorf("%s at timestep %d: %v, want %v", p, step, got, want[i])
			}
		}
		ratio := signal * signal / (noise * noise)
		if got := MinSNR(diffusion.Sample, signal, noise, 5); math.Abs(got-min(5, ratio)) > 1e-12 {
			t.Errorf("latents at timestep %d: %v", step, got)
		}
	}
	for p, want := range map[diffusion.PredictionType]float64{diffusion.Epsilon: 1, diffusion.VPrediction: 0, diffusion.Sample: 0} {
		if got := MinSNR(p, 0, 1, 5); got != want {
			t.Errorf("%s without signal: %v, want %v", p, got, want)
		}
	}
}

func TestOffsetNoise(t *testing.T) {
	const channels, plane = 4, 9
	noise := random.New(1, "noise").Normals(channels * plane)
	moved := slices.Clone(noise)
	offsetNoise(moved, channels, 0.25, random.New(1, "offset"))
	for c, x := range random.New(1, "offset").Normals(channels) {
		for k := c * plane; k < (c+1)*plane; k++ {
			if math.Abs(float64(moved[k]-noise[k]-x/4)) > 1e-6 {
				t.Fatalf("channel %d moved by %v, not %v", c, moved[k]-noise[k], x/4)
			}
		}
	}
}
