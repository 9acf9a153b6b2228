package train

import (
	"fmt"
	"math"
)

// Kinds of learning-rate schedules.
const (
	ConstantSchedule   = "constant"
	LinearSchedule     = "linear"
	CosineSchedule     = "cosine"
	PolynomialSchedule = "polynomial"
)

// Schedule says how the learning rate changes over a run, with the values of diffusers' get_scheduler.
type Schedule struct {
	Kind        string
	WarmupSteps int     // steps of linear growth from 0, which come first
	Power       float64 // polynomial: the exponent; diffusers has 1
	End         float64 // polynomial: the last factor in [0, 1); diffusers has 1e-7 divided by the learning rate
}

// Validate says what is wrong with the settings, also when one is set that the schedule does not have.
func (s Schedule) Validate() error {
	switch s.Kind {
	case ConstantSchedule, LinearSchedule, CosineSchedule:
		if s.Power != 0 || s.End != 0 {
			return fmt.Errorf("schedule %s has no power or end setting; remove it or use %s", s.Kind, PolynomialSchedule)
		}
	case PolynomialSchedule:
		if !(s.Power > 0) || math.IsInf(s.Power, 0) {
			return fmt.Errorf("schedule polynomial: power is %v; it must be a finite number above 0", s.Power)
		}
		if !(s.End >= 0 && s.End < 1) {
			return fmt.Errorf("schedule polynomial: end is %v; it must be in [0, 1)", s.End)
		}
	default:
		return fmt.Errorf("schedule %q is unknown; use %s, %s, %s or %s",
			s.Kind, ConstantSchedule, LinearSchedule, CosineSchedule, PolynomialSchedule)
	}
	if s.WarmupSteps < 0 {
		return fmt.Errorf("schedule %s: warm-up of %d steps; it must be ≥ 0", s.Kind, s.WarmupSteps)
	}
	return nil
}

// At returns the factor in [0, 1] on the optimizer's learning rate after step optimizer steps, so 0 for the first one,
// of a run of total steps. As in diffusers the first step of a warm-up has factor 0. From total on, the last factor
// stays.
func (s Schedule) At(step, total int) float64 {
	if step < s.WarmupSteps {
		return float64(step) / float64(max(1, s.WarmupSteps))
	}
	length := float64(max(1, total-s.WarmupSteps))
	progress := min(1, float64(step-s.WarmupSteps)/length)
	switch s.Kind {
	case LinearSchedule:
		return 1 - progress
	case CosineSchedule:
		return (1 + math.Cos(math.Pi*progress)) / 2
	case PolynomialSchedule:
		return s.End + (1-s.End)*math.Pow(1-progress, s.Power)
	}
	return 1
}
