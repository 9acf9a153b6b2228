package nn

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/random"
)

// evaluate runs a graph on float32 inputs and returns the values of its one output.
func evaluate(t *testing.T, build func(in []*ad.Value) *ad.Value, inputs ...*engine.Tensor) ([]float32, error) {
	t.Helper()
	e := enginetest.Open(t)
	f, err := ad.Compile(e, t.Name(), func(_ *ad.Tape, in []*ad.Value) []*ad.Value { return []*ad.Value{build(in)} })
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Call(inputs...)
	if err != nil {
		return nil, err
	}
	return engine.Values(out[0])
}

func must(t *testing.T, values []float32, err error) []float32 {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return values
}

func close32(t *testing.T, what string, got []float32, want []float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	for i := range got {
		if math.Abs(float64(got[i])-want[i]) > 2e-5*(1+math.Abs(want[i])) {
			t.Fatalf("%s: element %d is %v, want %v", what, i, got[i], want[i])
		}
	}
}

func TestLayoutsRoundTrip(t *testing.T) {
	s := Spec{Name: "conv", Shape: []int{4, 3, 2, 5}, Layout: Kernel}
	values := random.New(1, "layout").Normals(s.Size())
	inside := s.ToEngine(values)
	if !slices.Equal(s.EngineShape(), []int{4, 2, 5, 3}) {
		t.Errorf("engine shape %v", s.EngineShape())
	}
	// [o, i, y, x] = [1, 2, 1, 3] lies at [1, 1, 3, 2] inside.
	if inside[((1*2+1)*5+3)*3+2] != values[((1*3+2)*2+1)*5+3] {
		t.Error("an element is at the wrong place")
	}
	if !slices.Equal(s.FromEngine(inside), values) {
		t.Error("the way back gives other values")
	}
}

func TestLinearWithAdapter(t *testing.T) {
	b := NewBuilder()
	l := NewLinear(b.At("proj"), 3, 2, true)
	names := []string{b.Specs()[0].Name, b.Specs()[1].Name}
	if names[0] != "proj.weight" || names[1] != "proj.bias" {
		t.Fatalf("names %v", names)
	}
	x, w, bias := []float32{1, 2, 3}, []float32{1, 0, -1, 2, 1, 0}, []float32{10, 20}
	down, up := []float32{1, 1, 1}, []float32{2, -1}
	got, err := evaluate(t, func(in []*ad.Value) *ad.Value {
		weights := NewWeights(names, in[1:3]).WithAdapter(map[string]Factors{"proj": {Down: in[3], Up: in[4], Scale: 0.5}})
		return l.Apply(weights, in[0])
	}, engine.Float32s(x, 1, 3), engine.Float32s(w, 2, 3), engine.Float32s(bias, 2), engine.Float32s(down, 1, 3), engine.Float32s(up, 2, 1))
	// Wx + b = [8, 24]; the adapter adds 0.5·up·6.
	close32(t, "linear", must(t, got, err), []float64{8 + 6, 24 - 3})
}

func TestGroupNormAgainstItsDefinition(t *testing.T) {
	const batch, side, channels, groups, eps = 2, 3, 6, 2, 1e-5
	b := NewBuilder()
	n := NewGroupNorm(b.At("norm"), groups, channels, eps)
	s := random.New(2, "group norm")
	x, gain, shift := s.Normals(batch*side*side*channels), s.Normals(channels), s.Normals(channels)
	got, err := evaluate(t, func(in []*ad.Value) *ad.Value {
		return n.Apply(NewWeights([]string{"norm.weight", "norm.bias"}, in[1:]), in[0])
	}, engine.Float32s(x, batch, side, side, channels), engine.Float32s(gain, channels), engine.Float32s(shift, channels))
	want := make([]float64, len(x))
	for i := range batch {
		for g := range groups {
			var at []int
			for p := range side * side {
				for c := g * channels / groups; c < (g+1)*channels/groups; c++ {
					at = append(at, (i*side*side+p)*channels+c)
				}
			}
			mean, variance := 0.0, 0.0
			for _, k := range at {
				mean += float64(x[k]) / float64(len(at))
			}
			for _, k := range at {
				variance += (float64(x[k]) - mean) * (float64(x[k]) - mean) / float64(len(at))
			}
			for _, k := range at {
				c := k % channels
				want[k] = (float64(x[k])-mean)/math.Sqrt(variance+eps)*float64(gain[c]) + float64(shift[c])
			}
		}
	}
	close32(t, "group norm", must(t, got, err), want)
}

