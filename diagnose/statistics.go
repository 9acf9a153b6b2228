package diagnose

import "math"

// Estimate is a mean over random draws with its 95 % interval by Student's t. The interval takes the draws as
// independent and their mean as normally distributed; where a few draws are much larger than the others it is too short.
type Estimate struct {
	Value         float64 `json:"value"`
	Low           float64 `json:"low"`
	High          float64 `json:"high"`
	StandardError float64 `json:"standard_error"`
	N             int     `json:"n"`
}

// estimate is the mean of at least two draws.
func estimate(draws []float64) Estimate {
	// Welford's update, as the mean may be large against the spread.
	mean, squares := 0.0, 0.0
	for i, x := range draws {
		delta := x - mean
		mean += delta / float64(i+1)
		squares += delta * (x - mean)
	}
	n := len(draws)
	e := Estimate{Value: mean, N: n, StandardError: math.Sqrt(squares / float64(n-1) / float64(n))}
	half := studentT(n-1) * e.StandardError
	e.Low, e.High = mean-half, mean+half
	return e
}

// paired is the mean of a − b over draws that both were measured on.
func paired(a, b []float64) Estimate {
	n := min(len(a), len(b))
	differences := make([]float64, n)
	for i := range n {
		differences[i] = a[i] - b[i]
	}
	return estimate(differences)
}

// normal975 is the 97.5 % quantile of the standard normal distribution.
const normal975 = 1.959963985

// studentT is the 97.5 % quantile of Student's t, by its expansion in 1/freedom (Abramowitz and Stegun, 26.7.5): within
// 0.2 % from 3 degrees of freedom on.
func studentT(freedom int) float64 {
	z, v := normal975, float64(freedom)
	z2 := z * z
	g1 := z * (z2 + 1) / 4
	g2 := z * (z2*(5*z2+16) + 3) / 96
	g3 := z * (z2*(z2*(3*z2+19)+17) - 15) / 384
	g4 := z * (z2*(z2*(z2*(79*z2+776)+1482)-1920) - 945) / 92160
	return z + (g1+(g2+(g3+g4/v)/v)/v)/v
}
