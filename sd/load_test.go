package sd

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

func TestLoadErrors(t *testing.T) {
	e := openEngine(t)
	remove := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	replace := func(file, from, to string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, file)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			changed := bytes.Replace(data, []byte(from), []byte(to), 1)
			if bytes.Equal(changed, data) {
				t.Fatalf("%s does not hold %q", file, from)
			}
			if err := os.WriteFile(path, changed, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		from   string
		damage func(t *testing.T, dir string)
		want   []string
	}{
		"no index":         {tinySD, remove("model_index.json"), []string{"model_index.json", "not a diffusers directory"}},
		"no folder":        {tinySD, remove(""), []string{"cannot open the folder"}},
		"no configuration": {tinySD, remove("unet/config.json"), []string{"unet/config.json"}},
		"no weights":       {tinySD, remove(vaeFile), []string{"vae", "diffusion_pytorch_model.safetensors"}},
		"no tokenizer":     {tinySD, remove("tokenizer"), []string{"tokenizer"}},
		"no scheduler":     {tinySD, remove("scheduler/scheduler_config.json"), []string{"scheduler_config.json"}},
		"no second tower":  {tinySDXL, remove("text_encoder_2"), []string{"text_encoder_2"}},
		"class": {
			tinySD, replace("model_index.json", "StableDiffusionPipeline", "StableDiffusion3Pipeline"),
			[]string{"model_index.json", `"StableDiffusion3Pipeline"`, "StableDiffusionXLPipeline"},
		},
		"class of another family": {tinySD, replace("model_index.json", "StableDiffusionPipeline", "StableDiffusionXLPipeline"), []string{"text_encoder_2"}},
		"context width":           {tinySD, replace("unet/config.json", `"cross_attention_dim": 32`, `"cross_attention_dim": 48`), []string{"cross_attention_dim = 48", "width 32"}},
		"inpainting":              {tinySD, replace("unet/config.json", `"in_channels": 4`, `"in_channels": 9`), []string{"in_channels = 9", "inpainting"}},
		"pooled width": {
			tinySDXL, replace("unet/config.json", `"projection_class_embeddings_input_dim": 34`, `"projection_class_embeddings_input_dim": 35`),
			[]string{"pooled text embedding of width 11", "10"},
		},
		"vocabulary":      {tinySD, replace("text_encoder/config.json", `"vocab_size": 1514`, `"vocab_size": 1513`), []string{"1514 tokens", "1513"}},
		"prediction type": {tinySD, replace("scheduler/scheduler_config.json", `"epsilon"`, `"flow"`), []string{"scheduler_config.json", "prediction_type", "flow"}},
		"truncated": {tinySD, func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, unetFile), 100_000); err != nil {
				t.Fatal(err)
			}
		}, []string{"diffusion_pytorch_model.safetensors"}},
		// One error lists every difference.
		"names and shapes": {tinySD, func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, unetFile), func(tensors map[string]*weights.Tensor) {
				delete(tensors, "conv_in.bias")
				delete(tensors, "mid_block.resnets.0.norm1.weight")
				tensors["spare.a"] = weights.NewFloat32("spare.a", []int{1}, []float32{1})
				tensors["spare.b"] = weights.NewFloat32("spare.b", []int{1}, []float32{1})
				tensors["conv_out.bias"] = weights.NewFloat32("conv_out.bias", []int{5}, make([]float32, 5))
				tensors["conv_norm_out.weight"] = weights.NewFloat32("conv_norm_out.weight", []int{32, 1}, make([]float32, 32))
			})
		}, []string{
			"unet", "2 tensors missing: conv_in.bias, mid_block.resnets.0.norm1.weight", "2 tensors not part of this model: spare.a, spare.b",
			"2 tensors of the wrong shape", "conv_out.bias is [5] instead of [4]", "conv_norm_out.weight is [32 1] instead of [32]",
		}},
		"integers": {tinySD, func(t *testing.T, dir string) {
			rewrite(t, filepath.Join(dir, unetFile), func(tensors map[string]*weights.Tensor) {
				x, err := weights.New("conv_out.bias", weights.I32, []int{4}, make([]byte, 16))
				if err != nil {
					t.Fatal(err)
				}
				tensors["conv_out.bias"] = x
			})
		}, []string{"unet", "conv_out.bias", "I32"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyModel(t, test.from)
			test.damage(t, dir)
			m, err := Load(e, dir)
			if err == nil {
				m.Free()
				t.Fatal("no error")
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %q is not one line that names the place", err)
			}
		})
	}
}

