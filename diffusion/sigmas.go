package diffusion

import (
	"math"
	"slices"
)

// sigmas are the noise levels σ = √((1−ᾱ)/ᾱ) of a schedule by timestep: noise over signal, rising.
func sigmas(s *Schedule) []float64 {
	out := make([]float64, len(s.AlphasCumprod))
	for t, a := range s.AlphasCumprod {
		// A last timestep without any signal would be infinite; diffusers takes the least float16 instead of 0.
		a = max(a, 0x1p-24)
		out[t] = math.Sqrt((1 - a) / a)
	}
	return out
}

// karras returns n noise levels from most down to least (Karras et al. 2022, equation 5, ρ = 7).
func karras(most, least float64, n int) []float64 {
	const rho = 7
	from, to := math.Pow(most, 1./rho), math.Pow(least, 1./rho)
	out := make([]float64, n)
	for i := range out {
		part := 0.
		if n > 1 {
			part = float64(i) / float64(n-1)
		}
		out[i] = math.Pow(from+part*(to-from), rho)
	}
	return out
}

// timeOf returns the timestep at which a schedule has the given noise level, by interpolation between the logarithms.
func timeOf(sigma float64, levels []float64) float64 {
	above, _ := slices.BinarySearchFunc(levels, sigma, func(level, s float64) int {
		if level <= s {
			return -1
		}
		return 1
	})
	low := min(max(above-1, 0), len(levels)-2)
	from, to := math.Log(levels[low]), math.Log(levels[low+1])
	part := (math.Log(sigma) - from) / (to - from)
	return float64(low) + min(max(part, 0), 1)
}

// levelAt returns the noise level at a timestep, by interpolation between whole timesteps.
func levelAt(t float64, levels []float64) float64 {
	low := min(int(t), len(levels)-2)
	part := t - float64(low)
	return levels[low] + part*(levels[low+1]-levels[low])
}

// lastLevel is the noise level at which sampling ends.
func lastLevel(finalSigmasType string, levels []float64) float64 {
	if finalSigmasType == "sigma_min" {
		return levels[0]
	}
	return 0
}
