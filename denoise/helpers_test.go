package denoise

import (
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// side is that of the latents in tests.
const side = 8

func loadTiny(t testing.TB) *sd.Model {
	t.Helper()
	e := enginetest.Open(t)
	m, err := sd.Load(e, "../testdata/golden/tiny-sd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return m
}

// adapted puts adapters of rank 2 on all attention layers, with numbers large enough to matter, and gives the point
// they are at.
func adapted(t testing.TB, m *sd.Model, count int) (*Network, Point) {
	t.Helper()
	layers, err := m.AttentionLayers()
	if err != nil {
		t.Fatal(err)
	}
	var adapters []*sd.Adapter
	groups := [][]*engine.Tensor{m.UNetParams.Tensors}
	for i := range count {
		a, err := sd.NewAdapter(layers, 2, 1)
		if err != nil {
			t.Fatal(err)
		}
		adapters = append(adapters, a)
		groups = append(groups, a.Draw(uint64(i), 0.2, 0.2).Tensors)
	}
	n := NewNetwork(m, adapters...)
	t.Cleanup(n.Free)
	p, err := n.Point(groups...)
	if err != nil {
		t.Fatal(err)
	}
	return n, p
}

// samples draws pictures of noise with random embeddings, the same ones for the same name.
func samples(m *sd.Model, name string, weights ...float64) []Sample {
	s := random.New(11, name)
	const tokens = 7
	width := m.UNet.Config.ContextWidth
	out := make([]Sample, len(weights))
	for i, w := range weights {
		out[i] = Sample{
			Latents: s.Normals(4 * side * side), Noise: s.Normals(4 * side * side), Timestep: s.IntN(1000), Weight: w,
			Embedding: &sd.Embedding{Context: s.Normals(tokens * width), Tokens: tokens, Width: width},
		}
	}
	return out
}

func newBatch(t testing.TB, m *sd.Model, list []Sample) *Batch {
	t.Helper()
	b, err := NewBatch(m, list, side, side)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Free)
	return b
}

func value(t testing.TB, n *Network, p Point, l Loss, b *Batch) float64 {
	t.Helper()
	v, err := n.Value(t.Context(), p, l, b)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func gradient(t testing.TB, n *Network, p Point, s Selection, l Loss, b *Batch) Vector {
	t.Helper()
	_, g, err := n.Gradient(t.Context(), p, s, l, b)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// draw is a random direction with the shapes of v.
func draw(v Vector, name string) Vector {
	s := random.New(12, name)
	out := make(Vector, len(v))
	for i, x := range v {
		out[i] = engine.Float32s(s.Normals(x.Size()), engine.Shape(x)...)
	}
	return out
}

// numbers joins a vector's tensors on the host.
func numbers(t testing.TB, v Vector) []float64 {
	t.Helper()
	var out []float64
	for _, x := range v {
		values, err := engine.Values(x)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range values {
			out = append(out, float64(f))
		}
	}
	return out
}

func length(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x * x
	}
	return math.Sqrt(sum)
}

// relative is ‖got − want‖/‖want‖.
func relative(got, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	d := slices.Clone(got)
	for i := range d {
		d[i] -= want[i]
	}
	return length(d) / length(want)
}

func term(c float64, v Vector) hypergrad.Term[Vector] {
	return hypergrad.Term[Vector]{Coefficient: c, Vector: v}
}

func combine(t testing.TB, s *Space, terms ...hypergrad.Term[Vector]) Vector {
	t.Helper()
	v, err := s.Combine(terms...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
