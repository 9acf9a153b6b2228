package denoise

import (
	"fmt"
	"math"
	"testing"

	"github.com/resalign/resalign/train"
)

// walk fine-tunes for some steps from a point, on the same batches every time.
func walk(t *testing.T, n *Network, s Selection, o train.Optimizer, start Point, batches []*Batch, space *Space, limit float64, record int) *Descent {
	t.Helper()
	d, err := NewDescent(n, s, o, start)
	if err != nil {
		t.Fatal(err)
	}
	if record > 0 {
		d.Record(record)
	}
	for _, b := range batches {
		_, g, err := n.Gradient(t.Context(), d.Point(), s, Loss{}, b)
		if err != nil {
			t.Fatal(err)
		}
		norm, err := space.Norm(g)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Step(t.Context(), g, ClipScale(norm, limit), 1); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// The unrolled derivative of a loss after fine-tuning is that of the loss as a function of where fine-tuning began, which
// central differences measure by fine-tuning twice more.
func TestUnrolled(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	s := n.Group(1)
	space := NewSpace(m.Engine)
	defer space.Free()
	var batches []*Batch
	for i := range 3 {
		batches = append(batches, newBatch(t, m, samples(m, fmt.Sprint("walk ", i), 0.5, 0.5)))
	}
	after := newBatch(t, m, samples(m, "after", 0.5, 0.5))
	for name, c := range map[string]struct {
		o     train.Optimizer
		limit float64
	}{
		"sgd":                 {train.Optimizer{Name: train.SGD, LR: 0.2}, 0},
		"sgd with clipping":   {train.Optimizer{Name: train.SGD, LR: 0.5, Momentum: 0.5, WeightDecay: 0.01}, 0.2},
		"adam":                {train.Optimizer{Name: train.Adam, LR: 2e-3, Beta1: 0.9, Beta2: 0.999, Eps: 1e-3}, 0},
		"adamw with clipping": {train.Optimizer{Name: train.AdamW, LR: 2e-3, Beta1: 0.9, Beta2: 0.99, Eps: 1e-3, WeightDecay: 0.1}, 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			d := walk(t, n, s, c.o, p, batches, space, c.limit, len(batches))
			defer d.Free()
			right := gradient(t, n, d.Point(), s, Loss{}, after)
			visited := 0
			got, err := d.Unrolled(t.Context(), space, 5, right, c.limit, func(step int, p Point, v Vector) (Vector, error) {
				return n.HessianProduct(t.Context(), p, s, Loss{}, batches[step-1], v)
			}, func(int, Point, Vector) error { visited++; return nil })
			if err != nil {
				t.Fatal(err)
			}
			if visited != len(batches) {
				t.Errorf("%d steps were visited", visited)
			}
			for _, way := range []string{"one way", "another"} {
				direction := draw(s.Of(p), way)
				const h = 1e-3
				at := func(sign float64) float64 {
					moved := s.Put(p, combine(t, space, term(1, s.Of(p)), term(sign*h, direction)))
					d := walk(t, n, s, c.o, moved, batches, space, c.limit, 0)
					defer d.Free()
					return value(t, n, d.Point(), Loss{}, after)
				}
				want := (at(1) - at(-1)) / (2 * h)
				dot, err := space.Dot(got, direction)
				if err != nil {
					t.Fatal(err)
				}
				if e := math.Abs(dot - want); e > 0.02*math.Abs(want)+2e-4 {
					t.Errorf("%s: the derivative is %g, central differences give %g", way, dot, want)
				}
				if plain, _ := space.Dot(right, direction); math.Abs(plain-want) < 3*math.Abs(dot-want) {
					t.Logf("%s: first order gives %g: not told apart", way, plain)
				}
			}
		})
	}
	d := walk(t, n, s, train.Optimizer{Name: train.SGD, LR: 0.2}, p, batches, space, 0, 0)
	defer d.Free()
	if _, err := d.Unrolled(t.Context(), space, 5, s.Of(p), 0, nil, nil); err == nil {
		t.Error("a descent without a record was unrolled")
	}
}

// One plain SGD step has the reverse v − ηHv; a record of one step of several goes back that far only.
func TestUnrolledOneStep(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	s := n.Group(1)
	space := NewSpace(m.Engine)
	defer space.Free()
	batches := []*Batch{newBatch(t, m, samples(m, "a", 1)), newBatch(t, m, samples(m, "b", 1))}
	d := walk(t, n, s, train.Optimizer{Name: train.SGD, LR: 0.3}, p, batches, space, 0, 1)
	defer d.Free()
	before := walk(t, n, s, train.Optimizer{Name: train.SGD, LR: 0.3}, p, batches[:1], space, 0, 0)
	defer before.Free()
	right := draw(s.Of(p), "right")
	h, err := n.HessianProduct(t.Context(), before.Point(), s, Loss{}, batches[1], right)
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Unrolled(t.Context(), space, 5, right, 0, func(step int, p Point, v Vector) (Vector, error) {
		if step != 2 {
			t.Errorf("step %d was asked for", step)
		}
		return n.HessianProduct(t.Context(), p, s, Loss{}, batches[step-1], v)
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e := relative(numbers(t, got), numbers(t, combine(t, space, term(1, right), term(-0.3, h)))); e > 1e-5 {
		t.Errorf("differs by %g", e)
	}
}

// v·Gv is the weighted square of the prediction's change along v, and G is symmetric.
func TestGaussNewtonProduct(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	s := n.Group(1)
	space := NewSpace(m.Engine)
	defer space.Free()
	weights := []float64{0.25, 0.75}
	b := newBatch(t, m, samples(m, "gauss", weights...))
	u, v := draw(s.Of(p), "u"), draw(s.Of(p), "v")
	product := func(x Vector) Vector {
		t.Helper()
		g, err := n.GaussNewtonProduct(t.Context(), p, s, Loss{}, b, x)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	gu, gv := product(u), product(v)
	a, _ := space.Dot(v, gu)
	c, _ := space.Dot(u, gv)
	if math.Abs(a-c) > 1e-4*math.Abs(a) {
		t.Errorf("⟨v, Gu⟩ = %g but ⟨u, Gv⟩ = %g", a, c)
	}
	const h = 1e-3
	predict := func(sign float64) []float64 {
		x, err := n.Predict(t.Context(), s.Put(p, combine(t, space, term(1, s.Of(p)), term(sign*h, v))), b)
		if err != nil {
			t.Fatal(err)
		}
		return numbers(t, Vector{x})
	}
	high, low := predict(1), predict(-1)
	want, per := 0.0, len(high)/len(weights)
	for i := range high {
		d := (high[i] - low[i]) / (2 * h)
		want += 2 * weights[i/per] * d * d / float64(per)
	}
	got, _ := space.Dot(v, gv)
	if math.Abs(got-want) > 5e-3*want {
		t.Errorf("⟨v, Gv⟩ = %g, central differences give %g", got, want)
	}
	if _, err := n.GaussNewtonProduct(t.Context(), p, s, Loss{Cap: 1}, b, u); err == nil {
		t.Error("a bounded loss was accepted")
	}
}

func TestMetric(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	s := n.Group(1)
	space := NewSpace(m.Engine)
	defer space.Free()
	batches := []*Batch{newBatch(t, m, samples(m, "metric", 1))}
	adam := train.Optimizer{Name: train.Adam, LR: 1e-3, Beta1: 0.9, Beta2: 0.999, Eps: 1e-8}
	d := walk(t, n, s, adam, p, batches, space, 0, 0)
	defer d.Free()
	root, inverse, err := d.Metric(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g := numbers(t, gradient(t, n, p, s, Loss{}, batches[0])) // after one step √v is in proportion to |g|
	mean := 0.0
	for _, x := range g {
		mean += math.Abs(x) / float64(len(g))
	}
	r, i := numbers(t, root), numbers(t, inverse)
	for k, x := range g {
		want := (math.Abs(x)+adam.Eps)/(mean+adam.Eps) + metricFloor
		if math.Abs(r[k]*r[k]-want) > 1e-3*want || math.Abs(r[k]*i[k]-1) > 1e-5 {
			t.Fatalf("coordinate %d: √P = %g and 1/√P = %g, but P = %g", k, r[k], i[k], want)
		}
	}
	fresh, err := NewDescent(n, s, adam, p)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Free()
	if _, _, err := fresh.Metric(t.Context()); err == nil {
		t.Error("an optimizer without a step has a metric")
	}
	plain := walk(t, n, s, train.Optimizer{Name: train.SGD, LR: 1e-3}, p, batches, space, 0, 0)
	defer plain.Free()
	if _, _, err := plain.Metric(t.Context()); err == nil {
		t.Error("SGD has a metric")
	}
}
