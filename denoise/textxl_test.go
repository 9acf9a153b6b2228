package denoise

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// A network with both text encoders of SDXL has the loss of embeddings that were made before, its embeddings are those of
// the model, and its gradients by each encoder are those of central differences.
func TestTextNetworkXL(t *testing.T) {
	m, err := sd.Load(loadTiny(t).Engine, "../testdata/references/sdxl-small/model")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	prompts := []string{"a red star", "two green arrows on a very wide table"}
	h, w, err := m.LatentSize(m.Resolution(), m.Resolution())
	if err != nil {
		t.Fatal(err)
	}
	r := random.New(3, "text of two encoders")
	size := m.UNet.Config.InChannels * h * w
	var encoded, tokens []Sample
	for _, prompt := range prompts {
		s := Sample{Latents: r.Normals(size), Noise: r.Normals(size), Timestep: r.IntN(1000), Weight: 0.5, TimeIDs: [6]float32{32, 32, 0, 0, 32, 32}}
		if s.Embedding, err = m.EncodePrompt(t.Context(), prompt); err != nil {
			t.Fatal(err)
		}
		encoded = append(encoded, s)
		s.Embedding = nil
		s.IDs, _ = Tokenizers(m).Encode(prompt)
		tokens = append(tokens, s)
	}
	batch := func(list []Sample) *Batch {
		b, err := NewBatch(m, list, h, w)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Free)
		return b
	}
	n, err := NewTextNetwork(m, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Free()
	point, err := n.Point(m.UNetParams.Tensors, m.Towers[0].Params.Tensors, m.Towers[1].Params.Tensors)
	if err != nil {
		t.Fatal(err)
	}
	plain := NewNetwork(m)
	defer plain.Free()
	want, b := value(t, plain, Point(m.UNetParams.Tensors), Loss{}, batch(encoded)), batch(tokens)
	if got := value(t, n, point, Loss{}, b); math.Abs(got/want-1) > 1e-5 {
		t.Errorf("loss %v, under encoded prompts %v", got, want)
	}
	if got := value(t, n, point, Loss{}, batch(encoded)); math.Abs(got/want-1) > 1e-5 {
		t.Errorf("given encoded prompts the loss is %v, not %v", got, want)
	}
	e, err := n.Embedding(t.Context(), point, nil, prompts[1])
	if err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2][]float32{"context": {e.Context, encoded[1].Embedding.Context}, "pooled": {e.Pooled, encoded[1].Embedding.Pooled}} {
		if len(pair[0]) != len(pair[1]) {
			t.Fatalf("%s of %d numbers, not %d", name, len(pair[0]), len(pair[1]))
		}
		for i := range pair[0] {
			if math.Abs(float64(pair[0][i]-pair[1][i])) > 1e-5 {
				t.Fatalf("%s %d is %v, not %v", name, i, pair[0][i], pair[1][i])
			}
		}
	}
	if negative, err := n.NegativeEmbedding(t.Context(), point, ""); err != nil || m.ForceZeros != !slices.ContainsFunc(negative.Context, func(v float32) bool { return v != 0 }) {
		t.Errorf("the empty negative prompt is not zeros although the pipeline says %v: %v", m.ForceZeros, err)
	}

	space := NewSpace(m.Engine)
	defer space.Free()
	for group := 1; group <= 2; group++ {
		s := n.Group(group)
		g := gradient(t, n, point, s, Loss{}, b)
		norm, err := space.Norm(g)
		if err != nil {
			t.Fatal(err)
		}
		at := func(distance float64) float64 {
			moved := combine(t, space, hypergrad.Term[Vector]{Coefficient: 1, Vector: s.Of(point)}, hypergrad.Term[Vector]{Coefficient: distance / norm, Vector: g})
			return value(t, n, s.Put(point, moved), Loss{}, b)
		}
		const step = 3e-3
		if slope := (at(step) - at(-step)) / (2 * step); !(norm > 0) || math.Abs(slope/norm-1) > 0.03 {
			t.Errorf("encoder %d: slope %v along a gradient of norm %v", group, slope, norm)
		}
	}
	// What is selected for training matters, and nothing that matters is left out.
	selected := n.TextParameters()
	for i, x := range gradient(t, n, point, selected, Loss{}, b) {
		if spec := selected.Specs(n)[i]; length(numbers(t, Vector{x})) == 0 {
			t.Errorf("%s has no gradient", spec.Name)
		}
	}
	all := n.Group(1).And(n.Group(2))
	unused := 0
	for _, x := range gradient(t, n, point, all, Loss{}, b) {
		if length(numbers(t, Vector{x})) == 0 {
			unused++
		}
	}
	if all.Len() != selected.Len()+unused {
		t.Errorf("%d parameters selected and %d unused of %d", selected.Len(), unused, all.Len())
	}
}
