package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/inspect"
	"github.com/resalign/resalign/verify"
	"github.com/resalign/resalign/weights"
)

func TestInspectModel(t *testing.T) {
	found := decode[inspect.Found](t, succeed(t, "inspect", tinyModel, "--json"))
	p := found.Pipeline
	if found.Kind != "diffusers model" || p == nil || p.Class != "StableDiffusionPipeline" || p.Scheduler != "PNDMScheduler" || p.Prediction != "epsilon" || p.Resolution != 32 {
		t.Fatalf("inspect says %+v %+v", found, p)
	}
	parameters := map[string]int{}
	for _, c := range found.Components {
		if c.Weights != nil {
			parameters[c.Name+" "+c.Class] = c.Weights.Parameters
		}
	}
	if parameters["unet UNet2DConditionModel"] != 792964 || parameters["vae AutoencoderKL"] != 167959 || len(parameters) != 3 {
		t.Errorf("components are %v", parameters)
	}
	unet := decode[inspect.Found](t, succeed(t, "inspect", tinyModel+"/unet", "--json", "--tensors"))
	if len(unet.Components) != 1 || len(unet.Components[0].Weights.List) != 208 {
		t.Errorf("the UNet alone is %+v", unet)
	}
	text := succeed(t, "inspect", tinyModel)
	if !strings.Contains(text, "792,964 parameters") || !strings.Contains(text, "pictures of 32×32") {
		t.Errorf("the text says\n%s", text)
	}
}

func TestInspectFiles(t *testing.T) {
	dir := t.TempDir()
	lora := filepath.Join(dir, "lora.safetensors")
	adapter := &weights.LoRA{Layers: []weights.LoRALayer{{Module: "mid_block.to_q", Down: make([]float32, 6), Up: make([]float32, 8), Rank: 2, In: 3, Out: 4, Alpha: 2}}}
	if err := weights.WriteLoRA(lora, adapter, weights.F16, map[string]string{"made by": "a test\x1b[31m"}); err != nil {
		t.Fatal(err)
	}
	found := decode[inspect.Found](t, succeed(t, "inspect", lora, "--json"))
	if found.LoRA == nil || found.LoRA.Modules != 1 || found.LoRA.Ranks[0] != 2 || found.Weights.DTypes["F16"] != 2 || found.Weights.Metadata["made by"] == "" {
		t.Errorf("the adapter is %+v %+v", found.LoRA, found.Weights)
	}
	if text := succeed(t, "inspect", lora); strings.Contains(text, "\x1b") || !strings.Contains(text, "rank 2, scale 1") {
		t.Errorf("the text says %q", text)
	}
	plain := decode[inspect.Found](t, succeed(t, "inspect", golden+"/schedulers.safetensors", "--json"))
	if plain.Kind != "safetensors file" || plain.Weights.Tensors < 60 || plain.LoRA != nil {
		t.Errorf("the tensors are %+v", plain)
	}
}

// TestVerify compares the schedulers with their reference, as it is and with one number changed.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	only := write(t, filepath.Join(dir, "schedulers.safetensors"), string(read(t, golden, "schedulers.safetensors")))
	write(t, filepath.Join(dir, "index.json"), `{"cases": [{"kind": "schedulers", "tensors": "schedulers.safetensors"}]}`)
	v := decode[verification](t, succeed(t, "verify", "--reference", dir, "--json", "--engine", "go"))
	if !v.OK || len(v.Checks) < 5 || v.Engine == "" {
		t.Errorf("verify says %+v", v)
	}
	source, err := weights.Open(only)
	if err != nil {
		t.Fatal(err)
	}
	tensors, err := weights.ReadAll(source)
	if err != nil {
		t.Fatal(err)
	}
	for i, tensor := range tensors {
		if tensor.Name == "alphas_cumprod" {
			values, err := tensor.Float32()
			if err != nil {
				t.Fatal(err)
			}
			values[500] *= 1.1
			tensors[i] = weights.NewFloat32(tensor.Name, tensor.Shape, values)
		}
	}
	if err := weights.Write(only, tensors, nil); err != nil {
		t.Fatal(err)
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	code, out, errOut := command(t, "verify", "--reference", dir)
	if code != exitFailed || !strings.Contains(out, "OVER") || !strings.Contains(errOut, "resalign: 1 of ") {
		t.Errorf("with a wrong number: exit code %d\n%s%s", code, out, errOut)
	}
}

func TestInfinityInJSON(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	zero := 0.0
	v := verified("dir", e.Description(), verify.Result{Checks: []verify.Check{{Group: "grad", Error: 1 / zero}}})
	if v.OK || v.Checks[0].Error < 1e300 || v.Checks[0].OK {
		t.Errorf("an infinite error becomes %+v", v)
	}
}
