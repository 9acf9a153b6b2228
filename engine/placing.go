package engine

import (
	"runtime/debug"
	"sync"
)

// Place moves tensors to where the engine computes, if that is this machine's memory; they would be copied there at their
// first use, and be there twice until the garbage collector comes. To other devices they go when they are used.
func (e *Engine) Place(ts ...*Tensor) error {
	if !e.backend.HasSharedBuffers() {
		return nil
	}
	for _, t := range ts {
		if err := t.MaterializeOnDevice(e.backend, true, 0); err != nil {
			return err
		}
	}
	return nil
}

// sparing counts those who ask for little garbage, and keeps what the collector was set to before the first of them.
var sparing struct {
	sync.Mutex
	users, before int
}

// sparingPercent is how much garbage may stand, as a share of what is in use.
const sparingPercent = 10

// Sparing has garbage collected early until the function that it returns is called: where large arrays are converted one
// by one most of what is allocated is garbage at once, and the collector would let it grow to the size of all of them.
// Arrays hold no pointers, so collecting costs little.
func Sparing() (end func()) {
	sparing.Lock()
	defer sparing.Unlock()
	if sparing.users++; sparing.users == 1 {
		sparing.before = debug.SetGCPercent(sparingPercent)
	}
	return sync.OnceFunc(func() {
		sparing.Lock()
		defer sparing.Unlock()
		if sparing.users--; sparing.users == 0 {
			debug.SetGCPercent(sparing.before)
		}
	})
}
