package train

import (
	"fmt"
	"math"
)

// ErrNonFinite says that a loss or a norm became NaN or infinite. No optimizer step was made with it.
type ErrNonFinite struct {
	What  string // e.g. "harmful loss"
	Value float64
	Step  int
}

func (e *ErrNonFinite) Error() string {
	return fmt.Sprintf("%s is %v at step %d; nothing was updated in this step; start a new run with a lower learning rate, or check the model's weights",
		e.What, e.Value, e.Step)
}

// CheckFinite returns an *[ErrNonFinite] when value is NaN or infinite. Call it before the optimizer step that would
// spread the value over all weights.
func CheckFinite(name string, value float64, step int) error {
	if math.IsNaN(value) || math.IsInf(value, 0) {
		return &ErrNonFinite{What: name, Value: value, Step: step}
	}
	return nil
}
