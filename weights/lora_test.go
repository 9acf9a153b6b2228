package weights

import (
	"bytes"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1."

func sourceOf(t *testing.T, metadata map[string]string, tensors ...*Tensor) Source {
	t.Helper()
	source, err := NewSource(tensors, metadata)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// factors returns a rank-2 adapter from 3 inputs to 2 outputs under two names.
func factors(down, up string) []*Tensor {
	return []*Tensor{
		NewFloat32(down, []int{2, 3}, []float32{1, 2, 3, 4, 5, 6}),
		NewFloat32(up, []int{2, 2}, []float32{1, -1, 0.5, 2}),
	}
}

// tucker returns the outer factors of a decomposed convolution.
func tucker(downRank, upRank int) []*Tensor {
	return []*Tensor{
		NewFloat32("lora_unet_x.lora_down.weight", []int{downRank, 1, 1, 1}, make([]float32, downRank)),
		NewFloat32("lora_unet_x.lora_up.weight", []int{1, upRank, 1, 1}, make([]float32, upRank)),
	}
}

func TestLoRANames(t *testing.T) {
	for _, c := range []struct{ down, up, alpha, module string }{
		{module + "processor.to_q_lora.down.weight", module + "processor.to_q_lora.up.weight", module + "processor.to_q_lora.alpha", module + "to_q"},
		{"unet." + module + "processor.to_out_lora.down.weight", "unet." + module + "processor.to_out_lora.up.weight", "unet." + module + "to_out.0.alpha", module + "to_out.0"},
		{"unet." + module + "to_k.lora_A.weight", "unet." + module + "to_k.lora_B.weight", "unet." + module + "to_k.alpha", module + "to_k"},
		{module + "to_out.0.lora_A.weight", module + "to_out.0.lora_B.weight", module + "to_out.0.alpha", module + "to_out.0"},
		{"base_model.model." + module + "to_v.lora_A.default.weight", "base_model.model." + module + "to_v.lora_B.default.weight", module + "to_v.alpha", module + "to_v"},
		{"unet." + module + "to_q.lora.down.weight", "unet." + module + "to_q.lora.up.weight", "unet." + module + "to_q.alpha", module + "to_q"},
		{"unet." + module + "to_q.lora_linear_layer.down.weight", "unet." + module + "to_q.lora_linear_layer.up.weight", module + "to_q.alpha", module + "to_q"},
		{module + "to_q.lora_down.weight", module + "to_q.lora_up.weight", module + "to_q.alpha", module + "to_q"},
	} {
		lora, err := LoRAFrom(sourceOf(t, nil, factors(c.down, c.up)...))
		if err != nil {
			t.Errorf("%s: %v", c.down, err)
			continue
		}
		l := lora.Layers[0]
		if len(lora.Layers) != 1 || l.Module != c.module || l.Rank != 2 || l.In != 3 || l.Out != 2 || l.Alpha != 2 || l.Scale() != 1 {
			t.Errorf("%s became %+v", c.down, l)
		}
		if !slices.Equal(l.Down, []float32{1, 2, 3, 4, 5, 6}) || !slices.Equal(l.Up, []float32{1, -1, 0.5, 2}) {
			t.Errorf("%s: the factors differ: %v, %v", c.down, l.Down, l.Up)
		}
		lora, err = LoRAFrom(sourceOf(t, nil, append(factors(c.down, c.up), NewFloat32(c.alpha, nil, []float32{1}))...))
		if err != nil || lora.Layers[0].Scale() != 0.5 {
			t.Errorf("%s: alpha 1 of rank 2 gives %+v, %v", c.alpha, lora, err)
		}
	}
}

func TestLoRAScaleFromPEFTConfiguration(t *testing.T) {
	for config, want := range map[string]float64{
		`{"unet.r":2,"unet.lora_alpha":8,"text_encoder.lora_alpha":1}`:                 4,
		`{"r":2,"lora_alpha":8,"alpha_pattern":{}}`:                                    4,
		`{"unet.lora_alpha":8,"unet.alpha_pattern":{"attn1.to_q":6,"to_q":4,"o_q":2}}`: 3,
		`{"lora_alpha":8,"use_rslora":true}`:                                           8 / math.Sqrt2,
		`{"r":2}`:                                                                      1,
	} {
		lora, err := LoRAFrom(sourceOf(t, map[string]string{peftMetadataKey: config}, factors(module+"to_q.lora_A.weight", module+"to_q.lora_B.weight")...))
		if err != nil || math.Abs(lora.Layers[0].Scale()-want) > 1e-12 {
			t.Errorf("%s: scale of %+v is not %g (%v)", config, lora, want, err)
		}
	}
	for _, config := range []string{`[`, `[1]`, `{"lora_alpha":"x"}`, `{"use_dora":true}`} {
		_, err := LoRAFrom(sourceOf(t, map[string]string{peftMetadataKey: config}, factors(module+"to_q.lora_A.weight", module+"to_q.lora_B.weight")...))
		if err == nil || !strings.Contains(err.Error(), peftMetadataKey) {
			t.Errorf("%s: error %v", config, err)
		}
	}
}

func TestLoRARefusesWhatItCannotUse(t *testing.T) {
	down, up := module+"to_q.lora_A.weight", module+"to_q.lora_B.weight"
	good := factors(down, up)
	for name, c := range map[string]struct {
		tensors []*Tensor
		want    []string
	}{
		"a model":        {[]*Tensor{NewFloat32("conv_in.weight", nil, []float32{1})}, []string{"conv_in.weight"}},
		"nothing":        {nil, []string{"no LoRA factors"}},
		"up missing":     {good[:1], []string{module + "to_q (up)"}},
		"down missing":   {good[1:], []string{module + "to_q (down)"}},
		"alpha alone":    {[]*Tensor{NewFloat32("x.alpha", nil, []float32{1})}, []string{"x (down)", "x (up)"}},
		"kernel of up":   {[]*Tensor{NewFloat32(down, []int{2, 3, 1, 1}, make([]float32, 6)), NewFloat32(up, []int{2, 2, 3, 3}, make([]float32, 36))}, []string{down, "[2 2 3 3]"}},
		"half a kernel":  {[]*Tensor{NewFloat32(down, []int{2, 3, 1, 1}, make([]float32, 6)), good[1]}, []string{down, "[2 3 1 1]"}},
		"vast kernel":    {[]*Tensor{NewFloat32(down, []int{2, 3, 1, 99}, make([]float32, 594)), NewFloat32(up, []int{2, 2, 1, 1}, make([]float32, 4))}, []string{down, "at most 7"}},
		"flat kernel":    {[]*Tensor{NewFloat32(down, []int{2, 3, 0, 3}, nil), NewFloat32(up, []int{2, 2, 1, 1}, make([]float32, 4))}, []string{down}},
		"core of linear": {append(slices.Clone(good), NewFloat32(module+"to_q.lora_mid.weight", []int{2, 2, 3, 3}, make([]float32, 36))), []string{"lora_mid"}},
		"vast core":      {append(tucker(2, 2), NewFloat32("lora_unet_x.lora_mid.weight", []int{2, 2, 500, 1}, make([]float32, 2000))), []string{"lora_mid", "at most 7"}},
		"core's rank":    {append(tucker(2, 3), NewFloat32("lora_unet_x.lora_mid.weight", []int{3, 2, 1, 1}, make([]float32, 6))), []string{"lora_mid", "[3 2 1 1]"}},
		"core alone":     {[]*Tensor{NewFloat32("lora_unet_x.lora_mid.weight", []int{2, 2, 1, 1}, make([]float32, 4))}, []string{"x (down)", "x (up)"}},
		"DoRA":           {append(slices.Clone(good), NewFloat32("lora_unet_x.dora_scale", nil, []float32{1})), []string{"DoRA", "lora_unet_x.dora_scale"}},
		"LoHa":           {[]*Tensor{NewFloat32("lora_unet_x.hada_w1_a", []int{1, 1}, []float32{1})}, []string{"LoHa"}},
		"LoKr":           {[]*Tensor{NewFloat32("lora_unet_x.lokr_w1", []int{1, 1}, []float32{1})}, []string{"LoKr"}},
		"two dialects":   {append(slices.Clone(good), factors("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight")...), []string{"mixes kohya's names (lora_unet_x"}},
		"dots in kohya":  {factors("lora_unet_x.y.lora_down.weight", "lora_unet_x.y.lora_up.weight"), []string{"2 names", "lora_unet_x.y.lora_up.weight"}},
		"NaN as alpha":   {append(slices.Clone(good), NewFloat32(module+"to_q.alpha", nil, []float32{float32(math.NaN())})), []string{"alpha is NaN"}},
		"ranks differ":   {[]*Tensor{good[0], NewFloat32(up, []int{1, 3}, make([]float32, 3))}, []string{down, "[2 3]", "[1 3]"}},
		"rank 0":         {[]*Tensor{NewFloat32(down, []int{0, 3}, nil), NewFloat32(up, []int{2, 0}, nil)}, []string{module + "to_q", "rank 0"}},
		"not a number":   {[]*Tensor{good[0], NewFloat32(up, []int{1, 2}, []float32{1, float32(math.NaN())})}, []string{module + "to_q", "NaN"}},
		"two alphas":     {append(slices.Clone(good), NewFloat32(module+"to_q.alpha", []int{2}, []float32{1, 1})), []string{module + "to_q.alpha", "2 values"}},
		"infinite alpha": {append(slices.Clone(good), NewFloat32(module+"to_q.alpha", nil, []float32{float32(math.Inf(1))})), []string{"alpha"}},
		"under two names": {
			append(slices.Clone(good), NewFloat32("unet."+down, []int{2, 3}, make([]float32, 6))),
			[]string{down, "unet." + down, "two names"},
		},
	} {
		_, err := LoRAFrom(sourceOf(t, nil, c.tensors...))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v does not contain %q", name, err, want)
			}
		}
	}
}

