package weights

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const selfAttention = "text_model.encoder.layers.0.self_attn."

func TestLoRANamesOfTextEncoders(t *testing.T) {
	for _, c := range []struct{ down, up, component, module string }{
		{"text_encoder." + selfAttention + "q_proj.lora_A.weight", "text_encoder." + selfAttention + "q_proj.lora_B.weight", LoRATextEncoder, selfAttention + "q_proj"},
		{"text_encoder_2." + selfAttention + "to_out_lora.down.weight", "text_encoder_2." + selfAttention + "to_out_lora.up.weight", LoRATextEncoder2, selfAttention + "out_proj"},
		{"text_encoder." + selfAttention + "k_proj.lora_linear_layer.down.weight", "text_encoder." + selfAttention + "k_proj.lora_linear_layer.up.weight", LoRATextEncoder, selfAttention + "k_proj"},
		{"base_model.model." + selfAttention + "v_proj.lora_A.weight", "base_model.model." + selfAttention + "v_proj.lora_B.weight", LoRATextEncoder, selfAttention + "v_proj"},
		{"lora_te_a_b.lora_down.weight", "lora_te_a_b.lora_up.weight", LoRATextEncoder, "a_b"},
		{"lora_te1_a_b.lora_down.weight", "lora_te1_a_b.lora_up.weight", LoRATextEncoder, "a_b"},
		{"lora_te2_a_b.lora_down.weight", "lora_te2_a_b.lora_up.weight", LoRATextEncoder2, "a_b"},
	} {
		lora, err := LoRAFrom(sourceOf(t, nil, factors(c.down, c.up)...))
		if err != nil {
			t.Errorf("%s: %v", c.down, err)
			continue
		}
		if l := lora.Layers[0]; l.Component != c.component || l.Module != c.module || !slices.Equal(lora.Components(), []string{c.component}) {
			t.Errorf("%s became %s of %q", c.down, l.Module, l.Component)
		}
	}
}

// resolved reads one layer and compares it with a model.
func resolved(t *testing.T, model LoRAModel, names ...string) (*LoRA, error) {
	t.Helper()
	var tensors []*Tensor
	for _, name := range names {
		tensors = append(tensors, factors(name+".lora_down.weight", name+".lora_up.weight")...)
	}
	lora, err := LoRAFrom(sourceOf(t, nil, tensors...))
	if err != nil {
		t.Fatal(err)
	}
	return lora.Resolve(model)
}

func TestResolveLooksNamesUp(t *testing.T) {
	shape := []int{2, 3}
	model := LoRAModel{
		LoRAUNet: {"a.b_c": shape, "a.to_out.0": shape, "conv_in": {2, 3, 1, 1}},
		LoRATextEncoder: {
			selfAttention + "q_proj": shape,
		},
	}
	lora, err := resolved(t, model, "lora_unet_a_b_c", "lora_unet_a_to_out_0", "lora_unet_input_blocks_0_0", "lora_te_"+mangle(selfAttention)+"q_proj")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range lora.Layers {
		got = append(got, l.Component+":"+l.Module)
	}
	if want := []string{":a.b_c", ":a.to_out.0", ":conv_in", LoRATextEncoder + ":" + selfAttention + "q_proj"}; !slices.Equal(got, want) {
		t.Errorf("resolved %v", got)
	}
	// transformers 5 knows no outer module text_model.
	if lora, err = resolved(t, model, "text_encoder."+strings.TrimPrefix(selfAttention, "text_model.")+"q_proj"); err != nil || lora.Layers[0].Module != selfAttention+"q_proj" {
		t.Errorf("without text_model: %v, %v", lora, err)
	}
	for name, c := range map[string]struct {
		names []string
		want  []string
	}{
		"unknown":   {[]string{"lora_unet_a_b_d", "lora_unet_zzz"}, []string{"2 layers that the model lacks", "lora_unet_a_b_d (nearest: a.b_c)", "lora_unet_zzz"}},
		"twice":     {[]string{"lora_unet_conv_in", "lora_unet_input_blocks_0_0"}, []string{`"conv_in" occurs twice`, "lora_unet_input_blocks_0_0"}},
		"encoder 2": {[]string{"lora_te2_x"}, []string{"second text encoder"}},
	} {
		_, err := resolved(t, model, c.names...)
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v does not contain %q", name, err, want)
			}
		}
	}
	ambiguous := LoRAModel{LoRAUNet: {"a.b_c": shape, "a_b.c": shape}}
	if _, err := resolved(t, ambiguous, "lora_unet_a_b_c"); err == nil || !strings.Contains(err.Error(), "both a.b_c and a_b.c") {
		t.Errorf("two modules of one spelling: %v", err)
	}
}

