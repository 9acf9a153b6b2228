package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// work is what programs have the machine do.
type work struct {
	flops     float64 // in products of matrices
	thin      float64 // the same, where a side of a matrix is so short that the product moves memory rather than computes
	bytes     [classes]float64
	calls     float64 // of operations
	evaluated float64 // programs
}

// thinSide is what the sides of a matrix must have for the engine to multiply at its full speed.
const thinSide = 16

func (w *work) add(p *program, times float64) {
	if p.load == nil {
		p.load = p.measure()
	}
	w.plus(*p.load, times)
}

func (w *work) plus(o work, times float64) {
	w.flops += times * o.flops
	w.thin += times * o.thin
	for i, b := range o.bytes {
		w.bytes[i] += times * b
	}
	w.calls += times * o.calls
	w.evaluated += times * o.evaluated
}

func (p *program) measure() *work {
	w := &work{evaluated: 1}
	p.follow(func(o op, inPlace bool, _ int) {
		w.calls++
		moved := float64(p.values[o.result].bytes)
		for _, k := range o.inputs {
			moved += float64(p.values[k].bytes)
		}
		switch c := o.class(); {
		case c == product && min(o.inner, o.rows, o.columns) >= thinSide:
			w.flops += o.flops
		case c == product:
			w.thin += o.flops
			w.bytes[product] += moved
		case c == relabel && inPlace:
		default:
			w.bytes[c] += moved
		}
	})
	return w
}

// Rates are how fast this machine computes, by a short measurement.
type Rates struct {
	FLOPs float64 `json:"flops_per_s"` // of a product of large matrices
	Bytes float64 `json:"bytes_per_s"` // read and written by an elementwise operation
}

// The shares of a machine's rates that operations of a UNet reach, fitted (docs/performance.md), and the seconds that an
// operation takes however small it is. Elementwise operations of two arrays run above the measured rate, since what they
// read has mostly just been written.
const (
	productShare  = 0.91
	thinShare     = 0.69
	unaryShare    = 0.39
	binaryShare   = 2.06
	movementShare = 0.58
	callSeconds   = 1.04e-6
)

// seconds predicts how long the work takes.
func (r Rates) seconds(w work) float64 {
	return w.flops/(r.FLOPs*productShare) +
		w.bytes[product]/(r.Bytes*thinShare) +
		w.bytes[unary]/(r.Bytes*unaryShare) +
		(w.bytes[binary]+w.bytes[choice]+w.bytes[reduction])/(r.Bytes*binaryShare) +
		(w.bytes[movement]+w.bytes[relabel])/(r.Bytes*movementShare) +
		w.calls*callSeconds
}

// calibration is how long each of the two measurements goes on.
const calibration = time.Second

// calibrate measures a backend for two seconds.
func calibrate(b compute.Backend) (r Rates, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("plan: measuring this machine: %v", p)
		}
	}()
	const side, length = 1024, 8 << 20
	matrix := tensors.FromShape(shapes.Make(dtypes.Float32, side, side))
	long := tensors.FromShape(shapes.Make(dtypes.Float32, length))
	defer func() { _, _ = matrix.FinalizeAll(), long.FinalizeAll() }()
	usual, err := median(b, matrix, func(x *graph.Node) *graph.Node { return graph.Dot(x, x).Product() })
	if err != nil {
		return r, err
	}
	r.FLOPs = 2 * side * side * side / usual
	if usual, err = median(b, long, func(x *graph.Node) *graph.Node { return graph.Add(x, x) }); err != nil {
		return r, err
	}
	r.Bytes = 8 * length / usual // read once, written once
	return r, nil
}

// median repeats an operation and gives the time that it takes as the machine is now, other programs included.
func median(b compute.Backend, x *tensors.Tensor, f func(x *graph.Node) *graph.Node) (float64, error) {
	exec, err := graph.NewExec(b, f)
	if err != nil {
		return 0, err
	}
	defer exec.Finalize()
	var seconds []float64
	for begin := time.Now(); time.Since(begin) < calibration || len(seconds) < 3; {
		start := time.Now()
		out, err := exec.Call(x)
		if err != nil {
			return 0, err
		}
		seconds = append(seconds, time.Since(start).Seconds())
		for _, t := range out {
			_ = t.FinalizeAll() // it was just made
		}
	}
	slices.Sort(seconds)
	return seconds[len(seconds)/2], nil
}
