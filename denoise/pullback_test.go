package denoise

import (
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
)

// The gradient of a loss is the pullback of its derivative by the prediction.
func TestPullback(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	weights := []float64{0.25, 0.75}
	b := newBatch(t, m, samples(m, "pullback", weights...))
	out, err := n.Predict(t.Context(), p, b)
	if err != nil {
		t.Fatal(err)
	}
	prediction, target := numbers(t, Vector{out}), numbers(t, Vector{b.Target})
	u := make([]float32, len(prediction))
	per := len(u) / len(weights)
	for i := range u {
		u[i] = float32(2 * weights[i/per] * (prediction[i] - target[i]) / float64(per))
	}
	for name, s := range map[string]Selection{"adapter": n.Group(1), "all weights": n.Group(0)} {
		got, err := n.Pullback(t.Context(), p, s, b, engine.Float32s(u, engine.Shape(out)...))
		if err != nil {
			t.Fatal(err)
		}
		if e := relative(numbers(t, got), numbers(t, gradient(t, n, p, s, Loss{}, b))); !(e < 1e-5) {
			t.Errorf("%s: differs by %g", name, e)
		}
	}
}

func TestMosaic(t *testing.T) {
	pixels := []float32{
		1, 3, 5, // a square, and a strip at the edge
		5, 7, 1,
		2, 4, 9,
		0, 0, 0, // a second channel
		0, 4, 0,
		8, 0, 0,
	}
	mosaic(pixels, 3, 3, 2)
	want := []float32{
		4, 4, 3,
		4, 4, 3,
		3, 3, 9,
		1, 1, 0,
		1, 1, 0,
		4, 4, 0,
	}
	if !slices.Equal(pixels, want) {
		t.Errorf("the mosaic is %v", pixels)
	}
}

// Parameters are found by name in their group alone.
func TestNamedOf(t *testing.T) {
	m := loadTiny(t)
	n, err := NewTextNetwork(m, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Free()
	for group, part := range map[int]string{0: ".attn1.to_q.", 1: ".final_layer_norm."} {
		s, err := n.NamedOf(group, part)
		if err != nil || s.Len() == 0 {
			t.Fatalf("group %d has %d parameters named %q: %v", group, s.Len(), part, err)
		}
		if _, err := n.NamedOf(1-group, part); err == nil {
			t.Errorf("group %d has %q too", 1-group, part)
		}
	}
}