func TestActivationsAndTimesteps(t *testing.T) {
	x := []float32{-3, -0.5, 0, 0.7, 4}
	functions := map[string]struct {
		f    func(*ad.Value) *ad.Value
		want func(float64) float64
	}{
		"SiLU":      {SiLU, func(v float64) float64 { return v / (1 + math.Exp(-v)) }},
		"GELU":      {GELU, func(v float64) float64 { return v * 0.5 * (1 + math.Erf(v/math.Sqrt2)) }},
		"QuickGELU": {QuickGELU, func(v float64) float64 { return v / (1 + math.Exp(-1.702*v)) }},
	}
	for name, c := range functions {
		t.Run(name, func(t *testing.T) {
			got, err := evaluate(t, func(in []*ad.Value) *ad.Value { return c.f(in[0]) }, engine.Float32s(x, len(x)))
			want := make([]float64, len(x))
			for i, v := range x {
				want[i] = c.want(float64(v))
			}
			close32(t, name, must(t, got, err), want)
		})
	}
	got, err := evaluate(t, func(in []*ad.Value) *ad.Value { return TimestepEmbedding(in[0], 4, false, 0) }, engine.Float32s([]float32{0, 500}, 2))
	close32(t, "timesteps", must(t, got, err), []float64{1, 1, 0, 0, math.Cos(500), math.Cos(5), math.Sin(500), math.Sin(5)})
}

func TestCausalAttentionDoesNotLookAhead(t *testing.T) {
	const n, width = 4, 6
	s := random.New(3, "attention")
	q, k, v := s.Normals(n*width), s.Normals(n*width), s.Normals(n*width)
	attend := func(v []float32) []float32 {
		got, err := evaluate(t, func(in []*ad.Value) *ad.Value {
			return Attention(in[0], in[1], in[2], 2, CausalMask(in[0], n))
		}, engine.Float32s(q, 1, n, width), engine.Float32s(k, 1, n, width), engine.Float32s(v, 1, n, width))
		return must(t, got, err)
	}
	before := attend(v)
	changed := slices.Clone(v)
	for i := range width {
		changed[(n-1)*width+i] += 1 // the last position's value
	}
	after := attend(changed)
	if !slices.Equal(before[:(n-1)*width], after[:(n-1)*width]) {
		t.Error("an earlier position sees the last one")
	}
	if slices.Equal(before[(n-1)*width:], after[(n-1)*width:]) {
		t.Error("the last position does not see itself")
	}
	close32(t, "the first position, which sees only itself", before[:width], []float64{
		float64(v[0]), float64(v[1]), float64(v[2]), float64(v[3]), float64(v[4]), float64(v[5]),
	})
}

func TestMistakesAreErrorsWithNames(t *testing.T) {
	b := NewBuilder()
	l := NewLinear(b.At("proj"), 3, 2, false)
	_, err := evaluate(t, func(in []*ad.Value) *ad.Value { return l.Apply(NewWeights(nil, nil), in[0]) }, engine.Float32s([]float32{1, 2, 3}, 1, 3))
	if err == nil || !strings.Contains(err.Error(), "proj.weight") {
		t.Errorf("a missing parameter gives %v", err)
	}
	_, err = evaluate(t, func(in []*ad.Value) *ad.Value { return Attention(in[0], in[0], in[0], 2, nil) }, engine.Float32s([]float32{1, 2, 3}, 1, 1, 3))
	if err == nil || !strings.Contains(err.Error(), "2 heads") {
		t.Errorf("heads that do not divide the width give %v", err)
	}
}
