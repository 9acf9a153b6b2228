package denoise

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
)

// shifted is the tiny model with shifts of the given standard deviation.
func shifted(t *testing.T, m *sd.Model, std float64) (*sd.Spectrum, *Network, Point, []*engine.Tensor) {
	t.Helper()
	c, err := data.OpenCache(filepath.Join(t.TempDir(), "cache"), 1<<30, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := m.NewSpectrum()
	fixed, err := Decompose(t.Context(), m, m.UNetParams, s, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	var shifts []*engine.Tensor
	for _, spec := range s.Specs() {
		x := random.New(12, "shifts", spec.Name).Normals(spec.Size())
		for k := range x {
			x[k] *= float32(std)
		}
		shifts = append(shifts, engine.Float32s(x, len(x)))
	}
	n := NewSpectralNetwork(m, s)
	t.Cleanup(n.Free)
	p, err := n.Point(m.UNetParams.Tensors, shifts, fixed)
	if err != nil {
		t.Fatal(err)
	}
	return s, n, p, fixed
}

// With all shifts zero the network is the base model, bit for bit, and so are the merged weights.
func TestNoShiftIsTheModelItself(t *testing.T) {
	m := loadTiny(t)
	s, n, p, fixed := shifted(t, m, 0)
	b := newBatch(t, m, samples(m, "spectral", 0.5, 0.5))
	predict := func(n *Network, p Point) []float64 {
		x, err := n.Predict(t.Context(), p, b)
		if err != nil {
			t.Fatal(err)
		}
		return numbers(t, Vector{x})
	}
	plain := NewNetwork(m)
	defer plain.Free()
	if !slices.Equal(predict(n, p), predict(plain, Point(m.UNetParams.Tensors))) {
		t.Error("predictions differ")
	}
	merged, made, err := m.MergeSpectrum(m.UNetParams, s, n.Group(1).Of(p), fixed)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(made...)
	if !slices.Equal(numbers(t, Vector(merged.Tensors)), numbers(t, Vector(m.UNetParams.Tensors))) {
		t.Error("merged weights differ")
	}
	weights := 0
	for _, spec := range m.UNet.Specs() {
		if strings.HasSuffix(spec.Name, ".weight") {
			weights++
		}
	}
	if len(s.Matrices) != weights || len(made) != weights {
		t.Errorf("%d matrices of %d weights", len(s.Matrices), weights)
	}
}

// The network with shifts has the loss of the merged weights, and its gradient is that of central differences, also for
// singular values that are shifted below zero.
func TestShiftsAreMergedAndDifferentiated(t *testing.T) {
	m := loadTiny(t)
	s, n, p, fixed := shifted(t, m, 0.2)
	b := newBatch(t, m, samples(m, "spectral", 0.5, 0.5))
	space := NewSpace(m.Engine)
	defer space.Free()
	selected := n.Group(1)
	merged, made, err := m.MergeSpectrum(m.UNetParams, s, selected.Of(p), fixed)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(made...)
	plain := NewNetwork(m)
	defer plain.Free()
	base := value(t, plain, Point(m.UNetParams.Tensors), Loss{}, b)
	want, got := value(t, plain, Point(merged.Tensors), Loss{}, b), value(t, n, p, Loss{}, b)
	if math.Abs(got/want-1) > 1e-4 || math.Abs(want/base-1) < 1e-2 {
		t.Errorf("loss %v, of merged weights %v, without shifts %v", got, want, base)
	}
	g := gradient(t, n, p, selected, Loss{}, b)
	norm, err := space.Norm(g)
	if err != nil {
		t.Fatal(err)
	}
	at := func(distance float64) float64 {
		moved := combine(t, space, hypergrad.Term[Vector]{Coefficient: 1, Vector: selected.Of(p)}, hypergrad.Term[Vector]{Coefficient: distance / norm, Vector: g})
		return value(t, n, selected.Put(p, moved), Loss{}, b)
	}
	const step = 1e-2
	if slope := (at(step) - at(-step)) / (2 * step); math.Abs(slope/norm-1) > 0.02 {
		t.Errorf("slope %v along a gradient of norm %v", slope, norm)
	}
	// A singular value far below zero counts as zero, and has no gradient any more.
	low := selected.Of(p)
	for i, x := range low {
		values := slices.Repeat([]float32{-1e6}, x.Size())
		low[i] = engine.Float32s(values, engine.Shape(x)...)
	}
	for i, v := range numbers(t, gradient(t, n, selected.Put(p, low), selected, Loss{}, b)) {
		if v != 0 {
			t.Fatalf("shift %d, far below zero, has the gradient %v", i, v)
		}
	}
	empty, made2, err := m.MergeSpectrum(m.UNetParams, s, low, fixed)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(made2...)
	for _, matrix := range s.Matrices[:5] {
		before, after := numbers(t, Vector{m.UNetParams.Tensors[matrix.Index]}), numbers(t, Vector{empty.Tensors[matrix.Index]})
		// Weights of one axis move a thousandth as far, but a million is far enough for both.
		if !(length(after) < 1e-5*length(before)) {
			t.Errorf("%s: %v is left of %v", matrix.Module, length(after), length(before))
		}
	}
}

// The folder of the cache saves the work.
func TestDecompositionsAreKept(t *testing.T) {
	m := loadTiny(t)
	dir := filepath.Join(t.TempDir(), "cache")
	s := m.NewSpectrum()
	s.Matrices = s.Matrices[:3]
	decompose := func() []float64 {
		c, err := data.OpenCache(dir, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		var progress []int
		fixed, err := Decompose(t.Context(), m, m.UNetParams, s, c, func(done, total int) { progress = append(progress, done, total) })
		if err != nil {
			t.Fatal(err)
		}
		defer engine.Free(fixed...)
		if !slices.Equal(progress, []int{1, 3, 2, 3, 3, 3}) {
			t.Errorf("progress %v", progress)
		}
		return numbers(t, Vector(fixed))
	}
	first := decompose()
	entries, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d entries: %v", len(entries), err)
	}
	if !slices.Equal(first, decompose()) {
		t.Error("what is read differs from what was computed")
	}
}
