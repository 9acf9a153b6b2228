package train

import (
	"math"
	"strings"
	"testing"

	"github.com/gomlx/compute"
	_ "github.com/gomlx/compute/gobackend"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/resalign/resalign/random"
)

func newBackend(t *testing.T) compute.Backend {
	t.Helper()
	backend, err := compute.NewWithConfig("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Finalize)
	return backend
}

// reference is the update rule of one scalar, written down from the PyTorch documentation in float64.
type reference struct {
	o                Optimizer
	velocity         float64
	m, v             float64
	beta1ToT, beta2T float64
	started          bool
}

func (r *reference) update(lr, p, g float64) float64 {
	o := r.o
	if o.Name == SGD {
		g += o.WeightDecay * p
		if o.Momentum != 0 {
			if r.started {
				r.velocity = o.Momentum*r.velocity + g
			} else {
				r.velocity, r.started = g, true
			}
			if o.Nesterov {
				g += o.Momentum * r.velocity
			} else {
				g = r.velocity
			}
		}
		return p - lr*g
	}
	if o.Name == Lion {
		// Chen et al. 2023, algorithm 2: c = β₁m + (1−β₁)g, θ −= η(sign(c) + λθ), m = β₂m + (1−β₂)g.
		c := o.Beta1*r.m + (1-o.Beta1)*g
		r.m = o.Beta2*r.m + (1-o.Beta2)*g
		return p - lr*(math.Copysign(1, c)+o.WeightDecay*p)
	}
	if !r.started {
		r.beta1ToT, r.beta2T, r.started = 1, 1, true
	}
	r.beta1ToT *= o.Beta1
	r.beta2T *= o.Beta2
	if o.Name == AdamW {
		p *= 1 - lr*o.WeightDecay
	} else {
		g += o.WeightDecay * p
	}
	r.m = o.Beta1*r.m + (1-o.Beta1)*g
	r.v = o.Beta2*r.v + (1-o.Beta2)*g*g
	return p - lr/(1-r.beta1ToT)*r.m/(math.Sqrt(r.v)/math.Sqrt(1-r.beta2T)+o.Eps)
}

var optimizers = map[string]Optimizer{
	"sgd":             {Name: SGD},
	"sgd decay":       {Name: SGD, WeightDecay: 0.1},
	"sgd momentum":    {Name: SGD, WeightDecay: 0.1, Momentum: 0.9},
	"sgd nesterov":    {Name: SGD, WeightDecay: 0.01, Momentum: 0.8, Nesterov: true},
	"adam":            {Name: Adam, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8},
	"adam decay":      {Name: Adam, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, WeightDecay: 0.1},
	"adam large eps":  {Name: Adam, Beta1: 0.5, Beta2: 0.9, Eps: 0.1},
	"adam zero betas": {Name: Adam, Eps: 1e-8},
	"adamw":           {Name: AdamW, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8, WeightDecay: 1e-2},
	"lion":            {Name: Lion, Beta1: 0.9, Beta2: 0.99},
	"lion decay":      {Name: Lion, Beta1: 0.5, Beta2: 0.8, WeightDecay: 0.1},
}

// trajectory runs steps of the graph on the gradients g(step, i), with learning rates that float32 holds exactly.
func trajectory[T float32 | float64](t *testing.T, o Optimizer, start []T, steps int) [][]T {
	t.Helper()
	exec, err := graph.NewExec(newBackend(t), func(in []*graph.Node) []*graph.Node {
		param, state := o.Apply(in[0], in[1], in[2], in[3], in[4:])
		return append([]*graph.Node{param}, state...)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Finalize()
	param := tensors.FromFlatDataAndDimensions(start, 2, len(start)/2)
	var state []*tensors.Tensor
	for range o.StateSlots() {
		state = append(state, tensors.FromFlatDataAndDimensions(make([]T, len(start)), 2, len(start)/2))
	}
	var out [][]T
	for step := 1; step <= steps; step++ {
		grad := make([]T, len(start))
		for i := range grad {
			grad[i] = T(gradient(step, i))
		}
		in := []any{float32(rate(step)), float32(step), param, tensors.FromFlatDataAndDimensions(grad, 2, len(start)/2)}
		for _, s := range state {
			in = append(in, s)
		}
		got, err := exec.Call(in...)
		if err != nil {
			t.Fatal(err)
		}
		param, state = got[0], got[1:]
		if len(state) != o.StateSlots() {
			t.Fatalf("%d state tensors, want %d", len(state), o.StateSlots())
		}
		out = append(out, tensors.MustCopyFlatData[T](param))
	}
	return out
}

func rate(step int) float64 { return math.Ldexp(float64(1+step%3), -6) }

// gradient is exact in float32.
func gradient(step, i int) float64 { return float64(float32(random.New(7, step, i).Normal())) }

func TestOptimizersFollowPyTorch(t *testing.T) {
	const steps, n = 12, 6
	for name, o := range optimizers {
		t.Run(name, func(t *testing.T) {
			o.LR = 1e-3
			if err := o.Validate(); err != nil {
				t.Fatal(err)
			}
			start64, start32 := make([]float64, n), make([]float32, n)
			for i := range n {
				start32[i] = float32(i)/4 - 0.6
				start64[i] = float64(start32[i])
			}
			got64, got32 := trajectory(t, o, start64, steps), trajectory(t, o, start32, steps)
			for i := range n {
				r, p := &reference{o: o}, start64[i]
				for step := 1; step <= steps; step++ {
					p = r.update(rate(step), p, gradient(step, i))
					if e := math.Abs(got64[step-1][i] - p); !(e < 1e-12) {
						t.Fatalf("float64 step %d, element %d: %.15g, want %.15g", step, i, got64[step-1][i], p)
					}
					if e := math.Abs(float64(got32[step-1][i]) - p); !(e < 1e-6) {
						t.Fatalf("float32 step %d, element %d: %.9g, want %.9g", step, i, got32[step-1][i], p)
					}
				}
			}
		})
	}
}

// TestAdamByHand has three steps worked out on paper: with a constant gradient the bias-corrected moments are the
// gradient and its square, so every step is lr·g/(|g| + eps).
func TestAdamByHand(t *testing.T) {
	o := Optimizer{Name: Adam, LR: 1, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8}
	exec := graph.MustNewExec(newBackend(t), func(param, m, v, step *graph.Node) []*graph.Node {
		lr := graph.Scalar(param.Graph(), param.DType(), 0.125)
		p, s := o.Apply(lr, step, param, graph.ConstAs(param, []float32{4, -0.001}), []*graph.Node{m, v})
		return []*graph.Node{p, s[0], s[1]}
	})
	p, m, v := any([]float32{1, 1}), any([]float32{0, 0}), any([]float32{0, 0})
	for step := 1; step <= 3; step++ {
		out := exec.MustCall(p, m, v, float32(step))
		p, m, v = out[0], out[1], out[2]
	}
	got := tensors.MustCopyFlatData[float32](p.(*tensors.Tensor))
	for i, want := range []float64{1 - 3*0.125, 1 + 3*0.125*0.001/(0.001+1e-8)} {
		if math.Abs(float64(got[i])-want) > 1e-6 {
			t.Errorf("element %d: %.8g, want %.8g", i, got[i], want)
		}
	}
}

func TestOptimizerValidation(t *testing.T) {
	for _, name := range Optimizers() {
		o, err := DefaultOptimizer(name, 1e-4)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := map[string]float64{AdamW: 0.01}[name]; o.WeightDecay != want {
			t.Errorf("%s: weight decay %v, want %v", name, o.WeightDecay, want)
		}
	}
	for want, o := range map[string]Optimizer{
		"unknown":       {Name: "adagrad"},
		"learning rate": {Name: SGD, LR: math.NaN()},
		"weight decay":  {Name: SGD, WeightDecay: -1},
		"beta1":         {Name: Adam, Beta1: 1, Beta2: 0.9, Eps: 1e-8},
		"beta2":         {Name: AdamW, Beta1: 0.9, Beta2: -0.1, Eps: 1e-8},
		"eps is":        {Name: Adam, Beta1: 0.9, Beta2: 0.9},
		"no momentum":   {Name: Adam, Beta1: 0.9, Beta2: 0.9, Eps: 1e-8, Momentum: 0.9},
		"no beta1":      {Name: SGD, Beta1: 0.9},
		"momentum is":   {Name: SGD, Momentum: 1},
		"lion has no":   {Name: Lion, Beta1: 0.9, Beta2: 0.99, Eps: 1e-8},
		"factor has no": {Name: Adafactor, Beta2: 0.99},
		"nesterov":      {Name: SGD, Nesterov: true},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want one about %s", o, err, want)
		}
	}
	if _, err := DefaultOptimizer("adagrad", 1); err == nil {
		t.Error("unknown optimizer accepted")
	}
}

func TestApplyNeedsItsState(t *testing.T) {
	exec := graph.MustNewExec(newBackend(t), func(x *graph.Node) *graph.Node {
		param, _ := Optimizer{Name: SGD, Momentum: 0.9}.Apply(x, x, x, x, nil)
		return param
	})
	if _, err := exec.Call(float32(1)); err == nil || !strings.Contains(err.Error(), "it needs 1") {
		t.Errorf("error %v", err)
	}
}

func TestClipByGlobalNorm(t *testing.T) {
	for _, c := range []struct {
		maxNorm, coefficient float64
	}{{0.5, 0.5 / (5 + 1e-6)}, {5, 5 / (5 + 1e-6)}, {6, 1}, {1e9, 1}} {
		exec := graph.MustNewExec(newBackend(t), func(a, b *graph.Node) []*graph.Node {
			clipped, norm := ClipByGlobalNorm([]*graph.Node{a, b}, c.maxNorm)
			return append(clipped, norm)
		})
		out := exec.MustCall([]float64{3, 0}, [][]float64{{0}, {-4}})
		if norm := tensors.ToScalar[float64](out[2]); norm != 5 {
			t.Errorf("norm %v, want 5", norm)
		}
		a, b := tensors.MustCopyFlatData[float64](out[0]), tensors.MustCopyFlatData[float64](out[1])
		if math.Abs(a[0]-3*c.coefficient) > 1e-14 || a[1] != 0 || math.Abs(b[1]+4*c.coefficient) > 1e-14 {
			t.Errorf("limit %v: %v %v, want the coefficient %v", c.maxNorm, a, b, c.coefficient)
		}
		out = exec.MustCall([]float64{math.NaN(), 0}, [][]float64{{0}, {-4}})
		if err := CheckFinite("norm", tensors.ToScalar[float64](out[2]), 3); err == nil {
			t.Error("norm of a NaN is finite")
		}
	}
	exec := graph.MustNewExec(newBackend(t), func(a *graph.Node) *graph.Node {
		clipped, _ := ClipByGlobalNorm([]*graph.Node{a}, 0)
		return clipped[0]
	})
	if _, err := exec.Call([]float32{1}); err == nil {
		t.Error("limit 0 accepted")
	}
}

func TestEMA(t *testing.T) {
	e := EMA{Decay: 0.9999}
	// By hand: the decay of diffusers' EMAModel is (1+s)/(10+s) for s = step − 1 > 0.
	for step, want := range map[int]float64{1: 1, 2: 1 - 2.0/11, 11: 1 - 11.0/20, 1 << 30: 1 - 0.9999} {
		if got := e.Rate(step); math.Abs(got-want) > 1e-15 {
			t.Errorf("rate at step %d is %v, want %v", step, got, want)
		}
	}
	exec := graph.MustNewExec(newBackend(t), e.Update)
	got := tensors.MustCopyFlatData[float32](exec.MustCall(float32(0.25), []float32{1, 2}, []float32{5, 2})[0])
	if got[0] != 2 || got[1] != 2 {
		t.Errorf("average %v, want [2 2]", got)
	}
	for _, bad := range []float64{-0.1, 1, math.NaN()} {
		if (EMA{bad}).Validate() == nil {
			t.Errorf("decay %v accepted", bad)
		}
	}
	if err := e.Validate(); err != nil {
		t.Error(err)
	}
}
