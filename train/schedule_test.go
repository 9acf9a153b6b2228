package train

import (
	"errors"
	"math"
	"strings"
	"testing"
)

// TestScheduleValues has values worked out by hand from the formulas of diffusers' optimization.py.
func TestScheduleValues(t *testing.T) {
	for _, c := range []struct {
		schedule Schedule
		step     int
		want     float64
	}{
		{Schedule{Kind: ConstantSchedule}, 0, 1},
		{Schedule{Kind: ConstantSchedule}, 99, 1},
		{Schedule{Kind: ConstantSchedule, WarmupSteps: 4}, 0, 0},
		{Schedule{Kind: ConstantSchedule, WarmupSteps: 4}, 3, 0.75},
		{Schedule{Kind: ConstantSchedule, WarmupSteps: 4}, 4, 1},
		{Schedule{Kind: LinearSchedule}, 25, 0.75},
		{Schedule{Kind: LinearSchedule, WarmupSteps: 20}, 10, 0.5},
		{Schedule{Kind: LinearSchedule, WarmupSteps: 20}, 60, 0.5},
		{Schedule{Kind: LinearSchedule}, 100, 0},
		{Schedule{Kind: LinearSchedule}, 150, 0},
		{Schedule{Kind: CosineSchedule}, 0, 1},
		{Schedule{Kind: CosineSchedule}, 25, (1 + math.Sqrt2/2) / 2},
		{Schedule{Kind: CosineSchedule, WarmupSteps: 10}, 55, 0.5},
		{Schedule{Kind: CosineSchedule}, 150, 0},
		{Schedule{Kind: PolynomialSchedule, Power: 1, End: 1e-3}, 50, 0.5005},
		{Schedule{Kind: PolynomialSchedule, Power: 2}, 50, 0.25},
		{Schedule{Kind: PolynomialSchedule, Power: 2, End: 0.1}, 100, 0.1},
		{Schedule{Kind: PolynomialSchedule, Power: 2, End: 0.1}, 101, 0.1},
	} {
		if err := c.schedule.Validate(); err != nil {
			t.Error(err)
		}
		if got := c.schedule.At(c.step, 100); math.Abs(got-c.want) > 1e-15 {
			t.Errorf("%+v at step %d of 100: %v, want %v", c.schedule, c.step, got, c.want)
		}
	}
	for _, kind := range []string{ConstantSchedule, LinearSchedule, CosineSchedule, PolynomialSchedule} {
		s := Schedule{Kind: kind, WarmupSteps: 5}
		for step := range 8 { // a run that ends inside or right after its warm-up
			for total := range 7 {
				if got := s.At(step, total); !(got >= 0 && got <= 1) {
					t.Errorf("%s at step %d of %d is %v", kind, step, total, got)
				}
			}
		}
	}
}

func TestScheduleValidation(t *testing.T) {
	for want, s := range map[string]Schedule{
		"unknown":   {Kind: "step"},
		"warm-up":   {Kind: LinearSchedule, WarmupSteps: -1},
		"no power":  {Kind: CosineSchedule, Power: 2},
		"power is":  {Kind: PolynomialSchedule},
		"end is 1;": {Kind: PolynomialSchedule, Power: 1, End: 1},
	} {
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one about %s", s, err, want)
		}
	}
}

func TestCheckFinite(t *testing.T) {
	if err := CheckFinite("loss", -1e300, 1); err != nil {
		t.Error(err)
	}
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		err := CheckFinite("harmful loss", bad, 12)
		var typed *ErrNonFinite
		if !errors.As(err, &typed) || typed.What != "harmful loss" || typed.Step != 12 || !strings.Contains(err.Error(), "step 12") {
			t.Errorf("error %v", err)
		}
	}
}
