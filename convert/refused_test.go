package convert

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/weights"
)

// edited makes a single file of the model called name and changes its tensors.
func edited(t *testing.T, name string, edit func(all map[string]*weights.Tensor)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "whole.safetensors")
	mustConvert(t, models[name], path, Options{})
	return rewritten(t, path, nil, edit)
}

func rewritten(t *testing.T, path string, metadata map[string]string, edit func(all map[string]*weights.Tensor)) string {
	t.Helper()
	all := fileTensors(t, path)
	edit(all)
	var list []*weights.Tensor
	for name, tensor := range all {
		list = append(list, tensor.Renamed(name))
	}
	out := filepath.Join(filepath.Dir(path), "edited.safetensors")
	if err := weights.Write(out, list, metadata); err != nil {
		t.Fatal(err)
	}
	return out
}

func small(shape ...int) *weights.Tensor {
	n := 1
	for _, dim := range shape {
		n *= dim
	}
	return weights.NewFloat32("", shape, make([]float32, n))
}

func TestBadSingleFiles(t *testing.T) {
	const (
		conv = "model.diffusion_model.input_blocks.0.0.weight"
		text = "cond_stage_model.transformer.text_model."
	)
	for name, test := range map[string]struct {
		model string
		edit  func(all map[string]*weights.Tensor)
		parts []string
	}{
		"missing and unknown": {"sd1", func(all map[string]*weights.Tensor) {
			delete(all, "model.diffusion_model.out.2.weight")
			delete(all, "first_stage_model.encoder.mid.attn_1.q.weight")
			all["model.diffusion_model.out.3.weight"] = small(1)
			all["control_model.zero"] = small(1)
		}, []string{
			"2 tensors missing: first_stage_model.encoder.mid.attn_1.q.weight, model.diffusion_model.out.2.weight",
			"2 tensors not part of this model: control_model.zero, model.diffusion_model.out.3.weight", "edited.safetensors",
		}},
		"wrong shape": {"sd1", func(all map[string]*weights.Tensor) {
			all["first_stage_model.quant_conv.bias"] = small(7)
			all["first_stage_model.decoder.mid.attn_1.k.weight"] = small(8, 8, 1)
		}, []string{"2 tensors of the wrong shape", "quant_conv.bias is [7] instead of [8]", "k.weight is [8 8 1] instead of [8 8 1 1]"}},
		"another architecture": {"sd2", func(all map[string]*weights.Tensor) {
			for name := range all {
				if strings.HasPrefix(name, "model.") {
					all[name] = small(3)
				}
			}
		}, []string{"the architecture is not that of"}},
		"inpainting": {"sd1", func(all map[string]*weights.Tensor) { all[conv] = small(8, 9, 3, 3) }, []string{"9 input channels", "inpainting"}},
		"two families": {
			"sd1", func(all map[string]*weights.Tensor) { all["cond_stage_model.model.ln_final.bias"] = small(16) },
			[]string{"mixes text encoders of the families sd1 and sd2"},
		},
		"two names": {"sd1", func(all map[string]*weights.Tensor) {
			all["cond_stage_model.transformer.final_layer_norm.bias"] = all[text+"final_layer_norm.bias"]
		}, []string{"1 tensors there under two names", text + "final_layer_norm.bias"}},
		"refiner":     {"sdxl", func(all map[string]*weights.Tensor) { all["conditioner.embedders.0.model.ln_final.bias"] = small(1) }, []string{"refiner"}},
		"transformer": {"sd1", func(all map[string]*weights.Tensor) { all["model.diffusion_model.joint_blocks.0.x"] = small(1) }, []string{"Stable Diffusion 3"}},
		"further layer": {"sd2", func(all map[string]*weights.Tensor) {
			all["cond_stage_model.model.transformer.resblocks.3.ln_1.bias"] = small(16)
		}, []string{"resblocks.3.ln_1.bias"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := edited(t, test.model, test.edit)
			refused(t, path, filepath.Join(t.TempDir(), "out"), Options{Base: models[test.model]}, test.parts...)
		})
	}
}

