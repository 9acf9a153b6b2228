package convert

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/tokenizer"
	"github.com/resalign/resalign/weights"
)

func leftOut(r *Result) map[string]int {
	all := map[string]int{}
	for _, l := range r.LeftOut {
		all[l.What] = l.Tensors
	}
	return all
}

// What single files carry beside the model is left out and listed; nothing of it changes the model.
func TestUnneededTensors(t *testing.T) {
	extra := []string{
		"betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "model_ema.decay", "model_ema.num_updates",
		"cond_stage_model.transformer.text_model.embeddings.position_ids", "cond_stage_model.logit_scale",
		"model_ema.diffusion_modelout2bias", "optimizer_states.0.exp_avg",
	}
	path := edited(t, "sd1", func(all map[string]*weights.Tensor) {
		for _, name := range extra {
			all[name] = small(2)
		}
	})
	out := filepath.Join(t.TempDir(), "out")
	r := mustConvert(t, path, out, Options{Base: models["sd1"]})
	sameTensors(t, tensorsOf(t, out), tensorsOf(t, models["sd1"]))
	total := 0
	for _, n := range leftOut(r) {
		total += n
	}
	if total != len(extra) || len(r.LeftOut) != 5 || leftOut(r)["buffers of the noise schedule"] != 5 {
		t.Errorf("left out: %+v", r.LeftOut)
	}
}

// The single file of Stable Diffusion 2 has one layer of the text encoder more than its diffusers directory.
func TestLastLayerOfOpenCLIP(t *testing.T) {
	path := edited(t, "sd2", func(all map[string]*weights.Tensor) {
		for name := range maps.Clone(all) {
			if tail, ok := strings.CutPrefix(name, "cond_stage_model.model.transformer.resblocks.1."); ok {
				all["cond_stage_model.model.transformer.resblocks.2."+tail] = small(1)
			}
		}
		all["cond_stage_model.model.text_projection"] = small(16, 16)
		all["cond_stage_model.model.logit_scale"] = small()
	})
	out := filepath.Join(t.TempDir(), "out")
	r := mustConvert(t, path, out, Options{Base: models["sd2"], Prediction: diffusion.VPrediction})
	sameTensors(t, tensorsOf(t, out), tensorsOf(t, models["sd2"]))
	if got := leftOut(r); got["the text encoder's last layer, which Stable Diffusion 2 does not use"] != 12 || len(got) != 2 {
		t.Errorf("left out: %+v", r.LeftOut)
	}
	back := mustConvert(t, out, filepath.Join(t.TempDir(), "a.safetensors"), Options{})
	if !slices.ContainsFunc(back.Notes, func(n string) bool { return strings.Contains(n, "last layer") }) {
		t.Errorf("nobody says that the layer is missing: %v", back.Notes)
	}
}

func TestMovingAverage(t *testing.T) {
	average := map[string]*weights.Tensor{}
	path := edited(t, "sd1", func(all map[string]*weights.Tensor) {
		for name, tensor := range maps.Clone(all) {
			if strings.HasPrefix(name, unetPrefix) {
				n := tensor.Elements()
				values := slices.Repeat([]float32{0.5}, n)
				a, err := weights.FromFloat32(name, weights.F16, tensor.Shape, values)
				if err != nil {
					t.Fatal(err)
				}
				all[averageName(name)] = a
				average[name] = a
			}
		}
	})
	dir := t.TempDir()
	ours := filepath.Join(dir, "ema.safetensors")
	r := mustConvert(t, path, ours, Options{Base: models["sd1"], EMA: true})
	all := fileTensors(t, ours)
	unet := map[string]*weights.Tensor{}
	for name, tensor := range all {
		if strings.HasPrefix(name, unetPrefix) {
			unet[name] = tensor
		}
	}
	sameTensors(t, unet, average)
	if leftOut(r)["the UNet's last weights, in whose place their moving average is taken"] != len(average) {
		t.Errorf("left out: %+v", r.LeftOut)
	}
	plain := mustConvert(t, path, filepath.Join(dir, "plain.safetensors"), Options{Base: models["sd1"]})
	if leftOut(plain)["the moving average of the UNet (--ema takes it instead)"] != len(average) {
		t.Errorf("left out: %+v", plain.LeftOut)
	}
}