func TestResolveTellsFamiliesApart(t *testing.T) {
	key := "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
	lora := &LoRA{Layers: []LoRALayer{{Module: key, Down: make([]float32, 2048), Up: make([]float32, 1280), Rank: 1, In: 2048, Out: 1280, Alpha: 1}}}
	_, err := lora.Resolve(LoRAModel{LoRAUNet: {key: {1280, 768}}})
	for _, want := range []string{"Stable Diffusion XL", "2048", "Stable Diffusion 1.x", "768"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not contain %q", err, want)
		}
	}
}

// The names that kohya's file of SDXL has for some layers, by hand from the original configuration: three levels of two
// blocks, and a downsampler between two.
func TestOriginalNamesOfSDXL(t *testing.T) {
	for module, want := range map[string]string{
		"down_blocks.0.resnets.1.conv2":                                  "input_blocks.2.0.out_layers.3",
		"down_blocks.0.downsamplers.0.conv":                              "input_blocks.3.0.op",
		"down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj":  "input_blocks.4.1.transformer_blocks.1.ff.net.0.proj",
		"down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0": "input_blocks.8.1.transformer_blocks.9.attn2.to_out.0",
		"mid_block.resnets.1.time_emb_proj":                              "middle_block.2.emb_layers.1",
		"mid_block.attentions.0.proj_in":                                 "middle_block.1.proj_in",
		"up_blocks.0.upsamplers.0.conv":                                  "output_blocks.2.2.conv",
		"up_blocks.1.resnets.2.conv_shortcut":                            "output_blocks.5.0.skip_connection",
		"up_blocks.2.resnets.0.conv1":                                    "output_blocks.6.0.in_layers.2",
	} {
		if got, ok := sdxlLayout.name(module); !ok || got != want {
			t.Errorf("%s is %s, not %s", module, got, want)
		}
	}
	for _, module := range []string{"", "x", "down_blocks.9.resnets.0.conv1", "down_blocks.0.resnets.7.conv1", "down_blocks.0.attentions.0.proj_in", "down_blocks.x.resnets.0.conv1", "mid_block.x.0.conv1", "down_blocks.0.resnets.0.norm1", "down_blocks.0.x.0.conv", "up_blocks.-1.resnets.0.conv1"} {
		if got, ok := sdxlLayout.name(module); ok {
			t.Errorf("%q has the original name %s", module, got)
		}
	}
}

func TestPEFTPatterns(t *testing.T) {
	for _, c := range []struct {
		patterns string
		want     float64 // 0: none
	}{
		{`{"to_q": 4}`, 4},
		{`{"o_q": 4}`, 0},
		{`{"attn1.to_q": 4, "to_q": 5}`, 4},
		{`{"to_q": 5, "attn1.to_q": 4}`, 5}, // the first that matches, as in PEFT
		{`{"attn1_to_q": 4}`, 0},
		{`{"attn..to.q": 4}`, 4}, // dots match any character
		{`{"attn\\d\\.to_[qk]": 4}`, 4},
		{`{"attn": 4}`, 0},
		{`null`, 0},
	} {
		var p peftPatterns
		if err := json.Unmarshal([]byte(c.patterns), &p); err != nil {
			t.Errorf("%s: %v", c.patterns, err)
			continue
		}
		if got, _ := p.find(module + "to_q"); got != c.want {
			t.Errorf("%s gives %g, not %g", c.patterns, got, c.want)
		}
	}
	for _, patterns := range []string{`[]`, `{"a": "b"}`, `{"(": 1}`, `{"a": 1, "a": 2}`, `{"a": 1e999}`, `{"(?=a)": 1}`} {
		if err := json.Unmarshal([]byte(patterns), new(peftPatterns)); err == nil {
			t.Errorf("%s is taken", patterns)
		}
	}
}