func TestWriteLoRAFoldsTheScale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lora.safetensors")
	lora := &LoRA{Layers: []LoRALayer{
		{Module: "a", Down: []float32{1, 2, 3}, Up: []float32{4, 5}, Rank: 1, In: 3, Out: 2, Alpha: 0.5},
		{Module: "b", Down: []float32{1, 2}, Up: []float32{4, 5}, Rank: 2, In: 1, Out: 1, Alpha: 2},
	}}
	if err := WriteLoRA(path, lora, F16, map[string]string{"made by": "a test"}); err != nil {
		t.Fatal(err)
	}
	source, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	want := []string{"unet.a.lora_A.weight", "unet.a.lora_B.weight", "unet.b.lora_A.weight", "unet.b.lora_B.weight"}
	if !slices.Equal(source.Names(), want) || source.Metadata()["format"] != "pt" || source.Metadata()["made by"] != "a test" {
		t.Errorf("wrote %q, %v", source.Names(), source.Metadata())
	}
	if a, err := source.Tensor("unet.a.lora_B.weight"); err != nil || a.DType != F16 || !slices.Equal(a.Shape, []int{2, 1}) {
		t.Errorf("up is %+v, %v", a, err)
	}
	again, err := ReadLoRA(path)
	if err != nil {
		t.Fatal(err)
	}
	a, b := again.Layers[0], again.Layers[1]
	if !slices.Equal(a.Up, []float32{2, 2.5}) || !slices.Equal(a.Down, []float32{1, 2, 3}) || a.Alpha != 1 || !slices.Equal(b.Up, []float32{4, 5}) {
		t.Errorf("read back %+v", again)
	}
	lora.Layers[0].Up = lora.Layers[0].Up[:1]
	if err := WriteLoRA(path, lora, F16, nil); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("inconsistent layer: %v", err)
	}
	lora.Layers = []LoRALayer{again.Layers[0], again.Layers[0]}
	if err := WriteLoRA(path, lora, F16, nil); err == nil {
		t.Error("two layers of one module were written")
	}
}

