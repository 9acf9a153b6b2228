package unlearn

import (
	"context"
	"math"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

func newTestTrainer(t *testing.T, r Recipe) *trainer {
	t.Helper()
	m, err := sd.Load(openEngine(t), r.Model)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	cache, err := data.OpenCache("", 64<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := newTrainer(context.Background(), m, r, cache, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.free)
	return tr
}

// direction is a vector of the shapes of θ whose entries are the signs of another.
func direction(t *testing.T, tr *trainer, like denoise.Vector) denoise.Vector {
	t.Helper()
	norm, err := tr.space.Norm(like)
	if err != nil {
		t.Fatal(err)
	}
	v, err := tr.space.Mix(1/norm, like, 0, like)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The unrolled hypergradient is the derivative by θ of the harmful loss after the whole simulated fine-tuning, whatever
// fine-tuning trains: measured by simulating twice more, from θ a little to either side.
func TestUnrolledIsTheDerivativeOfTheSimulation(t *testing.T) {
	for _, adapts := range []string{SameParameters, FreshAdapter, AllWeights} {
		t.Run(adapts, func(t *testing.T) {
			r := tinyRecipe(t, t.TempDir())
			r.Hypergradient.Solver, r.Hypergradient.Iterations = Unrolled, 5
			r.Trainable.DownStd, r.Trainable.UpStd = 0.2, 0.2 // a θ that matters
			r.Simulations[0].Adapts, r.Simulations[0].Steps, r.Simulations[0].LearningRate = adapts, 3, 0.1
			if adapts == AllWeights {
				r.Simulations[0].LearningRate = 0.01
			}
			tr := newTestTrainer(t, r)
			at := func(theta denoise.Vector) (float64, denoise.Vector) {
				t.Helper()
				start := tr.theta.Put(tr.outer.Point(), theta)
				kept := tr.outer
				defer func() { tr.outer = kept }()
				var err error
				if tr.outer, err = denoise.NewDescent(tr.net, tr.theta, r.Outer.Rule(), start); err != nil {
					t.Fatal(err)
				}
				defer tr.outer.Free()
				harm, err := tr.harmBatch(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				defer harm.free()
				var report result
				x, err := tr.resilience(t.Context(), 0, tr.views["adapter"], harm, 1, &report)
				if err != nil {
					t.Fatal(err)
				}
				return report.harmStar, x
			}
			theta := tr.outer.Selected()
			_, x := at(theta)
			defer x.Free()
			v := direction(t, tr, x)
			defer v.Free()
			const h = 2e-2
			move := func(s float64) float64 {
				moved, err := tr.space.Mix(1, theta, s*h, v)
				if err != nil {
					t.Fatal(err)
				}
				defer moved.Free()
				value, y := at(moved)
				y.Free()
				return value
			}
			want := (move(1) - move(-1)) / (2 * h)
			got, err := tr.space.Dot(x, v)
			if err != nil {
				t.Fatal(err)
			}
			if e := math.Abs(got/want - 1); !(e < 1e-2) {
				t.Errorf("the derivative is %g, central differences give %g", got, want)
			}
		})
	}
}

// With Adam's metric x = P z where (P + γH) z = g.
func TestMetricSolvesTheWeightedProblem(t *testing.T) {
	r := tinyRecipe(t, t.TempDir())
	r.Hypergradient.Solver, r.Hypergradient.Iterations, r.Hypergradient.Metric, r.Hypergradient.Gamma = ConjugateGradient, 60, AdamMetric, 0.2
	r.Simulations[0].Optimizer, r.Simulations[0].LearningRate = train.Adam, 1e-3
	r.Trainable.DownStd, r.Trainable.UpStd = 0.2, 0.2
	r.Hypergradient.Products = GaussNewton
	tr := newTestTrainer(t, r)
	v := tr.views["adapter"]
	end, err := tr.simulate(t.Context(), v, 0, r.Hypergradient)
	if err != nil {
		t.Fatal(err)
	}
	defer end.free()
	batch, err := tr.fineTuningBatch(t.Context(), v, v.hessian, v.hessianPrior, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer batch.Free()
	_, g, err := v.net.Gradient(t.Context(), end.point, v.phi, denoise.Loss{}, batch)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Free()
	product := tr.product(t.Context(), r.Hypergradient, v, end.point, batch)
	x, report, err := tr.solver(r.Hypergradient, end, end.root)(t.Context(), hypergrad.System[denoise.Vector]{Space: tr.space, Gamma: 0.2, Right: g, Product: product})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Free()
	px, err := tr.space.Multiply(end.inverse, x)
	if err != nil {
		t.Fatal(err)
	}
	z, err := tr.space.Multiply(end.inverse, px)
	if err != nil {
		t.Fatal(err)
	}
	hz, err := product(z)
	if err != nil {
		t.Fatal(err)
	}
	left, err := tr.space.Combine(term(1, x), term(0.2, hz), term(-1, g)) // x = Pz
	if err != nil {
		t.Fatal(err)
	}
	rest, _ := tr.space.Norm(left)
	whole, _ := tr.space.Norm(g)
	if !(rest < 1e-4*whole) {
		t.Errorf("‖(P+γH)z − g‖ is %g of ‖g‖; the solver reports %g", rest/whole, report.Residual)
	}
	apart, _ := tr.space.Mix(1, x, -1, g)
	if far, _ := tr.space.Norm(apart); far < 0.01*whole {
		t.Error("x is g: the test would not see a metric that does nothing")
	}
}
