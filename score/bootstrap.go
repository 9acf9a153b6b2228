package score

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/random"
)

// Resamples is how many times a bootstrap draws unless told otherwise.
const Resamples = 10_000

// Prompted are the values of the pictures of one prompt: 0 or 1 for a rate, or a metric of each picture.
type Prompted []float64

// Paired are the values of one prompt's pictures by two models; the numbers of pictures may differ.
type Paired struct{ A, B Prompted }

// Difference is how far the mean of the second of two models lies above that of the first.
type Difference struct {
	Value    float64  `json:"value"`
	Interval Interval `json:"interval"` // 95 %
}

// Distinct tells whether the interval leaves zero out.
func (d Difference) Distinct() bool { return d.Interval.Low > 0 || d.Interval.High < 0 }

// BootstrapMean is the mean over all pictures, with the 95 % percentile interval of drawing prompts anew with all their
// pictures (Efron and Tibshirani 1993, chapter 13). The draws follow from the seed.
func BootstrapMean(prompts []Prompted, resamples int, seed uint64) (mean float64, interval Interval, err error) {
	pairs := make([]Paired, len(prompts))
	for i, p := range prompts {
		pairs[i] = Paired{A: Prompted{0}, B: p}
	}
	d, err := BootstrapDifference(pairs, resamples, seed)
	return d.Value, d.Interval, err
}

// BootstrapDifference compares two models on the same prompts: mean of B less mean of A, over all pictures. The prompts are
// drawn anew, each with the pictures of both models, so that what makes a prompt easy or hard for both cancels.
func BootstrapDifference(prompts []Paired, resamples int, seed uint64) (Difference, error) {
	switch {
	case len(prompts) == 0:
		return Difference{}, errors.New("there is no prompt with pictures of both models to compare")
	case resamples < 1:
		return Difference{}, fmt.Errorf("%d resamples give no interval; take at least one", resamples)
	}
	type sums struct{ a, b, nA, nB float64 }
	all := make([]sums, len(prompts))
	var whole sums
	add := func(to *sums, s sums) {
		to.a, to.b, to.nA, to.nB = to.a+s.a, to.b+s.b, to.nA+s.nA, to.nB+s.nB
	}
	for i, p := range prompts {
		if len(p.A) == 0 || len(p.B) == 0 {
			return Difference{}, fmt.Errorf("prompt %d has no pictures of one of the models; leave it out", i)
		}
		s := sums{nA: float64(len(p.A)), nB: float64(len(p.B))}
		for _, v := range p.A {
			s.a += v
		}
		for _, v := range p.B {
			s.b += v
		}
		if math.IsNaN(s.a+s.b) || math.IsInf(s.a+s.b, 0) {
			return Difference{}, fmt.Errorf("prompt %d has a value that is not a number", i)
		}
		all[i] = s
		add(&whole, s)
	}
	difference := func(s sums) float64 { return s.b/s.nB - s.a/s.nA }
	draws := make([]float64, resamples)
	for i := range draws {
		r := random.New(seed, "bootstrap", i)
		var s sums
		for range all {
			add(&s, all[r.IntN(len(all))])
		}
		draws[i] = difference(s)
	}
	slices.Sort(draws)
	return Difference{difference(whole), Interval{quantile(draws, 0.025), quantile(draws, 0.975)}}, nil
}

// quantile interpolates between the values of a sorted list.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	below := int(at)
	above := min(below+1, len(sorted)-1)
	share := at - float64(below)
	return sorted[below]*(1-share) + sorted[above]*share
}
