package ad

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// block is a small network layer: x [4, 3] through weights [3, 3] and a bias [1, 3], with a second activation that scales.
func block(activations, parameters []*Value) *Value {
	h := MatMul(activations[0], parameters[0], false, true)
	h = Mul(Softmax(Add(h, parameters[1])), Exp(Scale(activations[1], 0.3)))
	return Add(activations[0], MatMul(h, parameters[0], false, false))
}

// chain runs three blocks, the first and last with the same parameters, and uses an early activation twice.
func chain(in []*Value, run func(f func(a, p []*Value) *Value, a, p []*Value) *Value) *Value {
	x, scale, first, second := in[0], in[1], in[2:4], in[4:6]
	y := run(block, []*Value{x, scale}, first)
	z := run(block, []*Value{y, Square(scale)}, second)
	z = run(block, []*Value{Add(z, y), scale}, first)
	return scalar(z)
}

func plain(f func(a, p []*Value) *Value, a, p []*Value) *Value { return f(a, p) }

var chainShapes = [][]int{{4, 3}, {4, 3}, {3, 3}, {1, 3}, {3, 3}, {1, 3}}

func chainInputs() []*engine.Tensor {
	s := random.New(5, "checkpoint")
	var in []*engine.Tensor
	for range 2 {
		for _, shape := range chainShapes {
			in = append(in, normals(s, shape...))
		}
	}
	return in
}

func join(t *testing.T, list []*engine.Tensor) (all []float64) {
	t.Helper()
	for _, x := range list {
		all = append(all, float64s(t, x)...)
	}
	return all
}

// Values, gradients, Hessian products, products of mixed derivatives and third derivatives of checkpoints are those of
// the functions themselves.
func TestCheckpointChangesNoDerivative(t *testing.T) {
	n := len(chainShapes)
	derivatives := map[string]func(y *Value, x, v []*Value) []*Value{
		"value":           func(y *Value, _, _ []*Value) []*Value { return []*Value{y} },
		"gradient":        func(y *Value, x, _ []*Value) []*Value { return Gradient(y, x...) },
		"of parameters":   func(y *Value, x, _ []*Value) []*Value { return Gradient(y, x[3:]...) },
		"of one":          func(y *Value, x, _ []*Value) []*Value { return Gradient(y, x[4]) },
		"Hessian product": HessianProduct,
		"mixed": func(y *Value, x, v []*Value) []*Value {
			return Gradient(Dot(Gradient(y, x[2:4]...), v[2:4]), x[1], x[4])
		},
		"third": func(y *Value, x, v []*Value) []*Value {
			return Gradient(Dot(HessianProduct(y, x, v), v), x...)
		},
	}
	for name, of := range derivatives {
		for _, l := range lowerings {
			t.Run(fmt.Sprintf("%s/%+v", name, l), func(t *testing.T) {
				e := open(t)
				defer e.Close()
				var results [2][]float64
				for i, run := range []func(func(a, p []*Value) *Value, []*Value, []*Value) *Value{plain, Checkpoint} {
					f, err := compile(e, "chain", l, func(_ *Tape, in []*Value) []*Value {
						return of(chain(in[:n], run), in[:n], in[n:])
					})
					if err != nil {
						t.Fatal(err)
					}
					out, err := f.Call(chainInputs()...)
					if err != nil {
						t.Fatal(err)
					}
					results[i] = join(t, out)
				}
				size := 0.0
				for _, x := range results[0] {
					size = max(size, math.Abs(x))
				}
				for i, want := range results[0] {
					if got := results[1][i]; !(math.Abs(got-want) <= 1e-12*size) {
						t.Fatalf("element %d is %.17g, not %.17g (largest %g)", i, got, want, size)
					}
				}
			})
		}
	}
}

// The second computation must be one: a graph in which it was merged with the first saves nothing. Softmaxes are counted
// in the graph, where each block has one.
func TestCheckpointComputesAgain(t *testing.T) {
	n := len(chainShapes)
	count := func(run func(func(a, p []*Value) *Value, []*Value, []*Value) *Value, of func(y *Value, x, v []*Value) []*Value) (softmaxes int) {
		e := open(t)
		defer e.Close()
		f, err := compile(e, "chain", lowering{}, func(tape *Tape, in []*Value) []*Value {
			out := of(chain(in[:n], run), in[:n], in[n:])
			softmaxes = countReachable(Nodes(out), "FusedSoftmax") + countReachable(Nodes(out), "ReduceMax")
			return out
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Call(chainInputs()...); err != nil {
			t.Fatal(err)
		}
		return softmaxes
	}
	gradient := func(y *Value, x, _ []*Value) []*Value { return Gradient(y, x...) }
	once := count(plain, gradient)
	if once == 0 || count(Checkpoint, gradient) != 2*once {
		t.Errorf("%d softmaxes in a gradient without checkpoints, %d with", once, count(Checkpoint, gradient))
	}
	// Forward, once for the gradient, once for its derivative, and once more back through the forward pass; but nothing
	// needs the gradient of the first block, where the way back ends, only its derivative.
	if got := count(Checkpoint, HessianProduct); got != 4*once-once/3 {
		t.Errorf("%d softmaxes in a Hessian product with checkpoints, %d without", got, count(plain, HessianProduct))
	}
}

func countReachable(outputs []*graph.Node, kind string) (n int) {
	seen := map[*graph.Node]bool{}
	queue := slices.Clone(outputs)
	for len(queue) > 0 {
		x := queue[0]
		queue = queue[1:]
		if seen[x] {
			continue
		}
		seen[x] = true
		if strings.Contains(x.Type().String(), kind) {
			n++
		}
		queue = append(queue, x.Inputs()...)
	}
	return n
}

func TestCheckpointWithoutActivations(t *testing.T) {
	e := open(t)
	defer e.Close()
	f, err := compile(e, "chain", lowering{}, func(_ *Tape, in []*Value) []*Value {
		return []*Value{Checkpoint(func(_, p []*Value) *Value { return p[0] }, nil, in)}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Call(engine.Float64s([]float64{1}, 1)); err == nil || !strings.Contains(err.Error(), "activation") {
		t.Errorf("error %v", err)
	}
}
