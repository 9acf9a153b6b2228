package audit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// TestChangedPlansAreMeasuredAnew compares fingerprints, by which cells are recognized, and then one real change.
func TestChangedPlansAreMeasuredAnew(t *testing.T) {
	b := newBench(t)
	print := func(p Plan, detector string, a *Adaptation) string {
		t.Helper()
		model, err := HashModel(p.Models[0].Dir)
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.fingerprint(model, detector, a)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	seen := map[string]string{}
	differs := func(what, fingerprint string) {
		t.Helper()
		if other, taken := seen[fingerprint]; taken {
			t.Errorf("%s is taken for %s", what, other)
		}
		seen[fingerprint] = what
	}
	prior := t.TempDir()
	one := data.NewRGB(4, 4)
	if err := data.SavePNG(filepath.Join(prior, "own.png"), one); err != nil {
		t.Fatal(err)
	}
	plain := b.adapted(t)
	first := print(plain, "d", &plain.Adaptations[0])
	differs("the plan", first)
	differs("the model as it is", print(plain, "d", nil))
	differs("another detector", print(plain, "e", &plain.Adaptations[0]))
	for what, change := range map[string]func(p *Plan, a *Adaptation){
		"another seed":          func(p *Plan, _ *Adaptation) { p.Seed++ },
		"another prompt":        func(p *Plan, _ *Adaptation) { p.Harm.List[0].Text += "!" },
		"another right label":   func(p *Plan, _ *Adaptation) { p.Benign.List[0].Want = score.Labels{"shape": "none"} },
		"more pictures":         func(p *Plan, _ *Adaptation) { p.Benign.Pictures++ },
		"another concept":       func(p *Plan, _ *Adaptation) { p.Harmful.Labels = score.Labels{"shape": mini.HarmShape} },
		"another guidance":      func(p *Plan, _ *Adaptation) { p.Generate.Guidance++ },
		"more batches":          func(p *Plan, _ *Adaptation) { p.HarmBatches++ },
		"other harmful data":    func(p *Plan, _ *Adaptation) { p.HarmData = b.benign },
		"another learning rate": func(_ *Plan, a *Adaptation) { a.Config.LearningRate *= 2 },
		"another schedule":      func(_ *Plan, a *Adaptation) { a.Config.Schedule = train.LinearSchedule },
		"another schedule's end": func(_ *Plan, a *Adaptation) {
			a.Config.Schedule, a.Steps = train.LinearSchedule, []int{1, 2, 3}
		},
		"other data": func(_ *Plan, a *Adaptation) { a.Data.Pictures = b.harm },
		"other prior": func(_ *Plan, a *Adaptation) {
			a.Data.Pictures, a.Data.Prior = nil, b.benign
		},
		"a prior folder":        func(_ *Plan, a *Adaptation) { a.Data.PriorFolder = prior },
		"an empty prior folder": func(_ *Plan, a *Adaptation) { a.Data.PriorFolder = filepath.Join(prior, "none") },
		"a class prompt":        func(_ *Plan, a *Adaptation) { a.Config.ClassPrompt = "a disc" },
		"more prior pictures":   func(_ *Plan, a *Adaptation) { a.Config.PriorPictures++ },
		"a word":                func(_ *Plan, a *Adaptation) { a.Config.Placeholder = "<it>" },
		"another beginning":     func(_ *Plan, a *Adaptation) { a.Config.Initializer = "red" },
		"a longer word":         func(_ *Plan, a *Adaptation) { a.Config.Vectors++ },
		"another rank":          func(_ *Plan, a *Adaptation) { a.Config.Rank++ },
		"another scale":         func(_ *Plan, a *Adaptation) { a.Config.Alpha++ },
		"other layers":          func(_ *Plan, a *Adaptation) { a.Config.Targets = []string{"attn2"} },
		"dropout in adapters":   func(_ *Plan, a *Adaptation) { a.Config.LoRADropout = 0.1 },
		"bfloat16":              func(_ *Plan, a *Adaptation) { a.Config.Compute = "bfloat16" },
		"an average":            func(_ *Plan, a *Adaptation) { a.Config.EMADecay = 0.9 },
		"the text encoder":      func(_ *Plan, a *Adaptation) { a.Config.TrainTextEncoder = true },
		"buckets":               func(_ *Plan, a *Adaptation) { a.Config.Buckets = true },
		"an instance prompt":    func(_ *Plan, a *Adaptation) { a.Config.InstancePrompt = "a toy" },
		"another weight": func(_ *Plan, a *Adaptation) {
			a.Data.Pictures = data.Mixture{{Folder: b.benign[0].Folder, Weight: 0.5}}
		},
	} {
		p := b.adapted(t)
		change(&p, &p.Adaptations[0])
		differs(what, print(p, "d", &p.Adaptations[0]))
	}
	for _, same := range []func(a *Adaptation){
		func(a *Adaptation) { a.Steps = []int{5} },
		func(a *Adaptation) { a.Config.Steps = 77 },
		func(a *Adaptation) { a.Models = []string{"base"} },
	} {
		p := b.adapted(t)
		same(&p.Adaptations[0])
		if print(p, "d", &p.Adaptations[0]) != first {
			t.Error("a change of no consequence changes the fingerprint")
		}
	}

	folder := b.adapted(t)
	folder.Adaptations[0].Data.PriorFolder = prior
	if err := os.Mkdir(filepath.Join(prior, "generated-1"), 0o755); err != nil {
		t.Fatal(err)
	}
	made := filepath.Join(prior, "generated-1", "00000-00.png")
	if err := data.SavePNG(made, one); err != nil {
		t.Fatal(err)
	}
	if seen[print(folder, "d", &folder.Adaptations[0])] != "a prior folder" {
		t.Error("prior pictures that fine-tuning made change the fingerprint")
	}
	one.Pix[0]++
	if err := data.SavePNG(filepath.Join(prior, "own.png"), one); err != nil {
		t.Fatal(err)
	}
	differs("another prior picture", print(folder, "d", &folder.Adaptations[0]))

	p := b.plan(1)
	p.Generate.Steps = 1
	for name, part := range map[string]string{"UNet": "unet/diffusion_pytorch_model.safetensors", "decoder": "vae/diffusion_pytorch_model.safetensors"} {
		dir := t.TempDir()
		before, _ := b.run(t, p, dir)
		changed := p
		changed.Models = []Model{{Name: "base", Dir: copied(t, p.Models[0].Dir), Gradients: 12}}
		if again, w := b.run(t, changed, dir); again != before || len(w.made) != 0 {
			t.Errorf("a copy of the model was measured anew: %v", w.made)
		}
		scaled(t, filepath.Join(changed.Models[0].Dir, part))
		if again, w := b.run(t, changed, dir); again == before || len(w.found) != 0 {
			t.Errorf("the changed %s was not measured anew: found %v", name, w.found)
		}
	}
}

// scaled multiplies the first numbers of a weights file.
func scaled(t *testing.T, path string) {
	t.Helper()
	source, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	tensors, err := weights.ReadAll(source)
	if err != nil {
		t.Fatal(err)
	}
	values, err := tensors[0].Float32()
	if err != nil {
		t.Fatal(err)
	}
	for i := range values {
		values[i] = values[i]*1.5 + 0.1
	}
	tensors[0] = weights.NewFloat32(tensors[0].Name, tensors[0].Shape, values)
	metadata := source.Metadata()
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	if err := weights.Write(path, tensors, metadata); err != nil {
		t.Fatal(err)
	}
}