// transformers 5 writes the text encoder without its outer module, and the published files have it: both are one model.
func TestTextEncoderNamesOfBothKinds(t *testing.T) {
	dir := copyModel(t, tinySDXL)
	file := filepath.Join(dir, "text_encoder/model.safetensors")
	renamed := 0
	rewrite(t, file, func(tensors map[string]*weights.Tensor) {
		for _, x := range slices.Collect(maps.Values(tensors)) {
			if strings.HasPrefix(x.Name, "text_model.") {
				t.Fatalf("the model to begin with has the published name %s", x.Name)
			}
			delete(tensors, x.Name)
			x = x.Renamed("text_model." + x.Name)
			tensors[x.Name] = x
			renamed++
		}
	})
	if renamed == 0 {
		t.Fatal("nothing was renamed")
	}
	now, err := load(t, tinySDXL).EncodePrompt(t.Context(), "a photo of a red circle")
	if err != nil {
		t.Fatal(err)
	}
	published, err := load(t, dir).EncodePrompt(t.Context(), "a photo of a red circle")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(now.Context, published.Context) {
		t.Error("the same weights under both names give different embeddings")
	}
}

// Autoencoders saved before diffusers 0.18 have other names for their attention, and its weights as convolutions.
func TestOldAutoencoderNames(t *testing.T) {
	dir := copyModel(t, tinySD)
	renamed := 0
	rewrite(t, filepath.Join(dir, vaeFile), func(tensors map[string]*weights.Tensor) {
		for now, before := range map[string]string{"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"} {
			for _, half := range []string{"encoder", "decoder"} {
				for _, kind := range []string{"weight", "bias"} {
					prefix := half + ".mid_block.attentions.0."
					x := tensors[prefix+now+"."+kind]
					delete(tensors, x.Name)
					shape := x.Shape
					if kind == "weight" {
						shape = append(append([]int(nil), shape...), 1, 1)
					}
					data, err := x.Bytes()
					if err != nil {
						t.Fatal(err)
					}
					old, err := weights.New(prefix+before+"."+kind, x.DType, shape, data)
					if err != nil {
						t.Fatal(err)
					}
					tensors[old.Name] = old
					renamed++
				}
			}
		}
	})
	if renamed != 16 {
		t.Fatalf("%d tensors renamed", renamed)
	}
	now, before := load(t, tinySD), load(t, dir)
	picture := make([]float32, 3*32*32)
	for i := range picture {
		picture[i] = float32(i%17)/8 - 1
	}
	a, err := now.EncodePicture(t.Context(), picture, 32, 32)
	if err != nil {
		t.Fatal(err)
	}
	b, err := before.EncodePicture(t.Context(), picture, 32, 32)
	if err != nil {
		t.Fatal(err)
	}
	if e := relative(b.Mean, a.Mean); e != 0 {
		t.Errorf("latents under the old names differ by %g", e)
	}
}

func TestHalfPrecisionWeightsLoadAsFloat32(t *testing.T) {
	dir := copyModel(t, tinySD)
	rewrite(t, filepath.Join(dir, unetFile), func(tensors map[string]*weights.Tensor) {
		for name, x := range tensors {
			values, err := x.Float32()
			if err != nil {
				t.Fatal(err)
			}
			if tensors[name], err = weights.FromFloat32(name, weights.F16, x.Shape, values); err != nil {
				t.Fatal(err)
			}
		}
	})
	full, half := load(t, tinySD), load(t, dir)
	for i, s := range full.UNetParams.Specs {
		a, err := engine.Values(full.UNetParams.Tensors[i])
		if err != nil {
			t.Fatal(err)
		}
		b, err := engine.Values(half.UNetParams.Tensors[i])
		if err != nil {
			t.Fatal(err)
		}
		if e := relative(b, a); e > 1e-3 {
			t.Errorf("%s differs by %g", s.Name, e)
		}
	}
}
