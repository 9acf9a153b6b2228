package train

import (
	"fmt"

	"github.com/gomlx/gomlx/core/graph"
)

// EMA is an exponential moving average of the parameters, kept in tensors of its own beside them.
type EMA struct {
	// Decay is the largest share, in [0, 1), that the average keeps of itself in one update.
	Decay float64
}

// Validate says what is wrong with the settings.
func (e EMA) Validate() error {
	if !(e.Decay >= 0 && e.Decay < 1) {
		return fmt.Errorf("EMA decay is %v; it must be in [0, 1)", e.Decay)
	}
	return nil
}

// Rate returns the share of the new parameters in the average after the given optimizer step, counted from 1. The first
// step copies the parameters; later ones have 1 − min(Decay, step/(9 + step)), the warm-up of diffusers' EMAModel.
func (e EMA) Rate(step int) float64 {
	if step <= 1 {
		return 1
	}
	return 1 - min(e.Decay, float64(step)/float64(9+step))
}

// Update adds average + rate·(param − average) to the graph; rate is a float32 scalar. The difference form and a rate
// instead of a decay keep precision where the decay is close to 1.
func (EMA) Update(rate, average, param *graph.Node) *graph.Node {
	return graph.Add(average, graph.Mul(graph.ConvertDType(rate, average.DType()), graph.Sub(param, average)))
}
