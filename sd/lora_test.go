package sd

import (
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

// A rank-one adapter of constant factors adds a constant to one matrix and leaves all others alone.
func TestLoadWithLoRA(t *testing.T) {
	const module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
	path := filepath.Join(t.TempDir(), "lora.safetensors")
	write := func(module string) {
		t.Helper()
		layer := weights.LoRALayer{Module: module, Down: slices.Repeat([]float32{0.5}, 32), Up: slices.Repeat([]float32{0.25}, 64), Rank: 1, In: 32, Out: 64, Alpha: 2}
		if err := weights.WriteLoRA(path, &weights.LoRA{Layers: []weights.LoRALayer{layer}}, weights.F32, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(module)
	plain := load(t, tinySD)
	adapted, err := LoadWithLoRA(plain.Engine, tinySD, path)
	if err != nil {
		t.Fatal(err)
	}
	defer adapted.Free()
	for i, s := range plain.UNet.Specs() {
		before, errB := plain.UNetParams.Host(i)
		after, errA := adapted.UNetParams.Host(i)
		if errB != nil || errA != nil {
			t.Fatal(errB, errA)
		}
		want := 0.0
		if s.Name == module+".weight" {
			want = 2 * 0.5 * 0.25
		}
		for k := range before {
			if d := float64(after[k]) - float64(before[k]); math.Abs(d-want) > 1e-6 {
				t.Fatalf("%s changes by %v, not %v", s.Name, d, want)
			}
		}
	}
	write("nowhere.to_q")
	if m, err := LoadWithLoRA(plain.Engine, tinySD, path); err == nil || !strings.Contains(err.Error(), "nowhere.to_q") {
		t.Errorf("an adapter of another model gives %v, %v", m, err)
	}
	if m, err := LoadWithLoRA(plain.Engine, tinySD, path+".missing"); err == nil {
		t.Errorf("a missing adapter gives %v", m)
	}
}

const (
	adapters = "../testdata/lora"
	sd1Full  = "../testdata/references/sd1-full/model"
	sdxl     = "../testdata/references/sdxl-small/model"
)

// changesOf merges an adapter into a model's weights in float64 and returns what it adds, by COMPONENT.MODULE.
func changesOf(t *testing.T, dir string, adapter *weights.LoRA, strength float64) map[string][]float64 {
	t.Helper()
	model, err := AdaptableLayers(dir)
	if err != nil {
		t.Fatal(err)
	}
	if adapter, err = adapter.Resolve(model); err != nil {
		t.Fatal(err)
	}
	changes := map[string][]float64{}
	for _, component := range adapter.Components() {
		var tensors []*weights.Tensor
		for module, shape := range model[component] {
			n := 1
			for _, d := range shape {
				n *= d
			}
			tensor, err := weights.New(module+".weight", weights.F64, shape, make([]byte, 8*n))
			if err != nil {
				t.Fatal(err)
			}
			tensors = append(tensors, tensor)
		}
		base, err := weights.NewSource(tensors, nil)
		if err != nil {
			t.Fatal(err)
		}
		merged, err := weights.Merge(base, adapter.Of(component), strength)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range adapter.Of(component).Layers {
			tensor, err := merged.Tensor(l.Module + ".weight")
			if err != nil {
				t.Fatal(err)
			}
			if changes[componentDir(component)+"."+l.Module], err = tensor.Float64(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return changes
}

// relativeError is the largest difference over the largest value.
func relativeError(got, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	worst, most := 0.0, 0.0
	for i, w := range want {
		worst, most = max(worst, math.Abs(got[i]-w)), max(most, math.Abs(w))
	}
	return worst / most
}

// What diffusers and PEFT make of the same files; scripts/check_lora.py has made both.
func TestAdaptersOfAllDialectsChangeWeightsAsTheirOwnProgramsDo(t *testing.T) {
	for _, c := range []struct {
		file, changes, model string
		dialect              weights.LoRADialect
		layers               int
	}{
		{"kohya-xl.safetensors", "kohya-xl", sdxl, weights.KohyaLoRA, 24},
		{"kohya-sd1.safetensors", "kohya-sd1", sd1Full, weights.KohyaLoRA, 15},
		{"peft", "peft", sd1Full, weights.PEFTLoRA, 12},
		{"peft/adapter_model.safetensors", "peft", sd1Full, weights.PEFTLoRA, 12},
		{"diffusers.safetensors", "peft", sd1Full, weights.DiffusersLoRA, 12},
		{"tucker.safetensors", "tucker", sd1Full, weights.KohyaLoRA, 1},
	} {
		adapter, err := weights.ReadLoRA(filepath.Join(adapters, c.file))
		if err != nil {
			t.Error(err)
			continue
		}
		if adapter.Dialect != c.dialect || len(adapter.Layers) != c.layers {
			t.Errorf("%s: %d layers of dialect %s", c.file, len(adapter.Layers), adapter.Dialect)
		}
		want, err := weights.Open(filepath.Join(adapters, c.changes+".changes.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		got := changesOf(t, c.model, adapter, 1)
		if !slices.Equal(slices.Sorted(maps.Keys(got)), want.Names()) {
			t.Errorf("%s changes %v", c.file, slices.Sorted(maps.Keys(got)))
		}
		for _, name := range want.Names() {
			tensor, err := want.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			values, err := tensor.Float64()
			if err != nil {
				t.Fatal(err)
			}
			if e := relativeError(got[name], values); !(e <= 1e-6) {
				t.Errorf("%s: the change of %s differs by %.1e", c.file, name, e)
			}
		}
		if err := want.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Written in each dialect and read again, an adapter changes the same weights by the same numbers.
func TestDialectsAreRewrittenWithoutLoss(t *testing.T) {
	for file, model := range map[string]string{"kohya-xl.safetensors": sdxl, "kohya-sd1.safetensors": sd1Full, "peft": sd1Full, "tucker.safetensors": sd1Full} {
		layers, err := AdaptableLayers(model)
		if err != nil {
			t.Fatal(err)
		}
		first, err := weights.ReadLoRA(filepath.Join(adapters, file))
		if err != nil {
			t.Fatal(err)
		}
		if first, err = first.Resolve(layers); err != nil {
			t.Fatal(err)
		}
		for dialect, write := range map[weights.LoRADialect]func(path string) error{
			weights.KohyaLoRA:     func(path string) error { return weights.WriteKohyaLoRA(path, first, weights.F32, nil) },
			weights.PEFTLoRA:      func(path string) error { return weights.WritePEFTLoRA(path, first, weights.F32) },
			weights.DiffusersLoRA: func(path string) error { return weights.WriteLoRA(path, first, weights.F32, nil) },
		} {
			path := filepath.Join(t.TempDir(), "adapter")
			if err := write(path); err != nil {
				t.Fatal(err)
			}
			second, err := weights.ReadLoRA(path)
			if err != nil {
				t.Error(err)
				continue
			}
			if second.Dialect != dialect {
				t.Errorf("%s as %s is read as %s", file, dialect, second.Dialect)
			}
			if second, err = second.Resolve(layers); err != nil {
				t.Error(err)
				continue
			}
			for i, a := range first.Layers {
				b := second.Layers[i]
				folded := dialect == weights.DiffusersLoRA && a.Scale() != 1
				if a.Component != b.Component || a.Module != b.Module || a.Kernel != b.Kernel || !slices.Equal(a.Down, b.Down) ||
					!folded && (a.Alpha != b.Alpha || !slices.Equal(a.Up, b.Up)) {
					t.Errorf("%s as %s: %s became %s of %s, alpha %g instead of %g", file, dialect, a.Module, b.Module, b.Component, b.Alpha, a.Alpha)
				}
			}
			want, got := changesOf(t, model, first, 0.5), changesOf(t, model, second, 0.5)
			for name := range want {
				if e := relativeError(got[name], want[name]); !(e <= 2e-7) {
					t.Errorf("%s as %s: the change of %s differs by %.1e", file, dialect, name, e)
				}
			}
		}
	}
}

// Kohya's own file of SDXL comes out as it went in: names, shapes, factors and alphas.
func TestKohyaFileIsWrittenAsItWasRead(t *testing.T) {
	for file, model := range map[string]string{"kohya-xl.safetensors": sdxl, "kohya-sd1.safetensors": sd1Full} {
		layers, err := AdaptableLayers(model)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(adapters, file)
		adapter, err := weights.ReadLoRA(path)
		if err != nil {
			t.Fatal(err)
		}
		if adapter, err = adapter.Resolve(layers); err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "lora.safetensors")
		if err := weights.WriteKohyaLoRA(out, adapter, adapter.DType, nil); err != nil {
			t.Fatal(err)
		}
		before, after := readTensors(t, path), readTensors(t, out)
		if !slices.Equal(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after))) {
			t.Errorf("%s: %v became %v", file, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
			continue
		}
		for name, x := range before {
			a, errA := x.Bytes()
			b, errB := after[name].Bytes()
			if err := errors.Join(errA, errB); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(a, b) || !slices.Equal(x.Shape, after[name].Shape) {
				t.Errorf("%s: %s changed", file, name)
			}
		}
	}
}

// A merged model on disk, and one that wears the adapter, are the same; so is what a worn adapter saves.
func TestMergeLoRAAndLoadWithLoRAAgree(t *testing.T) {
	adapter, err := weights.ReadLoRA(filepath.Join(adapters, "kohya-xl.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	merged := filepath.Join(t.TempDir(), "merged")
	changed, err := MergeLoRA(sdxl, adapter, 1, merged)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"unet": 18, "text_encoder": 3, "text_encoder_2": 3}; !maps.Equal(changed, want) {
		t.Errorf("changed %v", changed)
	}
	onDisk := load(t, merged)
	plain, err := Load(onDisk.Engine, sdxl)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Free()
	worn, err := LoadWithLoRA(onDisk.Engine, sdxl, filepath.Join(adapters, "kohya-xl.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer worn.Free()
	saved := filepath.Join(t.TempDir(), "saved")
	if err := worn.Save(saved, worn.UNetParams); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"text_encoder", "text_encoder_2"} {
		a, errA := plain.ComponentHash(name)
		b, errB := worn.ComponentHash(name)
		if errA != nil || errB != nil || a == b {
			t.Errorf("%s: embeddings with and without the adapter share the hash %s (%v, %v)", name, a, errA, errB)
		}
	}
	for _, file := range []string{unetFile, "text_encoder/model.safetensors", "text_encoder_2/model.safetensors"} {
		a, b := readTensors(t, filepath.Join(merged, file)), readTensors(t, filepath.Join(saved, file))
		original := readTensors(t, filepath.Join(sdxl, file))
		if len(a) != len(original) || len(b) != len(original) {
			t.Errorf("%s: %d tensors became %d and %d", file, len(original), len(a), len(b))
		}
		differ := 0
		for name, tensor := range original {
			was, errO := tensor.Bytes()
			x, errX := a[name].Bytes()
			y, errY := b[name].Bytes()
			if err := errors.Join(errO, errX, errY); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(x, y) || a[name].DType != tensor.DType || !slices.Equal(a[name].Shape, tensor.Shape) {
				t.Errorf("%s: %s is not the same in both", file, name)
			}
			if !slices.Equal(was, x) {
				differ++
			}
		}
		if want := changed[filepath.Dir(file)]; differ != want {
			t.Errorf("%s: %d weights changed, not %d", file, differ, want)
		}
	}
	tower := func(m *Model) []float32 {
		e, err := m.EncodePrompt(t.Context(), "a dog")
		if err != nil {
			t.Fatal(err)
		}
		return e.Context
	}
	if !slices.Equal(tower(onDisk), tower(worn)) || slices.Equal(tower(worn), tower(plain)) {
		t.Error("the text encoders do not wear the adapter")
	}
	if _, err := os.Stat(filepath.Join(merged, "vae", "config.json")); err != nil {
		t.Error(err)
	}
	if _, err := MergeLoRA(sdxl, adapter, 1, merged); err == nil {
		t.Error("a folder with a model in it was written to")
	}
}

func TestAdaptersOfOtherModelsAreRefused(t *testing.T) {
	read := func(file string) *weights.LoRA {
		adapter, err := weights.ReadLoRA(filepath.Join(adapters, file))
		if err != nil {
			t.Fatal(err)
		}
		return adapter
	}
	xl := read("kohya-xl.safetensors")
	other := read("kohya-sd1.safetensors")
	for _, l := range []int{0, 1} {
		other.Layers[l].Module += "x"
	}
	for name, c := range map[string]struct {
		adapter *weights.LoRA
		model   string
		want    []string
	}{
		"two encoders": {xl, sd1Full, []string{"second text encoder", "Stable Diffusion XL", "only one"}},
		"other width":  {xl.Of(weights.LoRAUNet), sd1Full, []string{"width 20", "width 16", "family"}},
		"the reverse":  {read("peft").Of(weights.LoRAUNet), sdxl, []string{"width 16", "width 20"}},
		"other names":  {other, sd1Full, []string{"2 layers that the model lacks", "(nearest: down_blocks."}},
		"other sizes":  {read("tucker.safetensors"), tinySD, []string{"lora_unet_mid_block_resnets_0_conv1 (adapter [12 12 3 3], weight [64 64 3 3])"}},
	} {
		_, err := MergeLoRA(c.model, c.adapter, 1, filepath.Join(t.TempDir(), "never"))
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v does not contain %q", name, err, want)
			}
		}
	}
}

func TestFeedForwardTargets(t *testing.T) {
	m := load(t, tinySD)
	attention, err := m.AttentionLayers()
	if err != nil {
		t.Fatal(err)
	}
	both, err := m.AttentionLayers("attention", FeedForward)
	if err != nil || len(both) != len(attention)*5/4 {
		t.Fatalf("%d attention layers and feed-forward layers are %d: %v", len(attention), len(both), err)
	}
	only, err := m.AttentionLayers(FeedForward)
	if err != nil || len(only) != len(attention)/4 || !strings.HasSuffix(only[0].Path, ".ff.net.0.proj") || !strings.HasSuffix(only[1].Path, ".ff.net.2") {
		t.Errorf("feed-forward layers are %v: %v", only, err)
	}
	// The layers are really the model's: merging on the device is what the file's merge is.
	a, err := NewAdapter(both, 2, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	factors := a.Draw(1, 0.1, 0.1)
	defer factors.Free()
	merged, made, err := m.Merge(m.UNetParams, a, factors)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(made...)
	lora, err := a.LoRA(factors)
	if err != nil {
		t.Fatal(err)
	}
	changes := changesOf(t, tinySD, lora, 1)
	for i, s := range m.UNet.Specs() {
		before, errB := m.UNetParams.Host(i)
		after, errA := merged.Host(i)
		if err := errors.Join(errB, errA); err != nil {
			t.Fatal(err)
		}
		change := changes["unet."+strings.TrimSuffix(s.Name, ".weight")]
		for k := range before {
			want := float64(before[k])
			if change != nil {
				want += change[k]
			}
			if math.Abs(float64(after[k])-want) > 1e-6 {
				t.Fatalf("%s: element %d becomes %g, not %g", s.Name, k, after[k], want)
			}
		}
	}
}
