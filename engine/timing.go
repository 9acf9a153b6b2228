package engine

import (
	"context"
	"slices"
	"time"
)

// A call is timed at least leastCalls times, and then until timedFor has passed, or mostCalls times.
const (
	leastCalls = 3
	mostCalls  = 9
	timedFor   = time.Second
)

// Time runs a function on zeros and says how many seconds a call takes once it is compiled: the median of a few. It needs the
// memory of the inputs and of a call.
func (e *Engine) Time(ctx context.Context, name string, inputs []Input, build Build) (float64, error) {
	f, err := e.NewFunction(name, build)
	if err != nil {
		return 0, err
	}
	defer f.Free()
	var kept []*Tensor // inputs that are not given up
	defer func() { Free(kept...) }()
	zeros := make([]*Tensor, len(inputs))
	donate := make([]bool, len(inputs))
	fill := func(givenUp bool) error {
		for i, in := range inputs {
			if donate[i] = in.GivenUp; in.GivenUp != givenUp {
				continue
			}
			if zeros[i], err = e.zeros(in); err != nil {
				return err
			}
			if !givenUp {
				kept = append(kept, zeros[i])
			}
		}
		return nil
	}
	if err := fill(false); err != nil {
		return 0, err
	}
	call := func() (float64, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := fill(true); err != nil {
			return 0, err
		}
		begin := time.Now()
		out, err := f.CallDonating(donate, zeros...)
		if err != nil {
			return 0, err
		}
		defer Free(out...)
		if err := wait(out); err != nil {
			return 0, err
		}
		return time.Since(begin).Seconds(), nil
	}
	if _, err := call(); err != nil { // compiles, and takes memory from the system
		return 0, err
	}
	var seconds []float64
	for begin := time.Now(); len(seconds) < leastCalls || time.Since(begin) < timedFor && len(seconds) < mostCalls; {
		s, err := call()
		if err != nil {
			return 0, err
		}
		seconds = append(seconds, s)
	}
	slices.Sort(seconds)
	return seconds[len(seconds)/2], nil
}

// zeros is an input of zeros, where the engine computes.
func (e *Engine) zeros(in Input) (*Tensor, error) {
	if in.Integer {
		n := 1
		for _, d := range in.Dims {
			n *= d
		}
		return Int32s(make([]int32, n), in.Dims...), nil
	}
	x, err := e.Zeros(in.Dims...)
	if err == nil && e.kind != "go" {
		err = x.ToDevice(e.backend, 0)
	}
	return x, err
}

// wait returns once an output is there: devices compute while the caller goes on, and all outputs are there at once.
func wait(out []*Tensor) error {
	smallest := slices.MinFunc(out, func(a, b *Tensor) int { return a.Size() - b.Size() })
	_, err := Values(smallest)
	return err
}
