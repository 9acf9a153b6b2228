package train

import (
	"math"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/resalign/resalign/random"
)

// TestPullback compares the reverse of every update rule with central differences of the rule itself, in float64.
func TestPullback(t *testing.T) {
	const size = 5
	for name, o := range optimizers {
		t.Run(name, func(t *testing.T) {
			slots := o.StateSlots()
			backend := newBackend(t)
			apply, err := graph.NewExec(backend, func(in []*graph.Node) []*graph.Node {
				param, state := o.Apply(in[0], in[1], in[2], in[3], in[4:])
				return append([]*graph.Node{param}, state...)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer apply.Finalize()
			reverse, err := graph.NewExec(backend, func(in []*graph.Node) []*graph.Node {
				a := o.Pullback(in[0], in[1], in[2], in[3], in[4:4+slots], in[4+slots], in[5+slots:])
				return append([]*graph.Node{a.Param, a.Grad}, a.State...)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer reverse.Finalize()

			stream := random.New(5, "pullback")
			draw := func() []float64 {
				v := make([]float64, size)
				for i := range v {
					v[i] = stream.Normal()
				}
				return v
			}
			reads := [][]float64{draw(), draw()} // the parameter, its gradient, the state
			adjoints := [][]float64{draw()}
			for s := range slots {
				state := draw()
				if s == 1 {
					for i := range state {
						state[i] = 0.1 + state[i]*state[i]
					}
				}
				reads, adjoints = append(reads, state), append(adjoints, draw())
			}
			call := func(exec *graph.Exec, vectors ...[]float64) [][]float64 {
				in := []any{float32(0.125), float32(3)}
				for _, v := range vectors {
					in = append(in, tensors.FromFlatDataAndDimensions(v, size))
				}
				got, err := exec.Call(in...)
				if err != nil {
					t.Fatal(err)
				}
				out := make([][]float64, len(got))
				for i, x := range got {
					out[i] = tensors.MustCopyFlatData[float64](x)
				}
				return out
			}
			value := func() float64 {
				sum := 0.0
				for i, out := range call(apply, reads...) {
					for j, x := range out {
						sum += x * adjoints[i][j]
					}
				}
				return sum
			}
			got := call(reverse, append(append([][]float64{}, reads...), adjoints...)...)
			const h = 1e-6
			for i, read := range reads {
				for j, x := range read {
					read[j] = x + h
					high := value()
					read[j] = x - h
					low := value()
					read[j] = x
					want := (high - low) / (2 * h)
					if e := math.Abs(got[i][j] - want); e > 1e-7*(1+math.Abs(want)) {
						t.Errorf("derivative by input %d at %d is %v, not %v", i, j, got[i][j], want)
					}
				}
			}
		})
	}
}

// A coordinate that never had a gradient has no finite derivative under Adam; it must not spoil the others with NaN.
func TestPullbackAtZero(t *testing.T) {
	o := optimizers["adam"]
	exec, err := graph.NewExec(newBackend(t), func(in []*graph.Node) []*graph.Node {
		a := o.Pullback(in[0], in[1], in[2], in[2], []*graph.Node{in[2], in[2]}, in[3], []*graph.Node{in[2], in[2]})
		return append([]*graph.Node{a.Param, a.Grad}, a.State...)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Finalize()
	got, err := exec.Call(float32(1e-3), float32(1), []float32{0, 0}, []float32{1, -2})
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range got {
		for _, v := range tensors.MustCopyFlatData[float32](x) {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				t.Errorf("derivative %d is %v", i, v)
			}
		}
	}
}
