package denoise

import (
	"testing"

	"github.com/resalign/resalign/nn"
)

// What bfloat16 costs in precision on the tiny model: predictions differ by about 1 % of their length, gradients by 2 %, with
// checkpoints as without; second derivatives are those of float32.
func TestBFloat16(t *testing.T) {
	m := loadTiny(t)
	plain, p := adapted(t, m, 2)
	m.Compute = nn.BFloat16
	half := NewNetwork(m, plain.Adapters...)
	m.Compute = nn.Float32
	t.Cleanup(half.Free)
	if half.architecture == plain.architecture || half.Exact().architecture != plain.architecture || plain.Exact() != plain {
		t.Fatal("the wrong networks share programs")
	}
	b := newBatch(t, m, samples(m, "bfloat16", 0.5, 0.5))
	compare := func(name string, least, most float64, f func(n *Network) (Vector, error)) {
		t.Helper()
		want, err := f(plain)
		if err != nil {
			t.Fatal(err)
		}
		got, err := f(half)
		if err != nil {
			t.Fatal(err)
		}
		e := relative(numbers(t, got), numbers(t, want))
		t.Logf("%s: %.2g", name, e)
		if !(e <= most) || e < least {
			t.Errorf("%s differs by %g, not by %g to %g", name, e, least, most)
		}
	}
	compare("prediction", 1e-4, 2.5e-2, func(n *Network) (Vector, error) {
		x, err := n.Predict(t.Context(), p, b)
		return Vector{x}, err
	})
	for name, s := range map[string]Selection{"all weights": plain.Group(0), "adapter": plain.Group(2)} {
		gradient := func(n *Network) (Vector, error) {
			_, g, err := n.Gradient(t.Context(), p, s, Loss{}, b)
			return g, err
		}
		compare("gradient of "+name, 1e-4, 4e-2, gradient)
		compare("exact gradient of "+name, 0, 0, func(n *Network) (Vector, error) { return gradient(n.Exact()) })
	}
	s := plain.Group(2)
	sparing := NewNetwork(m, plain.Adapters...)
	t.Cleanup(sparing.Free)
	sparing.ComputeIn(nn.BFloat16)
	sparing.CheckpointGradients()
	compare("gradient with checkpoints", 1e-4, 4e-2, func(n *Network) (Vector, error) {
		if n == half {
			n = sparing
		}
		_, g, err := n.Gradient(t.Context(), p, s, Loss{}, b)
		return g, err
	})
	v := draw(s.Of(p), "direction")
	compare("Hessian product", 0, 0, func(n *Network) (Vector, error) {
		return n.HessianProduct(t.Context(), p, s, Loss{}, b, v)
	})
	compare("Gauss–Newton product", 0, 0, func(n *Network) (Vector, error) {
		return n.GaussNewtonProduct(t.Context(), p, s, Loss{}, b, v)
	})
	compare("cross product", 0, 0, func(n *Network) (Vector, error) {
		return n.CrossProduct(t.Context(), p, n.Group(1), s, Loss{}, b, v)
	})
}