func TestMergeAddsTheScaledProduct(t *testing.T) {
	lora := &LoRA{Layers: []LoRALayer{
		{Module: "linear", Down: []float32{1, 2, 3, 4, 5, 6}, Up: []float32{1, -1, 0.5, 2}, Rank: 2, In: 3, Out: 2, Alpha: 1},
	}}
	product := []float64{1 - 4, 2 - 5, 3 - 6, 0.5 + 8, 1 + 10, 1.5 + 12} // Up·Down, by hand
	base := []float32{10, 20, 30, 40, 50, 60}
	for _, shape := range [][]int{{2, 3}, {2, 3, 1, 1}} {
		for _, dtype := range []DType{F64, F32, F16, BF16} {
			weight, err := FromFloat32("linear.weight", dtype, shape, base)
			if err != nil {
				t.Fatal(err)
			}
			bias := NewFloat32("linear.bias", []int{2}, []float32{1, 2})
			merged, err := Merge(sourceOf(t, nil, weight, bias), lora, 0.25)
			if err != nil {
				t.Fatal(err)
			}
			got, err := merged.Tensor("linear.weight")
			if err != nil {
				t.Fatal(err)
			}
			var want []float32
			for i, p := range product {
				want = append(want, base[i]+float32(0.25*0.5*p))
			}
			rounded, err := FromFloat32("linear.weight", dtype, shape, want)
			if err != nil {
				t.Fatal(err)
			}
			if got.DType != dtype || !slices.Equal(got.Shape, shape) || !bytes.Equal(got.data, rounded.data) {
				t.Errorf("%s %v: %x, not %x", dtype, got.Shape, got.data, rounded.data)
			}
			if b, err := merged.Tensor("linear.bias"); err != nil || b != bias {
				t.Errorf("the bias changed: %v, %v", b, err)
			}
		}
	}
}

