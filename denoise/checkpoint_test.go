package denoise

import (
	"testing"

	"github.com/resalign/resalign/sd"
)

// rounding is the relative difference that the order of sums makes; XLA, which orders them otherwise in each program, has
// 2.1e-6 for second derivatives and for the gradient of SDXL.
const rounding = 5e-6

// Gradient checkpointing changes no derivative: of all weights, of an adapter, first, second and across.
func TestCheckpointsChangeNoDerivative(t *testing.T) {
	m := loadTiny(t)
	plain, p := adapted(t, m, 2)
	m.GradientCheckpointing = true
	sparing := NewNetwork(m, plain.Adapters...)
	t.Cleanup(sparing.Free)
	if sparing.architecture == plain.architecture {
		t.Fatal("both networks share programs")
	}
	b := newBatch(t, m, samples(m, "checkpoints", 0.5, 0.5))
	compare := func(name string, f func(n *Network) (Vector, error)) {
		t.Helper()
		want, err := f(plain)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f(sparing)
		if err != nil {
			t.Fatal(err)
		}
		if e := relative(numbers(t, got), numbers(t, want)); !(e < rounding) {
			t.Errorf("%s differs by %g", name, e)
		} else {
			t.Logf("%s: %.1g", name, e)
		}
	}
	l := Loss{}
	for name, s := range map[string]Selection{"all weights": plain.Group(0), "adapter": plain.Group(2)} {
		v := draw(s.Of(p), name)
		compare("gradient of "+name, func(n *Network) (Vector, error) {
			_, g, err := n.Gradient(t.Context(), p, s, l, b)
			return g, err
		})
		compare("Hessian product of "+name, func(n *Network) (Vector, error) {
			return n.HessianProduct(t.Context(), p, s, l, b, v)
		})
		compare("Gauss–Newton product of "+name, func(n *Network) (Vector, error) {
			return n.GaussNewtonProduct(t.Context(), p, s, l, b, v)
		})
	}
	u := draw(plain.Group(2).Of(p), "cross")
	compare("cross product", func(n *Network) (Vector, error) {
		return n.CrossProduct(t.Context(), p, n.Group(1), n.Group(2), l, b, u)
	})
}

// A model of deep transformers and more conditions: SDXL.
func TestCheckpointsOfSDXL(t *testing.T) {
	tiny := loadTiny(t)
	m, err := sd.Load(tiny.Engine, "../testdata/references/sdxl-small/model")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	list := samples(m, "xl", 1)
	list[0].Embedding.Pooled = make([]float32, m.UNet.Config.PooledWidth())
	b := newBatch(t, m, list)
	var results [2][]float64
	for i := range results {
		m.GradientCheckpointing = i == 1
		n, p := adapted(t, m, 0)
		s := n.Group(0)
		results[i] = numbers(t, gradient(t, n, p, s, Loss{}, b))
	}
	if e := relative(results[1], results[0]); !(e < rounding) {
		t.Errorf("the gradient differs by %g", e)
	}
}