func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole.safetensors")
	mustConvert(t, models["sd2"], whole, Options{})
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	data := content(t, whole)
	lora := filepath.Join(dir, "lora.safetensors")
	if err := weights.Write(lora, []*weights.Tensor{small(1).Renamed("unet.mid_block.attentions.0.proj_in.lora_A.weight")}, nil); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, "stray.safetensors")
	if err := weights.Write(stray, []*weights.Tensor{small(1).Renamed("a")}, nil); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	base := Options{Base: models["sd2"]}
	// Nothing of a model, and yet nothing that is not part of one.
	scale := filepath.Join(dir, "scale.safetensors")
	if err := weights.Write(scale, []*weights.Tensor{small().Renamed("cond_stage_model.logit_scale")}, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, scale, out, base, "scale.safetensors holds no weights of a model")
	none := filepath.Join(dir, "none.safetensors")
	if err := weights.Write(none, nil, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, none, out, base, "none.safetensors holds no tensors")
	escape := filepath.Join(dir, "escape.safetensors")
	if err := weights.Write(escape, []*weights.Tensor{small(1).Renamed("a\x1b[2J\nresalign: all is well")}, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, escape, out, base, `called like "a\x1b[2J\nresalign: all is well"`)
	refused(t, write("cut.safetensors", data[:len(data)-1]), out, base, "cut.safetensors")
	refused(t, write("empty.ckpt", nil), out, base, "empty.ckpt")
	refused(t, write("text.ckpt", []byte("not weights")), out, base, "text.ckpt")
	refused(t, filepath.Join(dir, "absent"), out, base, "absent")
	refused(t, lora, out, base, "adapter")
	refused(t, stray, out, base, "neither", "called like a")
	refused(t, dir, out, Options{}, "model_index.json")
	refused(t, whole, out, Options{Base: whole}, "is not a diffusers directory")
	refused(t, whole, out, Options{Base: models["sd1"]}, "is of the family sd2")
	refused(t, whole, out, Options{}, "the architecture is not that of the published models of the family sd2", "--base")
	refused(t, whole, out, Options{Base: models["sd2"], EMA: true}, "no moving average")
	refused(t, whole, out, Options{Base: models["sd2"], Prediction: diffusion.Epsilon}, "predicts epsilon, but the scheduler of", "v_prediction")
	refused(t, whole, out, Options{Base: models["sd2"], Prediction: "x0"}, `"x0" is not known`)
	refused(t, whole, out, Options{Base: models["sd2"], DType: weights.I64}, "whole numbers")
	refused(t, whole, out, Options{Base: models["sd2"], To: "onnx"}, "no layout")
	refused(t, models["sd1"], out, Options{Base: models["sd1"]}, "--base has no meaning")
	refused(t, models["sd1"], out, Options{EMA: true}, "--ema has no meaning")
}

// A file of Stable Diffusion 2 that does not say what it predicts is not guessed at.
func TestPredictionIsNotGuessed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "whole.safetensors")
	mustConvert(t, models["sd2"], path, Options{})
	silent := rewritten(t, path, nil, func(map[string]*weights.Tensor) {})
	refused(t, silent, filepath.Join(t.TempDir(), "out"), Options{}, "--prediction epsilon", "--prediction v_prediction")
}