func TestPEFTFolders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "adapter_model.safetensors")
	lora := factors("base_model.model."+module+"to_q.lora_A.weight", "base_model.model."+module+"to_q.lora_B.weight")
	if err := Write(path, lora, nil); err != nil {
		t.Fatal(err)
	}
	for config, want := range map[string]string{
		`{"peft_type":"LORA","r":2,"lora_alpha":8}`:        "",
		`{"r":4,"lora_alpha":8}`:                           "rank 2",
		`{"r":4,"rank_pattern":{"to_q":2},"lora_alpha":8}`: "",
		`{"peft_type":"LOHA"}`:                             "LOHA",
		`{"use_dora":true}`:                                "DoRA",
		`{"fan_in_fan_out":true}`:                          "fan_in_fan_out",
		`{"r":2,"lora_alpha":1e400}`:                       "adapter_config.json",
		`{`:                                                "adapter_config.json",
		`{"r":2,"lora_alpha":4,"alpha_pattern":{"to_q":8},"rank_pattern":null}`: "",
	} {
		if err := os.WriteFile(filepath.Join(dir, "adapter_config.json"), []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{dir, path} {
			lora, err := ReadLoRA(at)
			switch {
			case want == "" && (err != nil || lora.Layers[0].Scale() != 4 || lora.Dialect != PEFTLoRA):
				t.Errorf("%s: %+v, %v", config, lora, err)
			case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%s: error %v does not contain %q", config, err, want)
			}
		}
	}
	if _, err := ReadLoRA(t.TempDir()); err == nil || !strings.Contains(err.Error(), "adapter_model.safetensors") {
		t.Errorf("an empty folder: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "lora.safetensors")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLoRA(empty); err == nil || !strings.Contains(err.Error(), empty) {
		t.Errorf("an empty file: %v", err)
	}
}

func TestWritersRefuseWhatCannotBeRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lora")
	mangled, err := LoRAFrom(sourceOf(t, nil, factors("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight")...))
	if err != nil {
		t.Fatal(err)
	}
	strange := &LoRA{Layers: []LoRALayer{{Component: "vae", Module: "a", Down: []float32{1}, Up: []float32{1}, Rank: 1, In: 1, Out: 1, Alpha: 1}}}
	for name, c := range map[string]struct {
		lora *LoRA
		want string
	}{"kohya's name": {mangled, "kohya"}, "component": {strange, "vae"}, "nothing": {&LoRA{}, "no layers"}} {
		for dialect, write := range map[string]func() error{
			"diffusers": func() error { return WriteLoRA(path, c.lora, F32, nil) },
			"kohya":     func() error { return WriteKohyaLoRA(path, c.lora, F32, nil) },
			"peft":      func() error { return WritePEFTLoRA(path, c.lora, F32) },
		} {
			if err := write(); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s as %s: %v", name, dialect, err)
			}
			if _, err := os.Stat(path); err == nil {
				t.Fatalf("%s as %s left a file", name, dialect)
			}
		}
	}
}

// A file of countless unknown layers is refused soon, in a message of bounded length.
func TestManyUnknownLayersAreListedInBounds(t *testing.T) {
	model := LoRAModel{LoRAUNet: {}}
	for i := range 1000 {
		model[LoRAUNet]["down_blocks."+strings.Repeat("x", i%97)+string(rune('a'+i%26))] = []int{1, 1}
	}
	lora := &LoRA{}
	for i := range 100_000 {
		lora.Layers = append(lora.Layers, LoRALayer{Module: "up_blocks." + strings.Repeat("y", i%50), Rank: 1, In: 1, Out: 1, Alpha: 1})
	}
	start := time.Now()
	_, err := lora.Resolve(model)
	if err == nil || len(err.Error()) > 50_000 || !strings.Contains(err.Error(), "100000 layers") || time.Since(start) > 20*time.Second {
		t.Errorf("%d bytes of message after %v", len(err.Error()), time.Since(start))
	}
}

func FuzzLoRANames(f *testing.F) {
	for _, name := range []string{
		"unet." + module + "processor.to_q_lora.down.weight", "base_model.model." + module + "to_q.lora_A.default.weight",
		"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight", "lora_te1_text_model_x.alpha",
		"text_encoder_2." + selfAttention + "to_q_lora.up.weight", "lora_unet_.lora_mid.weight", ".alpha", "_lora.alpha",
	} {
		f.Add(name)
	}
	model := LoRAModel{LoRAUNet: {"down_blocks.0.resnets.0.conv1": {2, 3}}, LoRATextEncoder: {selfAttention + "q_proj": {2, 3}}}
	f.Fuzz(func(t *testing.T, name string) {
		n := parseLoRAName(name)
		if n.part == noPart {
			return
		}
		if n.module == "" || n.dialect == "" || !slices.Contains(loraComponents, n.component) || (n.dialect == KohyaLoRA && strings.Contains(n.module, ".")) {
			t.Fatalf("%q became %+v", name, n)
		}
		sdxlLayout.name(n.module)
		lora := &LoRA{Layers: []LoRALayer{{Component: n.component, Module: n.module, Rank: 1, In: 3, Out: 2, Down: make([]float32, 3), Up: make([]float32, 2), Alpha: 1, mangled: n.dialect == KohyaLoRA, origin: name}}}
		if found, err := lora.Resolve(model); err == nil && model[n.component][found.Layers[0].Module] == nil {
			t.Fatalf("%q is resolved to %q, which the model does not have", name, found.Layers[0].Module)
		}
	})
}

// Whatever a file holds, reading it ends in an adapter that is consistent or in an error.
func FuzzLoRAFile(f *testing.F) {
	for _, name := range []string{"kohya-sd1.safetensors", "tucker.safetensors", "diffusers.safetensors"} {
		data, err := os.ReadFile(filepath.Join("..", "testdata", "lora", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		source, err := parse(&mapping{path: "fuzz", data: data})
		if err != nil {
			return
		}
		lora, err := LoRAFrom(source)
		if err != nil {
			return
		}
		if err := lora.check(); err != nil {
			t.Fatalf("an inconsistent adapter was read: %v", err)
		}
	})
}