func TestUNetAlone(t *testing.T) {
	for name, dir := range models {
		tmp := t.TempDir()
		file, folder := filepath.Join(tmp, "unet.safetensors"), filepath.Join(tmp, "out")
		mustConvert(t, dir, file, Options{To: UNetFile})
		got := map[string]*weights.Tensor{}
		for key, tensor := range fileTensors(t, file) {
			got["unet/"+key] = tensor
		}
		want := tensorsOf(t, dir)
		maps.DeleteFunc(want, func(key string, _ *weights.Tensor) bool { return !strings.HasPrefix(key, "unet/") })
		sameTensors(t, got, want)
		r := mustConvert(t, file, folder, Options{Base: dir})
		sameTensors(t, tensorsOf(t, folder), tensorsOf(t, dir))
		if r.From != UNetFile || r.To != Diffusers {
			t.Errorf("%s: %+v", name, r)
		}
		refused(t, file, filepath.Join(tmp, "x"), Options{}, "--base")
		refused(t, file, filepath.Join(tmp, "x"), Options{Base: dir, EMA: true}, "--ema has no meaning")
		other := models["sd1"]
		if name == "sd1" {
			other = models["sd2"]
		}
		refused(t, file, filepath.Join(tmp, "x"), Options{Base: other}, "unet/config.json")
	}
}

// A file without text encoder and autoencoder gets them from the base.
func TestPartsFromTheBase(t *testing.T) {
	path := edited(t, "sdxl", func(all map[string]*weights.Tensor) {
		maps.DeleteFunc(all, func(name string, _ *weights.Tensor) bool { return !strings.HasPrefix(name, unetPrefix) })
	})
	out := filepath.Join(t.TempDir(), "out")
	r := mustConvert(t, path, out, Options{Base: models["sdxl"]})
	sameTensors(t, tensorsOf(t, out), tensorsOf(t, models["sdxl"]))
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "vae, text_encoder, text_encoder_2") {
		t.Errorf("notes: %v", r.Notes)
	}
	refused(t, path, filepath.Join(t.TempDir(), "out"), Options{}, "no text encoder", "--base")
}

// Earlier versions of diffusers called the autoencoder's attention otherwise, or kept it as convolutions, and saved the
// text encoder's position numbers.
func TestOldNames(t *testing.T) {
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "model")
	if err := os.CopyFS(dir, os.DirFS(models["sd1"])); err != nil {
		t.Fatal(err)
	}
	change := func(path string, edit func(all map[string]*weights.Tensor)) {
		all := fileTensors(t, path)
		edit(all)
		var list []*weights.Tensor
		for name, tensor := range all {
			list = append(list, tensor.Renamed(name))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := weights.Write(path, list, nil); err != nil {
			t.Fatal(err)
		}
	}
	renamed := 0
	change(filepath.Join(dir, "vae", "diffusion_pytorch_model.safetensors"), func(all map[string]*weights.Tensor) {
		for name, tensor := range maps.Clone(all) {
			for now, before := range map[string]string{".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."} {
				if !strings.Contains(name, "attentions.0"+now) {
					continue
				}
				if len(tensor.Shape) == 2 {
					conv, err := tensor.Reshaped(tensor.Shape[0], tensor.Shape[1], 1, 1)
					if err != nil {
						t.Fatal(err)
					}
					tensor = conv
				}
				delete(all, name)
				all[strings.Replace(name, now, before, 1)] = tensor
				renamed++
			}
		}
	})
	if renamed != 16 {
		t.Fatalf("%d tensors were renamed", renamed)
	}
	change(filepath.Join(dir, "text_encoder", "model.safetensors"), func(all map[string]*weights.Tensor) {
		all["text_model.embeddings.position_ids"] = small(1, 77)
	})
	out := filepath.Join(tmp, "out")
	r := mustConvert(t, dir, out, Options{})
	sameTensors(t, tensorsOf(t, out), tensorsOf(t, models["sd1"]))
	if leftOut(r)[positionIDs] != 1 {
		t.Errorf("left out: %+v", r.LeftOut)
	}
	change(filepath.Join(dir, "vae", "diffusion_pytorch_model.safetensors"), func(all map[string]*weights.Tensor) {
		all["encoder.mid_block.attentions.0.to_q.bias"] = all["encoder.mid_block.attentions.0.query.bias"]
	})
	refused(t, dir, filepath.Join(tmp, "x"), Options{}, "under two names", "query.bias and encoder.mid_block.attentions.0.to_q.bias")
}