func TestOutputsAreNotOverwritten(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there.safetensors")
	if err := os.WriteFile(there, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(dir, "folder")
	if err := os.MkdirAll(filepath.Join(folder, "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	refused(t, models["sd1"], there, Options{}, "exists already")
	if _, err := Convert(t.Context(), models["sd1"], filepath.Join(there, "x"), Options{}); err == nil || !strings.Contains(err.Error(), there) {
		t.Errorf("a folder in a file: %v", err)
	}
	refused(t, models["sd1"], folder, Options{}, "not empty")
	refused(t, models["sd1"], filepath.Join(dir, "a.ckpt"), Options{}, "pickle", ".safetensors")
	refused(t, models["sd1"], filepath.Join(dir, "a.bin"), Options{To: UNetFile}, "pickle")
	refused(t, models["sd1"], filepath.Join(dir, "a"), Options{To: SingleFile}, "ends in .safetensors")
	refused(t, models["sd1"], filepath.Join(dir, "a.safetensors"), Options{To: Diffusers}, "name a folder")
	if string(content(t, there)) != "mine" {
		t.Error("the file that was there has changed")
	}
	model := filepath.Join(dir, "model")
	if err := os.CopyFS(model, os.DirFS(models["sd1"])); err != nil {
		t.Fatal(err)
	}
	refused(t, model, filepath.Join(model, "unet", "copy"), Options{}, "lies inside")
	mustConvert(t, model, filepath.Join(model, "single.safetensors"), Options{})
}

// A conversion that is interrupted between two tensors leaves nothing behind.
func TestInterrupt(t *testing.T) {
	for _, out := range []string{"model", "model.safetensors"} {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Convert(ctx, models["sd1"], filepath.Join(dir, out), Options{Progress: func(done, total int) {
			if done == total/2 {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("error %v", err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v stays behind (%v)", left, err)
		}
	}
}

// A damaged tensor, found only while it is written, leaves nothing behind.
func TestUnreadableTensor(t *testing.T) {
	m, err := read(models["sd1"], Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	broken := errors.New("broken")
	unet := m.tensors["unet"]
	unet[len(unet)/2].Read = func() (*weights.Tensor, error) { return nil, broken }
	for name, write := range map[string]func(context.Context, string, func(int, int)) error{"a.safetensors": m.writeSingle, "b": m.writeFolder, "c.safetensors": m.writeUNet} {
		dir := t.TempDir()
		if err := write(t.Context(), filepath.Join(dir, name), nil); !errors.Is(err, broken) {
			t.Errorf("%s: error %v", name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%v stays behind (%v)", left, err)
		}
	}
}

func TestBadDirectories(t *testing.T) {
	for name, test := range map[string]struct {
		spoil func(dir string) error
		parts []string
	}{
		"no index": {func(dir string) error { return os.Remove(filepath.Join(dir, "model_index.json")) }, []string{"holds no model_index.json"}},
		"bad index": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model_index.json"), []byte("[]"), 0o644)
		}, []string{"not a JSON object"}},
		"another class": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model_index.json"), []byte(`{"_class_name": "FluxPipeline"}`), 0o644)
		}, []string{`_class_name = "FluxPipeline"`}},
		"folder elsewhere": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model_index.json"), []byte(`{"_class_name": "StableDiffusionPipeline", "../x": ["diffusers", "Y"]}`), 0o644)
		}, []string{`"../x" is not the name of a folder`}},
		"no weights": {func(dir string) error {
			return os.Remove(filepath.Join(dir, "vae", "diffusion_pytorch_model.safetensors"))
		}, []string{"found no weights"}},
		"no scheduler": {func(dir string) error { return os.RemoveAll(filepath.Join(dir, "scheduler")) }, []string{"scheduler_config.json"}},
		"no tokenizer": {func(dir string) error { return os.RemoveAll(filepath.Join(dir, "tokenizer")) }, []string{"tokenizer", "cannot be read"}},
		"a loop of links": {func(dir string) error {
			return os.Symlink(filepath.Join("..", "tokenizer"), filepath.Join(dir, "tokenizer", "again"))
		}, []string{"tokenizer"}},
		"wrong weights": {func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, "vae", "diffusion_pytorch_model.safetensors"))
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "unet", "diffusion_pytorch_model.safetensors"), data, 0o644)
		}, []string{"unet/config.json", "tensors missing", "not part of this model"}},
		"inpainting": {func(dir string) error {
			path := filepath.Join(dir, "unet", "config.json")
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, []byte(strings.Replace(string(data), `"in_channels": 4`, `"in_channels": 9`, 1)), 0o644)
		}, []string{"in_channels = 9", "inpainting"}},
	} {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			dir := filepath.Join(tmp, "model")
			if err := os.CopyFS(dir, os.DirFS(models["sd1"])); err != nil {
				t.Fatal(err)
			}
			if err := test.spoil(dir); err != nil {
				t.Fatal(err)
			}
			refused(t, dir, filepath.Join(tmp, "out"), Options{}, test.parts...)
		})
	}
}

// Projections of different types cannot become one tensor, unless all are given one type.
func TestMixedTypesInOneTensor(t *testing.T) {
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "model")
	if err := os.CopyFS(dir, os.DirFS(models["sd2"])); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "text_encoder", "model.safetensors")
	all := fileTensors(t, path)
	var list []*weights.Tensor
	for name, tensor := range all {
		if strings.HasSuffix(name, "layers.1.self_attn.k_proj.weight") {
			wide, err := tensor.As(weights.F32)
			if err != nil {
				t.Fatal(err)
			}
			tensor = wide
		}
		list = append(list, tensor)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := weights.Write(path, list, nil); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, filepath.Join(tmp, "a.safetensors"), Options{}, "k_proj.weight is F32", "--dtype")
	mustConvert(t, dir, filepath.Join(tmp, "b.safetensors"), Options{DType: weights.F32})
	for name, tensor := range fileTensors(t, filepath.Join(tmp, "b.safetensors")) {
		if tensor.DType != weights.F32 {
			t.Fatalf("%s is %s", name, tensor.DType)
		}
	}
}
