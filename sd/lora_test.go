package sd

import (
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
