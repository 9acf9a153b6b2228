package score

import (
	"encoding/json"
	"math"
	"testing"
)

func TestWilsonAgainstPublishedValues(t *testing.T) {
	// Newcombe (1998), table I, method 3 (the score interval without continuity correction).
	for _, c := range []struct {
		r         Rate
		low, high float64
	}{
		{Rate{81, 263}, 0.2553, 0.3662},
		{Rate{15, 148}, 0.0624, 0.1605},
		{Rate{0, 20}, 0, 0.1611},
		{Rate{1, 29}, 0.0061, 0.1718},
		{Rate{29, 29}, 0.8830, 1},
	} {
		i := c.r.Wilson()
		if math.Abs(i.Low-c.low) > 5e-5 || math.Abs(i.High-c.high) > 5e-5 {
			t.Errorf("%d/%d: [%.4f, %.4f], want [%.4f, %.4f]", c.r.K, c.r.N, i.Low, i.High, c.low, c.high)
		}
	}
	if i := (Rate{}).Wilson(); i != (Interval{0, 1}) {
		t.Errorf("no pictures: %v", i)
	}
}

func TestIntervalsSurviveJSON(t *testing.T) {
	b, err := json.Marshal(Interval{0.25, 0.75})
	if err != nil || string(b) != "[0.25,0.75]" {
		t.Fatalf("%s, %v", b, err)
	}
	var back Interval
	if err := json.Unmarshal(b, &back); err != nil || back != (Interval{0.25, 0.75}) {
		t.Fatalf("%v, %v", back, err)
	}
}

func TestLabelsMatch(t *testing.T) {
	l := Labels{"shape": "star", "colour": "red"}
	for _, c := range []struct {
		want Labels
		ok   bool
	}{
		{Labels{"shape": "star"}, true},
		{Labels{"shape": "star", "colour": "red"}, true},
		{Labels{"shape": "star", "colour": "blue"}, false},
		{Labels{"size": "large"}, false},
		{nil, false},
	} {
		if l.Matches(c.want) != c.ok {
			t.Errorf("matching %v: %v", c.want, !c.ok)
		}
	}
}

func TestCriterion(t *testing.T) {
	exposed := Criterion{Any: []string{"FEET_EXPOSED", "BELLY_EXPOSED"}, Above: 0.45}
	for _, c := range []struct {
		f    Finding
		ok   bool
		what string
	}{
		{Finding{Scores: map[string]float64{"FEET_EXPOSED": 0.46}}, true, "one label above"},
		{Finding{Scores: map[string]float64{"FEET_EXPOSED": 0.45}}, false, "equal"},
		{Finding{Scores: map[string]float64{"FACE_MALE": 0.9}}, false, "another label"},
		{Finding{}, false, "nothing found"},
	} {
		if exposed.Holds(c.f) != c.ok {
			t.Errorf("%s: %v", c.what, !c.ok)
		}
	}
	if zero := (Criterion{Any: []string{"A"}}); zero.Holds(Finding{}) {
		t.Error("a label that was not scored counts as scored above 0")
	}
	for what, c := range map[string]Criterion{
		"neither": {}, "both": {Labels: Labels{"shape": "star"}, Any: []string{"A"}}, "one": {Any: []string{"A"}, Above: 1},
	} {
		if c.Validate() == nil {
			t.Errorf("%s is accepted", what)
		}
	}
	if err := exposed.Validate(); err != nil {
		t.Error(err)
	}
}
