package nn

import (
	"hash/fnv"
	"strconv"

	"github.com/resalign/resalign/ad"
)

// dropout says what adapters lose of their inputs.
type dropout struct {
	share float64
	seed  *ad.Value
}

// WithDropout returns the weights for an evaluation in which each number that goes into an adapter is lost with the given
// probability, from 0 up to but not 1, and the others are scaled up to make up for it, each layer by its own draw. The
// seed is an int32 array [1].
func (w *Weights) WithDropout(share float64, seed *ad.Value) *Weights {
	next := *w
	if share > 0 {
		next.dropout = &dropout{share: share, seed: seed}
	}
	return &next
}

// adapterInput is what adapter i gets of the input x of the layer at a path.
func (w *Weights) adapterInput(i int, path string, x *ad.Value) *ad.Value {
	if w.dropout == nil {
		return x
	}
	layer := fnv.New32a()
	layer.Write([]byte(strconv.Itoa(i) + " " + path))
	return ad.Dropout(x, w.dropout.seed, layer.Sum32(), w.dropout.share)
}
