package denoise

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/resalign/resalign/hypergrad"
)

// A capped sample adds the cap to the loss and nothing to its gradient.
func TestCap(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	theta := n.Group(1)
	list := samples(m, "cap", 1, 1)
	first, second := newBatch(t, m, list[:1]), newBatch(t, m, list[1:])
	both := newBatch(t, m, list)
	a, b := value(t, n, p, Loss{}, first), value(t, n, p, Loss{}, second)
	if a > b {
		a, b, first = b, a, second
	}
	if b-a < 1e-3*b {
		t.Fatalf("the losses %g and %g are too close for this test", a, b)
	}
	between := Loss{Cap: (a + b) / 2}
	if got, want := value(t, n, p, between, both), a+(a+b)/2; math.Abs(got-want) > 1e-5*want {
		t.Errorf("capped loss is %g, want %g", got, want)
	}
	got, want := numbers(t, gradient(t, n, p, theta, between, both)), numbers(t, gradient(t, n, p, theta, Loss{}, first))
	if e := relative(got, want); e > 1e-4 {
		t.Errorf("the gradient differs from that of the sample below the cap by %g", e)
	}
	if g := numbers(t, gradient(t, n, p, theta, Loss{Cap: a / 2}, both)); length(g) != 0 {
		t.Errorf("the gradient has length %g where all samples are capped", length(g))
	}
	if got := value(t, n, p, Loss{Cap: 2 * b}, both); math.Abs(got-a-b) > 1e-5*(a+b) {
		t.Errorf("a cap above both losses gives %g instead of %g", got, a+b)
	}
}

// Weights make a weighted sum: that of instance and prior pictures in DreamBooth is one batch.
func TestWeights(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	theta := n.Group(1)
	list := samples(m, "weights", 1, 1, 1)
	space := NewSpace(m.Engine)
	defer space.Free()
	var losses []float64
	var gradients []Vector
	for i := range list {
		loss, g, err := n.Gradient(t.Context(), p, theta, Loss{}, newBatch(t, m, list[i:i+1]))
		if err != nil {
			t.Fatal(err)
		}
		losses, gradients = append(losses, loss), append(gradients, g)
	}
	list[1].Weight, list[2].Weight = 0.25, 0.75
	both := newBatch(t, m, list)
	if got, want := value(t, n, p, Loss{}, both), losses[0]+0.25*losses[1]+0.75*losses[2]; math.Abs(got-want) > 1e-5*want {
		t.Errorf("weighted loss is %g, want %g", got, want)
	}
	sum := combine(t, space, term(1, gradients[0]), term(0.25, gradients[1]), term(0.75, gradients[2]))
	if e := relative(numbers(t, gradient(t, n, p, theta, Loss{}, both)), numbers(t, sum)); e > 1e-4 {
		t.Errorf("the gradients of the samples do not add up to that of the batch: %g", e)
	}
}

func TestDistillation(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	theta := n.Group(1)
	b := newBatch(t, m, samples(m, "distillation", 0.5, 0.5))
	taught, err := n.Teach(t.Context(), p, b)
	if err != nil {
		t.Fatal(err)
	}
	if loss := value(t, n, p, Loss{}, taught); loss > 1e-10 {
		t.Errorf("distillation from the same point has the loss %g", loss)
	}
	other := theta.Put(p, draw(theta.Of(p), "elsewhere"))
	if loss := value(t, n, other, Loss{}, taught); loss < 1e-4 {
		t.Errorf("distillation from another point has the loss %g", loss)
	}
	if loss := value(t, n, p, Loss{}, b); loss < 0.1 {
		t.Errorf("teaching changed the batch it started from: its loss is %g", loss)
	}
}

// ∇_θ⟨∇_φ L, u⟩ is the derivative of ∇_θ L along u in φ, for two adapters of one UNet.
func TestCrossProduct(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 2)
	outer, inner := n.Group(1), n.Group(2)
	b := newBatch(t, m, samples(m, "cross", 0.5, 0.5))
	u := draw(inner.Of(p), "u")
	exact, err := n.CrossProduct(t.Context(), p, outer, inner, Loss{}, b, u)
	if err != nil {
		t.Fatal(err)
	}
	space := NewSpace(m.Engine)
	defer space.Free()
	central := hypergrad.CentralDifference(space, func(phi Vector) (Vector, error) {
		_, g, err := n.Gradient(t.Context(), inner.Put(p, phi), outer, Loss{}, b)
		return g, err
	}, inner.Of(p), 0)
	approximate, err := central(u)
	if err != nil {
		t.Fatal(err)
	}
	want := numbers(t, approximate)
	if e := relative(numbers(t, exact), want); !(e < 2e-3) {
		t.Errorf("cross product differs from the central difference by %g", e)
	}
	// By the adapter itself it is the Hessian product.
	h, err := n.HessianProduct(t.Context(), p, inner, Loss{}, b, u)
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CrossProduct(t.Context(), p, inner, inner, Loss{}, b, u)
	if err != nil {
		t.Fatal(err)
	}
	if e := relative(numbers(t, c), numbers(t, h)); e > 1e-5 {
		t.Errorf("the cross product of a group with itself differs from its Hessian product by %g", e)
	}
}

func TestBadBatchesAndEndedContexts(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	for name, change := range map[string]func(list []Sample) []Sample{
		"without samples": func([]Sample) []Sample { return nil },
		"do not fill":     func(list []Sample) []Sample { list[0].Latents = list[0].Latents[1:]; return list },
		"different sizes": func(list []Sample) []Sample { list[1].Embedding.Tokens++; return list },
		"timestep 1000":   func(list []Sample) []Sample { list[1].Timestep = 1000; return list },
	} {
		if _, err := NewBatch(m, change(samples(m, "bad", 1, 1)), side, side); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v does not say %q", err, name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b := newBatch(t, m, samples(m, "ended", 1))
	if _, err := n.Value(ctx, p, Loss{}, b); !errors.Is(err, context.Canceled) {
		t.Errorf("an ended context gives %v", err)
	}
	if _, err := n.Named("attn2", "attn9"); err == nil || !strings.Contains(err.Error(), `"attn9"`) {
		t.Errorf("a name that matches nothing gives %v", err)
	}
	if _, err := n.Point(m.UNetParams.Tensors); err == nil {
		t.Error("a point without the adapter is accepted")
	}
}