func TestMergeListsWhatDoesNotFit(t *testing.T) {
	layer := func(module string, out int) LoRALayer {
		return LoRALayer{Module: module, Down: []float32{1}, Up: make([]float32, out), Rank: 1, In: 1, Out: out, Alpha: 1}
	}
	integers, err := New("int.weight", I8, []int{1, 1}, []byte{1})
	if err != nil {
		t.Fatal(err)
	}
	base := sourceOf(t, nil, NewFloat32("here.weight", []int{1, 1}, []float32{1}), NewFloat32("conv.weight", []int{1, 1, 1, 3}, make([]float32, 3)), integers)
	_, err = Merge(base, &LoRA{Layers: []LoRALayer{layer("here", 2), layer("absent", 1), layer("lost", 1), layer("conv", 1), layer("int", 1)}}, 1)
	for _, want := range []string{"absent, lost", "here (adapter [2 1], weight F32 [1 1])", "conv (", "int ("} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not contain %q", err, want)
		}
	}
	if _, err := Merge(base, &LoRA{Layers: []LoRALayer{layer("here", 1), layer("here", 1)}}, 1); err == nil {
		t.Error("a module was merged twice")
	}
	if _, err := Merge(base, &LoRA{}, math.NaN()); err == nil {
		t.Error("the strength NaN was accepted")
	}
	half, err := FromFloat32("h.weight", F16, []int{1, 1}, []float32{65504})
	if err != nil {
		t.Fatal(err)
	}
	up := layer("h", 1)
	up.Up[0] = 1000
	merged, err := Merge(sourceOf(t, nil, half), &LoRA{Layers: []LoRALayer{up}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := merged.Tensor("h.weight"); err == nil || !strings.Contains(err.Error(), "beyond the range of F16") {
		t.Errorf("overflow: %v", err)
	}
}

// One of the largest attention weights of Stable Diffusion 1.x.
func BenchmarkMerge(b *testing.B) {
	const n, rank = 1280, 4
	weight := NewFloat32("w.weight", []int{n, n}, make([]float32, n*n))
	base, err := NewSource([]*Tensor{weight}, nil)
	if err != nil {
		b.Fatal(err)
	}
	lora := &LoRA{Layers: []LoRALayer{{Module: "w", Down: make([]float32, rank*n), Up: make([]float32, n*rank), Rank: rank, In: n, Out: n, Alpha: rank}}}
	merged, err := Merge(base, lora, 1)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := merged.Tensor("w.weight"); err != nil {
			b.Fatal(err)
		}
	}
}
