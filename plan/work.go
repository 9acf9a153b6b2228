package plan

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
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
	half      float64 // the same, of factors of half precision
	host      float64 // on the host, outside programs
	thin      float64 // the same, where a side of a matrix is so short that the product moves memory rather than computes
	bytes     [classes]float64
	calls     float64 // of operations
	evaluated float64 // programs
	timed     float64 // seconds of programs, where they were timed
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
	w.half += times * o.half
	w.host += times * o.host
	w.thin += times * o.thin
	for i, b := range o.bytes {
		w.bytes[i] += times * b
	}
	w.calls += times * o.calls
	w.evaluated += times * o.evaluated
	w.timed += times * o.timed
}

// decompose adds the singular value decomposition of a matrix whose shorter side is n (package svd): Gram matrices for the
// eigenvectors and for two rounds of polishing, and the rows turned by the eigenvectors, as products in float64, which run at
// half of float32's rate; and on the host the reduction to a tridiagonal matrix, 2n³, its transformation, 4n³/3, and two
// implicit QR steps for each eigenvalue, which turn half of the n rows each.
func (w *work) decompose(rows, columns int) {
	n, m := float64(min(rows, columns)), float64(max(rows, columns))
	w.flops += 2 * (4 * 2 * n * n * m)
	w.host += (2 + 4.0/3 + 6) * n * n * n
}

// total is all that is counted in operations.
func (w work) total() float64 { return w.flops + w.thin + w.half + w.host }

func (p *program) measure() *work {
	w := &work{evaluated: 1}
	p.follow(func(o op, inPlace bool, _ int) {
		w.calls++
		moved := float64(p.values[o.result].bytes)
		for _, k := range o.inputs {
			moved += float64(p.values[k].bytes)
		}
		switch c := o.class(); {
		case c == product && o.half:
			w.half += o.flops
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
	// Half is FLOPs in bfloat16, Host what sums of products on the host do; 0 where the run needs neither.
	Half float64 `json:"bfloat16_flops_per_s,omitempty"`
	Host float64 `json:"host_flops_per_s,omitempty"`
}

// The shares of a machine's rates that operations of a UNet reach, fitted (docs/performance.md), and the seconds that an
// operation takes however small it is. Elementwise operations of two arrays run above the measured rate, since what they
// read has mostly just been written.
const (
	productShare  = 0.70
	thinShare     = 0.53
	unaryShare    = 0.30
	binaryShare   = 1.58
	movementShare = 0.45
	callSeconds   = 1.35e-6
)

// seconds predicts how long the work takes.
func (r Rates) seconds(w work) float64 {
	beside := 0.0
	if w.host > 0 && r.Host > 0 {
		beside += w.host / r.Host
	}
	if w.timed > 0 {
		return w.timed + beside
	}
	if r.FLOPs == 0 {
		return 0
	}
	if w.half > 0 {
		beside += w.half / (r.Half * productShare)
	}
	return beside + w.flops/(r.FLOPs*productShare) +
		w.bytes[product]/(r.Bytes*thinShare) +
		w.bytes[unary]/(r.Bytes*unaryShare) +
		(w.bytes[binary]+w.bytes[choice]+w.bytes[reduction])/(r.Bytes*binaryShare) +
		(w.bytes[movement]+w.bytes[relabel])/(r.Bytes*movementShare) +
		w.calls*callSeconds
}

// calibration is how long each of the two measurements goes on.
const calibration = time.Second

// calibrate measures a backend, and half precision and the host if they are needed, for a second each.
func calibrate(b compute.Backend, half, host bool) (r Rates, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("plan: measuring this machine: %v", p)
		}
	}()
	const side, length = 1024, 8 << 20
	square := func(in dtypes.DType) (float64, error) {
		matrix := tensors.FromShape(shapes.Make(in, side, side))
		defer func() { _ = matrix.FinalizeAll() }() // it was just made
		usual, err := median(b, matrix, func(x *graph.Node) *graph.Node { return graph.Dot(x, x).Product() })
		return 2 * side * side * side / usual, err
	}
	if r.FLOPs, err = square(dtypes.Float32); err != nil {
		return r, err
	}
	if half {
		if r.Half, err = square(dtypes.BFloat16); err != nil {
			return r, err
		}
	}
	if host {
		r.Host = hostRate()
	}
	long := tensors.FromShape(shapes.Make(dtypes.Float32, length))
	defer func() { _ = long.FinalizeAll() }()
	usual, err := median(b, long, func(x *graph.Node) *graph.Node { return graph.Add(x, x) })
	r.Bytes = 8 * length / usual // read once, written once
	return r, err
}

// hostRate is how many operations sums of products in float64 do in a second, on all processors.
func hostRate() float64 {
	const length = 768
	count := make([]float64, runtime.GOMAXPROCS(0))
	var group sync.WaitGroup
	begin := time.Now()
	for i := range count {
		group.Go(func() {
			x, y := make([]float64, length), make([]float64, length)
			for time.Since(begin) < calibration/4 {
				for range 256 {
					for k, v := range x {
						y[k] += 0.5 * v
					}
					count[i] += 2 * length
				}
			}
		})
	}
	group.Wait()
	total := 0.0
	for _, n := range count {
		total += n
	}
	return total / time.Since(begin).Seconds()
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