func TestTypes(t *testing.T) {
	tmp := t.TempDir()
	want := tensorsOf(t, models["sd1-tiny"]) // F32
	for _, dtype := range []weights.DType{weights.F16, weights.BF16} {
		out := filepath.Join(tmp, dtype.String())
		r := mustConvert(t, models["sd1-tiny"], out, Options{DType: dtype})
		got := tensorsOf(t, out)
		rounded := map[string]*weights.Tensor{}
		var bytes int64
		for name, tensor := range want {
			half, err := tensor.As(dtype)
			if err != nil {
				t.Fatal(err)
			}
			rounded[name] = half
			bytes += int64(2 * tensor.Elements())
		}
		sameTensors(t, got, rounded)
		if r.Bytes != bytes {
			t.Errorf("%d bytes were written, not %d", r.Bytes, bytes)
		}
	}
	path := edited(t, "sd1-tiny", func(all map[string]*weights.Tensor) {
		all["model.diffusion_model.out.2.bias"] = weights.NewFloat32("", []int{4}, []float32{1, 2, 3, 1e30})
	})
	refused(t, path, filepath.Join(tmp, "x"), Options{Base: models["sd1-tiny"], DType: weights.F16}, path+": tensor", "out.2.bias", "beyond the range of F16")
}

// All else in a directory is copied as it is, folders of components without weights of this program included.
func TestOtherFolders(t *testing.T) {
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "model")
	if err := os.CopyFS(dir, os.DirFS(models["sd1"])); err != nil {
		t.Fatal(err)
	}
	index := string(content(t, filepath.Join(dir, "model_index.json")))
	index = strings.Replace(index, `"safety_checker": [
    null,
    null
  ]`, `"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]`, 1)
	checker := bytes.Repeat([]byte("checker"), 1<<18) // more than a configuration may have
	for path, text := range map[string][]byte{"model_index.json": []byte(index), "safety_checker/pytorch_model.bin": checker, "unet/notes.txt": []byte("x"), "v1.ckpt": []byte("y")} {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(tmp, "out")
	mustConvert(t, dir, out, Options{})
	if !bytes.Equal(content(t, filepath.Join(out, "safety_checker/pytorch_model.bin")), checker) || string(content(t, filepath.Join(out, "model_index.json"))) != index {
		t.Error("a file is not the same")
	}
	for _, path := range []string{"unet/notes.txt", "v1.ckpt"} {
		if _, err := os.Stat(filepath.Join(out, path)); err == nil {
			t.Errorf("%s was copied", path)
		}
	}
}

