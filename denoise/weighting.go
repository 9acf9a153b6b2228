package denoise

import (
	"math"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/random"
)

// MinSNR is the weight of min-SNR-γ (Hang et al. 2023, section 3.4) on the loss of a prediction of the given type, at a
// timestep with the given parts of signal and noise: with s = (signal/noise)², min(s, γ)/s for the noise, min(s, γ)/(s+1)
// for the velocity and min(s, γ) for the latents themselves. Where there is no signal the weight is the limit for s → 0.
func MinSNR(p diffusion.PredictionType, signal, noise, gamma float64) float64 {
	s := (signal / noise) * (signal / noise)
	switch p {
	case diffusion.VPrediction:
		return min(1, gamma/s) / (1 + 1/s)
	case diffusion.Sample:
		return min(s, gamma)
	default:
		return min(1, gamma/s)
	}
}

// offsetNoise adds one normal number times offset to each channel of noise [channels, h, w].
func offsetNoise(noise []float32, channels int, offset float64, s *random.Stream) {
	plane := len(noise) / channels
	for c, x := range s.Normals(channels) {
		shift := float32(offset) * x
		for k := range plane {
			noise[c*plane+k] += shift
		}
	}
}

func finiteNotNegative(x float64) bool { return x >= 0 && !math.IsInf(x, 0) }
