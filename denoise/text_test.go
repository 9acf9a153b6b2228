package denoise

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/sd"
)

// The loss of a network with a text encoder is that under the embeddings of a model that learnt the word, and its
// gradients by the new embeddings and by the encoder are those of central differences.
func TestTextNetwork(t *testing.T) {
	m := loadTiny(t)
	c, err := sd.ReadConcept("../testdata/embedding/learned_embeds.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	words, err := m.Towers[0].Tokenizer.WithPlaceholder(c.Placeholder, c.Count)
	if err != nil {
		t.Fatal(err)
	}
	learnt := loadTiny(t)
	if err := learnt.Learn(c); err != nil {
		t.Fatal(err)
	}
	prompts := []string{"a photo of <ball>", "two <ball> <ball> in a box"}
	encoded := samples(m, "text", 0.5, 0.5)
	tokens := slices.Clone(encoded)
	for i, p := range prompts {
		if encoded[i].Embedding, err = learnt.EncodePrompt(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		tokens[i].Embedding = nil
		tokens[i].IDs, _ = words.Encode(p)
	}
	plain := NewNetwork(m)
	defer plain.Free()
	want := value(t, plain, Point(m.UNetParams.Tensors), Loss{}, newBatch(t, m, encoded))

	n, err := NewTextNetwork(m, c.Count)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Free()
	rows := engine.Float32s(c.Vectors, c.Count, len(c.Vectors)/c.Count)
	point, err := n.Point(m.UNetParams.Tensors, m.Towers[0].Params.Tensors, []*engine.Tensor{rows})
	if err != nil {
		t.Fatal(err)
	}
	b := newBatch(t, m, tokens)
	if got := value(t, n, point, Loss{}, b); math.Abs(got/want-1) > 1e-5 {
		t.Errorf("loss %v, under encoded prompts %v", got, want)
	}
	space := NewSpace(m.Engine)
	defer space.Free()
	for group, step := range map[int]float64{1: 1e-2, 2: 1e-1} {
		s := n.Group(group)
		_, g, err := n.Gradient(t.Context(), point, s, Loss{}, b)
		if err != nil {
			t.Fatal(err)
		}
		// Along the gradient, where a difference stands out from the rounding of the loss.
		norm, err := space.Norm(g)
		if err != nil {
			t.Fatal(err)
		}
		at := func(distance float64) float64 {
			moved := combine(t, space, hypergrad.Term[Vector]{Coefficient: 1, Vector: s.Of(point)}, hypergrad.Term[Vector]{Coefficient: distance / norm, Vector: g})
			return value(t, n, s.Put(point, moved), Loss{}, b)
		}
		if slope := (at(step) - at(-step)) / (2 * step); !(norm > 0) || math.Abs(slope/norm-1) > 0.02 {
			t.Errorf("group %d: slope %v along a gradient of norm %v", group, slope, norm)
		}
	}
}

func TestBatchesOfTokens(t *testing.T) {
	m := loadTiny(t)
	list := samples(m, "tokens", 1, 1)
	list[0].IDs, list[1].IDs = make([]int32, 77), make([]int32, 76)
	if _, err := NewBatch(m, list, side, side); err == nil {
		t.Error("prompts of different lengths make a batch")
	}
}
