package weights

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const golden = "../testdata/golden"

// Reference files come from another writer; every tensor must survive being written again.
func TestReferenceFilesRoundTrip(t *testing.T) {
	files := 0
	err := filepath.WalkDir(golden, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".safetensors" {
			return err
		}
		files++
		source, err := Open(path)
		if err != nil {
			return err
		}
		defer source.Close()
		tensors, err := ReadAll(source)
		if err != nil {
			return err
		}
		again := filepath.Join(t.TempDir(), d.Name())
		if err := Write(again, tensors, source.Metadata()); err != nil {
			return err
		}
		copied, err := Open(again)
		if err != nil {
			return err
		}
		defer copied.Close()
		if !slices.Equal(copied.Names(), source.Names()) {
			t.Errorf("%s: the names differ", path)
		}
		for _, want := range tensors {
			got, err := copied.Tensor(want.Name)
			if err != nil {
				return err
			}
			a, _ := want.Bytes()
			b, _ := got.Bytes()
			if got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) || !bytes.Equal(a, b) {
				t.Errorf("%s: %q differs", path, want.Name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 6 {
		t.Errorf("only %d reference files in %s", files, golden)
	}
}

// testdata/torch.safetensors was written by the safetensors library; this package's writer makes the same bytes.
func TestWriteMatchesTheReferenceWriter(t *testing.T) {
	const path = "testdata/torch.safetensors"
	source, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	tensors, err := ReadAll(source)
	if err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again.safetensors")
	if err := Write(again, tensors, source.Metadata()); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile(path)
	got, _ := os.ReadFile(again)
	if len(want) == 0 || !bytes.Equal(got, want) {
		t.Errorf("wrote\n%q\ninstead of\n%q", got, want)
	}
}

func TestReferenceComponentsOpen(t *testing.T) {
	for dir, want := range map[string]struct{ base, name string }{
		"unet":         {"diffusion_pytorch_model", "conv_in.weight"},
		"vae":          {"diffusion_pytorch_model", "decoder.conv_in.weight"},
		"text_encoder": {"model", "text_model.final_layer_norm.weight"},
	} {
		source, err := OpenComponent(filepath.Join(golden, "tiny-sd", dir), want.base)
		if err != nil {
			t.Fatal(err)
		}
		tensor, err := source.Tensor(want.name)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := tensor.Float32(); err != nil || len(v) != tensor.Elements() || len(v) == 0 {
			t.Errorf("%s: %s has %d values, %v", dir, want.name, len(v), err)
		}
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	}
}

// The LoRA factors of the reference step use the names of diffusers' attention processors.
func TestReferenceLoRAFitsItsModel(t *testing.T) {
	all, err := Open(filepath.Join(golden, "resalign-tiny-sd.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	var theta []*Tensor
	for _, name := range all.Names() {
		if factor, ok := strings.CutPrefix(name, "theta."); ok {
			tensor, err := all.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			theta = append(theta, tensor.Renamed(factor))
		}
	}
	source, err := NewSource(theta, nil)
	if err != nil {
		t.Fatal(err)
	}
	lora, err := LoRAFrom(source)
	if err != nil {
		t.Fatal(err)
	}
	if len(lora.Layers) == 0 || 2*len(lora.Layers) != len(theta) {
		t.Fatalf("%d factors made %d layers", len(theta), len(lora.Layers))
	}
	unet, err := OpenComponent(filepath.Join(golden, "tiny-sd", "unet"), "diffusion_pytorch_model")
	if err != nil {
		t.Fatal(err)
	}
	defer unet.Close()
	merged, err := Merge(unet, lora, 1)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for _, name := range unet.Names() {
		before, err := unet.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		after, err := merged.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := before.Bytes()
		b, _ := after.Bytes()
		if !bytes.Equal(a, b) {
			changed++
		}
	}
	if changed != len(lora.Layers) {
		t.Errorf("%d layers changed %d weights", len(lora.Layers), changed)
	}
}
