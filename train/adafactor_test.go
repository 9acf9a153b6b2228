package train

import (
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/resalign/resalign/nn"
)

// TestAdafactorFollowsTransformers takes the steps that scripts/adafactor.py recorded, kernels in the engine's layout.
func TestAdafactorFollowsTransformers(t *testing.T) {
	text, err := os.ReadFile("../testdata/adafactor.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases map[string]struct {
		Shape []int
		Decay float64
		Start []float64
		Steps []struct {
			Rate        float64
			Grad, Param []float64
		}
	}
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			spec := nn.Spec{Shape: c.Shape}
			if len(c.Shape) == 4 {
				spec.Layout = nn.Kernel
			}
			dims := spec.EngineShape()
			toEngine := func(values []float64) *tensors.Tensor {
				rounded := make([]float32, len(values))
				for i := range values {
					rounded[i] = float32(i)
				}
				out := make([]float64, len(values))
				for to, from := range spec.ToEngine(rounded) {
					out[to] = values[int(from)]
				}
				return tensors.FromFlatDataAndDimensions(out, dims...)
			}
			o := Optimizer{Name: Adafactor, LR: 1, WeightDecay: c.Decay}
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			exec, err := graph.NewExec(newBackend(t), func(in []*graph.Node) []*graph.Node {
				param, state := o.Apply(in[0], in[1], in[2], in[3], in[4:])
				return append([]*graph.Node{param}, state...)
			})
			if err != nil {
				t.Fatal(err)
			}
			defer exec.Finalize()
			in := []any{nil, nil, toEngine(c.Start), nil}
			for slot := range o.StateSlots() {
				shape := o.StateShape(slot, dims)
				in = append(in, tensors.FromFlatDataAndDimensions(make([]float64, nn.Spec{Shape: shape}.Size()), shape...))
			}
			for i, step := range c.Steps {
				in[0], in[1], in[3] = float32(step.Rate), float32(i+1), toEngine(step.Grad)
				got, err := exec.Call(in...)
				if err != nil {
					t.Fatal(err)
				}
				in[2] = got[0]
				for slot, x := range got[1:] {
					if want := o.StateShape(slot, dims); !slices.Equal(x.Shape().Dimensions, want) {
						t.Fatalf("state %d is %v, not %v", slot, x.Shape(), want)
					}
					in[4+slot] = x
				}
				want := tensors.MustCopyFlatData[float64](toEngine(step.Param))
				for k, x := range tensors.MustCopyFlatData[float64](got[0]) {
					if e := math.Abs(x - want[k]); !(e < 1e-12) {
						t.Fatalf("step %d, element %d: %.15g, want %.15g", i+1, k, x, want[k])
					}
				}
			}
		})
	}
}

// A parameter without a gradient stays finite, and where it is.
func TestAdafactorAtZeroGradient(t *testing.T) {
	o := Optimizer{Name: Adafactor}
	exec := graph.MustNewExec(newBackend(t), func(p, row, column *graph.Node) *graph.Node {
		one := graph.ScalarOne(p.Graph(), p.DType())
		next, _ := o.Apply(one, one, p, graph.ZerosLike(p), []*graph.Node{row, column})
		return next
	})
	out := exec.MustCall([][]float32{{1, -2}, {3, 0.5}}, []float32{0, 0}, []float32{0, 0})
	if got := tensors.MustCopyFlatData[float32](out[0]); !slices.Equal(got, []float32{1, -2, 3, 0.5}) {
		t.Errorf("the parameter became %v", got)
	}
}

func TestAdafactorIsNotReversible(t *testing.T) {
	for _, name := range Optimizers() {
		err := Optimizer{Name: name}.CheckReversible()
		if (err != nil) != (name == Adafactor) || (err != nil && !strings.Contains(err.Error(), Adafactor)) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}
