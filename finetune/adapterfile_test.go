package finetune

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// An adapter is the same in every format, and is written again over what was left.
func TestAdapterFormats(t *testing.T) {
	config, err := sd.ReadUNetConfig(filepath.Join(tinyModel, "unet", "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	m := &sd.Model{UNet: sd.NewUNet(config)}
	layers, err := m.AttentionLayers("attn2")
	if err != nil {
		t.Fatal(err)
	}
	adapter, err := sd.NewAdapter(layers, 2, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	factors := adapter.Draw(1, 0.1, 0.1)
	known, err := sd.AdaptableLayers(tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	// Alpha over rank times up times down, of the first row and column.
	change := func(l weights.LoRALayer) float64 {
		sum := 0.0
		for r := range l.Rank {
			sum += float64(l.Up[r]) * float64(l.Down[r*l.In])
		}
		return sum * l.Alpha / float64(l.Rank)
	}
	want := map[string]float64{}
	own, err := adapter.LoRA(factors)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range own.Layers {
		want[l.Module] = change(l)
	}
	dir := t.TempDir()
	for _, format := range append(LoRAFormats(), "") {
		for range 2 {
			path, err := WriteAdapter(dir, format, adapter, factors)
			if err != nil {
				t.Fatalf("%q: %v", format, err)
			}
			info, err := os.Stat(path)
			if err != nil || path != AdapterPath(dir, format) || info.IsDir() != (format == "peft") {
				t.Fatalf("%q is in %s: %v", format, path, err)
			}
			back, err := weights.ReadLoRA(path)
			if err == nil {
				back, err = back.Resolve(known)
			}
			if err != nil {
				t.Fatalf("%q: %v", format, err)
			}
			if len(back.Layers) != len(want) {
				t.Errorf("%q holds %d layers, not %d", format, len(back.Layers), len(want))
			}
			for _, l := range back.Layers {
				if off := change(l) - want[l.Module]; off > 1e-7 || off < -1e-7 {
					t.Errorf("%q: %s changes its first weight by %v, not %v", format, l.Module, change(l), want[l.Module])
				}
			}
		}
	}
	if _, err := WriteAdapter(dir, "safetensors", adapter, factors); err == nil || !strings.Contains(err.Error(), `lora_format: "safetensors" is not known; use diffusers, peft, kohya`) {
		t.Errorf("unknown format: %v", err)
	}
}

func TestFormatOfJobs(t *testing.T) {
	j := DefaultJob(LoRA)
	j.Model, j.Data = "m", "d"
	for format, problem := range map[string]string{"": "", "diffusers": "", "peft": "", "kohya": "", "ckpt": "lora_format"} {
		j.LoRAFormat = format
		var keys []string
		for _, p := range j.Validate() {
			keys = append(keys, p.Key)
		}
		if slices.Contains(keys, "lora_format") != (problem != "") {
			t.Errorf("format %q: problems with %v", format, keys)
		}
	}
	j.Method, j.LoRAFormat = Full, "kohya"
	if problems := j.Validate(); len(problems) != 1 || problems[0].Key != "lora_format" {
		t.Errorf("full fine-tuning saved as kohya's LoRA: %v", problems)
	}
}
