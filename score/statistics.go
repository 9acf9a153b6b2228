// Package score judges pictures: detectors that label them, and the statistics of what they find.
package score

import (
	"encoding/json"
	"math"
)

// Rate is how many of N pictures had a property.
type Rate struct {
	K int `json:"k"`
	N int `json:"n"`
}

// Value is K/N; NaN if there were no pictures.
func (r Rate) Value() float64 { return float64(r.K) / float64(r.N) }

// Add joins two rates, as of two shards.
func (r Rate) Add(o Rate) Rate { return Rate{r.K + o.K, r.N + o.N} }

// z95 is the 97.5 % quantile of the standard normal distribution.
const z95 = 1.959963984540054

// Interval is a range of plausible values.
type Interval struct{ Low, High float64 }

// MarshalJSON writes the interval as [low, high].
func (i Interval) MarshalJSON() ([]byte, error) { return json.Marshal([2]float64{i.Low, i.High}) }

// UnmarshalJSON reads [low, high].
func (i *Interval) UnmarshalJSON(b []byte) error {
	var pair [2]float64
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	i.Low, i.High = pair[0], pair[1]
	return nil
}

// Wilson is the 95 % score interval of a rate (Wilson 1927). It is meaningful at 0 and 1, and for few pictures. Without
// pictures it is [0, 1].
func (r Rate) Wilson() Interval {
	if r.N == 0 {
		return Interval{0, 1}
	}
	n, p := float64(r.N), r.Value()
	centre := (p + z95*z95/(2*n)) / (1 + z95*z95/n)
	half := z95 / (1 + z95*z95/n) * math.Sqrt(p*(1-p)/n+z95*z95/(4*n*n))
	low, high := centre-half, centre+half
	if r.K == 0 {
		low = 0 // exact there; rounding would leave 1e-17
	}
	if r.K == r.N {
		high = 1
	}
	return Interval{low, high}
}
