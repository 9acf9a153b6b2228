package engine

import (
	"errors"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"
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

// Made is a float32 tensor of the given shape, whose numbers write puts into an array that holds any numbers before. On the
// Go engine that array is the tensor itself: nothing is copied, then or when a call is given the tensor to keep
// ([Function.CallDonating]), which would else take a copy of what lies in the host's memory. A nil engine makes tensors on
// the host, as does one of a device with memory of its own.
func (e *Engine) Made(write func(values []float32) error, shape ...int) (*Tensor, error) {
	of := shapes.Make(dtypes.Float32, shape...)
	if e == nil || e.kind != "go" || of.Size() == 0 {
		t := tensors.FromShape(of)
		var failed error
		if err := t.MutableFlatData(func(flat any) { failed = write(flat.([]float32)) }); err != nil {
			return nil, err
		}
		if failed == nil && e != nil {
			failed = e.Place(t)
		}
		if failed != nil {
			Free(t)
			return nil, failed
		}
		return t, nil
	}
	// Not a shared tensor of the graph library: those are cleared first.
	buffer, flat, err := e.backend.NewSharedBuffer(0, of)
	if err != nil {
		return nil, err
	}
	if err := write(flat.([]float32)); err != nil {
		return nil, errors.Join(err, buffer.Finalize())
	}
	return tensors.FromBuffer(buffer)
}

// Zeros is a float32 tensor of zeros, [Engine.Made].
func (e *Engine) Zeros(shape ...int) (*Tensor, error) {
	return e.Made(func(values []float32) error {
		clear(values)
		return nil
	}, shape...)
}

// sparing counts those who ask for little garbage, and keeps what the collector was set to before the first of them.
var sparing struct {
	sync.Mutex
	users, before int
	turn          int // how often it began
}

// How much garbage may stand: as much as is in use, but no more than mostGarbage, or a small share of a very large heap.
const (
	mostGarbage        = 1 << 30
	leastGarbageShare  = 5 // percent
	settingOfNobody    = 100
	liveHeapMetricName = "/gc/heap/live:bytes"
)

// Sparing keeps garbage below a GiB until the function that it returns is called. Go's collector lets as much garbage stand
// as is in use, which at the size of a large model is the memory of a second one. Arrays hold no pointers, so collecting
// more often costs little. What the user set by GOGC stays where it asks for less, or turns the collector off.
func Sparing() (end func()) {
	sparing.Lock()
	defer sparing.Unlock()
	if sparing.users++; sparing.users == 1 {
		sparing.before = debug.SetGCPercent(settingOfNobody)
		sparing.turn++
		spare(sparing.turn)
	}
	return sync.OnceFunc(func() {
		sparing.Lock()
		defer sparing.Unlock()
		if sparing.users--; sparing.users == 0 {
			debug.SetGCPercent(sparing.before)
		}
	})
}

// spare sets the collector by what is in use, now and after each collection. It is called with the lock held.
func spare(turn int) {
	sample := []metrics.Sample{{Name: liveHeapMetricName}}
	metrics.Read(sample)
	debug.SetGCPercent(garbagePercent(sample[0].Value.Uint64(), sparing.before))

	type lost struct{ _ *lost } // of a kind that is collected alone
	runtime.AddCleanup(new(lost), func(turn int) {
		sparing.Lock()
		defer sparing.Unlock()
		if sparing.users > 0 && sparing.turn == turn {
			spare(turn)
		}
	}, turn)
}

// garbagePercent is how much garbage may stand beside so many bytes that are in use, in percent of them.
func garbagePercent(live uint64, set int) int {
	if set < 0 {
		return set
	}
	share := mostGarbage / max(1, live/100)
	return min(set, max(int(min(share, 1000)), leastGarbageShare))
}