// Everything that a single file does not hold comes with the program.
func TestPresets(t *testing.T) {
	for _, test := range []struct {
		family     Family
		prediction diffusion.PredictionType
		zeroSNR    bool
		scheduler  string
		pixels     int
		padding    []int32
	}{
		{SD1, diffusion.Epsilon, false, "PNDMScheduler", 512, []int32{49407}},
		{SD1, diffusion.VPrediction, false, "PNDMScheduler", 512, []int32{49407}},
		{SD2, diffusion.Epsilon, false, "PNDMScheduler", 512, []int32{0}},
		{SD2, diffusion.VPrediction, false, "DDIMScheduler", 768, []int32{0}},
		{SDXL, diffusion.Epsilon, false, "EulerDiscreteScheduler", 1024, []int32{49407, 0}},
		{SDXL, diffusion.VPrediction, true, "EulerDiscreteScheduler", 1024, []int32{49407, 0}},
	} {
		files, err := presetOf(test.family, test.prediction)
		if err != nil {
			t.Fatal(err)
		}
		m := &model{settings: settings{"preset", files}, preset: true, prediction: test.prediction, zeroSNR: test.zeroSNR}
		if m.arch, err = m.settings.readArchitecture(); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := m.writeSettings(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		written := settings{dir, os.DirFS(dir)}
		a, err := written.readArchitecture()
		if err != nil {
			t.Fatal(err)
		}
		if a.family != test.family || a.unet.SampleSize*a.vae.Downscale() != test.pixels || a.vae.SampleSize != test.pixels {
			t.Errorf("%s %s: family %s, %d pixels", test.family, test.prediction, a.family, a.unet.SampleSize*a.vae.Downscale())
		}
		c, err := diffusion.LoadConfig(filepath.Join(dir, "scheduler", "scheduler_config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := diffusion.NewSchedule(c); err != nil {
			t.Error(err)
		}
		if c.Class != test.scheduler || c.PredictionType != test.prediction || c.RescaleBetasZeroSNR != test.zeroSNR {
			t.Errorf("%s %s: the scheduler is %+v", test.family, test.prediction, c)
		}
		var index map[string]any
		if err := json.Unmarshal(content(t, filepath.Join(dir, "model_index.json")), &index); err != nil {
			t.Fatal(err)
		}
		if pair, ok := index["scheduler"].([]any); !ok || pair[1] != test.scheduler {
			t.Errorf("model_index.json names the scheduler %v", index["scheduler"])
		}
		for i, id := range test.padding {
			tok, err := tokenizer.Load(filepath.Join(dir, []string{"tokenizer", "tokenizer_2"}[i]))
			if err != nil {
				t.Fatal(err)
			}
			if tok.PadID() != id {
				t.Errorf("%s: tokenizer %d fills up with %d", test.family, i+1, tok.PadID())
			}
		}
	}
}

// What the UNet predicts is found in the metadata and in the marks of the family SDXL; the user's word counts more.
func TestPrediction(t *testing.T) {
	for name, test := range map[string]struct {
		family   Family
		metadata map[string]string
		marks    []string
		said     diffusion.PredictionType
		want     diffusion.PredictionType
		zeroSNR  bool
	}{
		"sd1":            {family: SD1, want: diffusion.Epsilon},
		"sd2 by file":    {family: SD2, metadata: map[string]string{"modelspec.prediction_type": "v"}, want: diffusion.VPrediction},
		"sd2 by file, ε": {family: SD2, metadata: map[string]string{"modelspec.prediction_type": "epsilon"}, want: diffusion.Epsilon},
		"sd2 by user":    {family: SD2, metadata: map[string]string{"modelspec.prediction_type": "epsilon"}, said: diffusion.VPrediction, want: diffusion.VPrediction},
		"sd2 unknown":    {family: SD2, metadata: map[string]string{"modelspec.prediction_type": "?"}},
		"xl":             {family: SDXL, want: diffusion.Epsilon},
		"xl marked":      {family: SDXL, marks: []string{velocityMark, zeroSNRMark}, want: diffusion.VPrediction, zeroSNR: true},
		"marks of sd1":   {family: SD1, marks: []string{velocityMark, zeroSNRMark}, want: diffusion.Epsilon},
	} {
		path := filepath.Join(t.TempDir(), "a.safetensors")
		list := []*weights.Tensor{small(1).Renamed("x")}
		f := &single{path: path, keys: map[string]string{"x": "x"}}
		for _, mark := range test.marks {
			list = append(list, small(0).Renamed(mark))
			f.keys[mark] = mark
		}
		if err := weights.Write(path, list, test.metadata); err != nil {
			t.Fatal(err)
		}
		source, err := weights.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		f.source = source
		m := &model{}
		err = m.decidePrediction(f, test.family, Options{Prediction: test.said})
		if (err != nil) != (test.want == "") || m.prediction != test.want || m.zeroSNR != test.zeroSNR {
			t.Errorf("%s: %q, %v (%v)", name, m.prediction, m.zeroSNR, err)
		}
	}
}
