package score

import (
	"math"
	"testing"

	"github.com/resalign/resalign/random"
)

// For means of independent prompts the bootstrap's interval is about ±1.96 standard errors.
func TestBootstrapMeanOfNormals(t *testing.T) {
	const n = 400
	r := random.New(3, "normals")
	prompts := make([]Prompted, n)
	sum, squares := 0.0, 0.0
	for i := range prompts {
		v := 5 + 2*r.Normal()
		prompts[i] = Prompted{v}
		sum, squares = sum+v, squares+v*v
	}
	mean, interval, err := BootstrapMean(prompts, 4000, 1)
	if err != nil {
		t.Fatal(err)
	}
	wantMean := sum / n
	half := z95 * math.Sqrt((squares/n-wantMean*wantMean)/n)
	if math.Abs(mean-wantMean) > 1e-12 || math.Abs(interval.Low-(mean-half)) > 0.06*half || math.Abs(interval.High-(mean+half)) > 0.06*half {
		t.Errorf("%v %v, want %v ± %v", mean, interval, wantMean, half)
	}
}

// What is hard for both models cancels: the difference is known far better than either rate.
func TestBootstrapDifferenceIsPaired(t *testing.T) {
	r := random.New(4, "prompts")
	var pairs []Paired
	var alone []Prompted
	for range 300 {
		base := 10 * r.Normal()
		a, b := Prompted{base, base + r.Normal()}, Prompted{base + 0.5, base + 0.5 + r.Normal(), base + 0.5}
		pairs, alone = append(pairs, Paired{a, b}), append(alone, a)
	}
	d, err := BootstrapDifference(pairs, 2000, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, wide, err := BootstrapMean(alone, 2000, 1)
	if err != nil {
		t.Fatal(err)
	}
	if d.Interval.High-d.Interval.Low > 0.2*(wide.High-wide.Low) {
		t.Errorf("the difference is known to %v, one mean to %v", d.Interval, wide)
	}
	if !d.Distinct() || math.Abs(d.Value-0.5) > 0.2 || d.Interval.Low > d.Value || d.Interval.High < d.Value {
		t.Errorf("a difference of 0.5 is said to be %v", d)
	}
	again, err := BootstrapDifference(pairs, 2000, 1)
	if err != nil || again != d {
		t.Errorf("the same seed gives %v and %v, %v", d, again, err)
	}
	if other, err := BootstrapDifference(pairs, 2000, 2); err != nil || other.Interval == d.Interval {
		t.Errorf("another seed gives %v too, %v", other, err)
	}
}

func TestBootstrapIntervalsCover(t *testing.T) {
	covered := 0
	const trials = 200
	for trial := range trials {
		r := random.New(5, "coverage", trial)
		var pairs []Paired
		for range 60 { // rates of 0.5 and 0.3
			var p Paired
			for range 3 {
				hit := func(rate float64) float64 {
					if r.Float64() < rate {
						return 1
					}
					return 0
				}
				p.A, p.B = append(p.A, hit(0.5)), append(p.B, hit(0.3))
			}
			pairs = append(pairs, p)
		}
		d, err := BootstrapDifference(pairs, 400, uint64(trial))
		if err != nil {
			t.Fatal(err)
		}
		if d.Interval.Low <= -0.2 && -0.2 <= d.Interval.High {
			covered++
		}
	}
	// 95 % of 200 are 190 ± 3; percentile intervals are a little short.
	if covered < 178 || covered > 199 {
		t.Errorf("%d of %d intervals hold the true difference", covered, trials)
	}
}

func TestBootstrapRefuses(t *testing.T) {
	for what, pairs := range map[string][]Paired{
		"nothing":      nil,
		"half a pair":  {{A: Prompted{1}}},
		"not a number": {{A: Prompted{1}, B: Prompted{math.NaN()}}},
	} {
		if d, err := BootstrapDifference(pairs, 10, 0); err == nil {
			t.Errorf("%s: %v", what, d)
		}
	}
	if _, err := BootstrapDifference([]Paired{{Prompted{1}, Prompted{2}}}, 0, 0); err == nil {
		t.Error("an interval of no resamples")
	}
}
