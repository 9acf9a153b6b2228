package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/inspect"
	"github.com/resalign/resalign/weights"
)

const (
	adapterFolder = "../../testdata/lora"
	sdxlModel     = "../../testdata/references/sdxl-small/model"
	sd1Model      = "../../testdata/references/sd1-full/model"
)

func TestLoRAConvertAndMerge(t *testing.T) {
	dir := t.TempDir()
	kohya := filepath.Join(adapterFolder, "kohya-xl.safetensors")
	peft := filepath.Join(dir, "peft")
	r := decode[convertedLoRA](t, succeed(t, "lora", "convert", kohya, peft, "--to", "peft", "--model", sdxlModel, "--json"))
	if r.From != weights.KohyaLoRA || r.To != weights.PEFTLoRA || r.Layers != 24 || r.DType != "F32" || r.Out != peft {
		t.Errorf("the result is %+v", r)
	}
	again := filepath.Join(dir, "again.safetensors")
	if text := succeed(t, "lora", "convert", peft, again, "--to", "kohya"); !strings.Contains(text, "24 layers, F32, from peft to kohya") {
		t.Errorf("convert says %q", text)
	}
	was, errA := os.ReadFile(kohya)
	is, errB := os.ReadFile(again)
	if errA != nil || errB != nil || len(was) > len(is) {
		t.Errorf("%d bytes became %d (%v, %v)", len(was), len(is), errA, errB)
	}
	for _, path := range []string{kohya, peft, again} {
		found := decode[inspect.Found](t, succeed(t, "inspect", path, "--json"))
		if found.LoRA == nil || found.LoRA.Modules != 24 || found.LoRA.Components["text_encoder_2"] != 3 || found.LoRA.Convolutions != 9 {
			t.Errorf("%s is %+v", path, found.LoRA)
		}
	}
	if text := succeed(t, "inspect", kohya); !strings.Contains(text, "kohya, 24 modules (text_encoder 3, text_encoder_2 3, unet 18), rank 1, 2, 3") {
		t.Errorf("inspect says %q", text)
	}

	// Strength 0 leaves every weight as it is; strength 1 does not.
	for strength, same := range map[string]bool{"0": true, "1": false} {
		out := filepath.Join(dir, "merged"+strength)
		merged := decode[mergedLoRA](t, succeed(t, "lora", "merge", "--model", sdxlModel, "--lora", again, "--strength", strength, "--out", out, "--json"))
		if merged.Layers["unet"] != 18 || merged.Layers["text_encoder"] != 3 {
			t.Errorf("merged %+v", merged)
		}
		for _, file := range []string{"unet/diffusion_pytorch_model.safetensors", "text_encoder_2/model.safetensors"} {
			if a, b := tensorBytes(t, filepath.Join(sdxlModel, file)), tensorBytes(t, filepath.Join(out, file)); (a == b) != same {
				t.Errorf("strength %s: %s is the same: %v", strength, file, a == b)
			}
		}
	}
}

// tensorBytes joins the elements of all tensors of a file, in the order of their names.
func tensorBytes(t *testing.T, path string) string {
	t.Helper()
	source, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	tensors, err := weights.ReadAll(source)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, tensor := range tensors {
		data, err := tensor.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(tensor.Name)
		all.Write(data)
	}
	return all.String()
}

func TestLoRARefusals(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	kohya := filepath.Join(adapterFolder, "kohya-xl.safetensors")
	diffusers := filepath.Join(adapterFolder, "diffusers.safetensors")
	for _, c := range []struct {
		code int
		args []string
		want string
	}{
		{exitUsage, []string{"lora", "convert", kohya, out, "--to", "diffusers"}, "give --model"},
		{exitUsage, []string{"lora", "convert", kohya, out, "--to", "ckpt"}, "diffusers, peft or kohya"},
		{exitUsage, []string{"lora", "convert", kohya, "--to", "peft"}, "two paths"},
		{exitUsage, []string{"lora", "merge", "--lora", kohya}, "--model and --out"},
		{exitUsage, []string{"lora", "melt"}, "melt"},
		{exitFailed, []string{"lora", "convert", diffusers, kohya, "--to", "kohya"}, "exists already"},
		{exitFailed, []string{"lora", "convert", out, out, "--to", "kohya"}, "check the path"},
		{exitFailed, []string{"lora", "convert", kohya, out, "--to", "diffusers", "--model", sd1Model}, "second text encoder"},
		{exitFailed, []string{"lora", "merge", "--model", sdxlModel, "--lora", diffusers, "--out", out}, "width 16"},
		{exitUsage, []string{"lora", "merge", "--model", sd1Model, "--lora", diffusers, "--strength", "NaN", "--out", out}, "--strength NaN"},
		{exitFailed, []string{"lora", "merge", "--model", adapterFolder, "--lora", diffusers, "--out", out}, "model_index.json"},
	} {
		fail(t, c.code, c.args, c.want)
		if _, err := os.Lstat(out); err == nil {
			t.Fatalf("%v left something", c.args)
		}
	}
}
