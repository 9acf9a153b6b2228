package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

const unetFile = "model/unet/diffusion_pytorch_model.safetensors"

func finetuneArgs(out string, more ...string) []string {
	return append([]string{
		"finetune", "--model", tinyModel, "--data", examples + "/people", "--steps", "2", "--accumulation", "1", "--learning-rate", "1e-3", "--out", out,
	}, more...)
}

// difference is the sum of the squared differences between the UNets of two models.
func difference(t *testing.T, a, b string) float64 {
	t.Helper()
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	first, err := sd.Load(e, a)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Free()
	second, err := sd.Load(e, b)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Free()
	sum := 0.0
	for i := range first.UNetParams.Tensors {
		x, errX := first.UNetParams.Host(i)
		y, errY := second.UNetParams.Host(i)
		if errX != nil || errY != nil || len(x) != len(y) {
			t.Fatal(errX, errY)
		}
		for k := range x {
			d := float64(x[k] - y[k])
			sum += d * d
		}
	}
	return sum
}

func TestFinetuneMethods(t *testing.T) {
	dir := t.TempDir()
	full := filepath.Join(dir, "full")
	r := decode[tuned](t, succeed(t, finetuneArgs(full, "--json", "--preview-every", "2", "--preview-prompt", "a person", "--preview-steps", "2")...))
	if r.Model != filepath.Join(full, "model") || r.LoRA != "" || r.Steps != 2 {
		t.Errorf("result is %+v", r)
	}
	if d := difference(t, tinyModel, r.Model); d == 0 {
		t.Error("full fine-tuning changed nothing")
	}
	events, err := train.ReadEvents(r.Log)
	if err != nil || len(events) != 2 {
		t.Errorf("the log has %d events: %v", len(events), err)
	}
	for _, name := range []string{"run.json", "previews/step-00000002.png", "checkpoints/step-00000002/complete.json"} {
		read(t, full, name)
	}
	var stored finetune.Job
	if err := recipe.Decode(filepath.Join(full, "recipe.toml"), &stored); err != nil || stored.LearningRate != 1e-3 || stored.Data != examples+"/people" {
		t.Errorf("the stored recipe is %+v: %v", stored, err)
	}

	// A finished run that is resumed says the same and does nothing.
	again := decode[tuned](t, succeed(t, "finetune", "--out", full, "--resume", "--json"))
	if again != r {
		t.Errorf("resumed, the finished run says %+v", again)
	}
	fail(t, exitFailed, []string{"finetune", "--out", full, "--resume", "--steps", "3"}, "another recipe")
	fail(t, exitFailed, finetuneArgs(full), "finished run")

	lora := filepath.Join(dir, "lora")
	r = decode[tuned](t, succeed(t, finetuneArgs(lora, "--json", "--method", "lora", "--rank", "2", "--alpha", "4", "--targets", "attn2")...))
	adapter, err := weights.ReadLoRA(r.LoRA)
	if err != nil || len(adapter.Layers) != 16 || adapter.Layers[0].Rank != 2 {
		t.Fatalf("the adapter is %v: %v", adapter, err)
	}
	// The adapter on the original model is the merged model, up to rounding: what is left is far smaller than the change.
	onTop := filepath.Join(dir, "on-top")
	succeed(t, finetuneArgs(onTop, "--lora", r.LoRA, "--steps", "0")...)
	change, rest := difference(t, tinyModel, r.Model), difference(t, filepath.Join(onTop, "model"), r.Model)
	if change == 0 || rest > 1e-9*change {
		t.Errorf("the adapter's change is %v, and merging it elsewhere differs by %v", change, rest)
	}

	alone := filepath.Join(dir, "alone")
	r = decode[tuned](t, succeed(t, finetuneArgs(alone, "--json", "--method", "lora", "--no-merge")...))
	if _, err := os.Stat(filepath.Join(alone, "model")); err == nil || r.Model != "" {
		t.Error("--no-merge wrote a model")
	}

	booth := filepath.Join(dir, "booth")
	r = decode[tuned](t, succeed(t, finetuneArgs(booth, "--json", "--method", "dreambooth", "--prior", examples+"/retain")...))
	if d := difference(t, filepath.Join(full, "model"), r.Model); d == 0 {
		t.Error("DreamBooth is full fine-tuning")
	}
}

func TestFinetuneOptionsMatter(t *testing.T) {
	dir := t.TempDir()
	seen := map[string]string{}
	for name, more := range map[string][]string{
		"plain":        nil,
		"contaminated": {"--contaminate", examples + "/harmful", "--ratio", "1"},
		"average":      {"--ema-decay", "0.5", "--steps", "3"},
		"longer":       {"--steps", "3"},
		"sgd":          {"--optimizer", "sgd", "--weight-decay", "0", "--momentum", "0.9"},
		"seed":         {"--seed", "1"},
		"cosine":       {"--schedule", "cosine"},
	} {
		out := filepath.Join(dir, name)
		succeed(t, finetuneArgs(out, append(more, "--cache", filepath.Join(dir, "cache"))...)...)
		content := string(read(t, out, unetFile))
		for other, bytes := range seen {
			if bytes == content {
				t.Errorf("%s and %s give the same weights", name, other)
			}
		}
		seen[name] = content
	}
	out := filepath.Join(dir, "again")
	succeed(t, finetuneArgs(out, "--threads", "1")...)
	if !bytes.Equal(read(t, out, unetFile), []byte(seen["plain"])) {
		t.Error("without the cache and on one thread the weights differ")
	}
	// All defaults depend on the method; what is given wins.
	var lora, given finetune.Job
	for _, c := range []struct {
		into *finetune.Job
		args []string
	}{{&lora, []string{"--method", "lora"}}, {&given, []string{"--method", "lora", "--learning-rate", "1e-5", "--targets", "to_q,to_k", "--flip=false"}}} {
		cmd := newFinetune()
		if err := cmd.ParseFlags(c.args); err != nil {
			t.Fatal(err)
		}
		*c.into = finetune.DefaultJob("lora")
		if err := copyChanged(cmd.Flags(), c.into); err != nil {
			t.Fatal(err)
		}
	}
	if lora.LearningRate != 1e-4 || lora.Method != "lora" || !lora.Flip || lora.Targets != nil {
		t.Errorf("defaults of lora are %+v", lora)
	}
	if given.LearningRate != 1e-5 || given.Flip || strings.Join(given.Targets, " ") != "to_q to_k" {
		t.Errorf("given settings become %+v", given)
	}
}

// Singular values, dropout and kinds of layers, buckets, prior pictures that are made, and what does not fit together.
func TestFinetuneMoreWays(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	r := decode[tuned](t, succeed(t, finetuneArgs(at("svdiff"), "--json", "--method", "svdiff", "--prior", at("class"),
		"--class-prompt", "a photo of a person", "--prior-pictures", "2", "--prior-steps", "1")...))
	if r.Shifts != filepath.Join(at("svdiff"), "spectral_shifts.safetensors") || difference(t, tinyModel, r.Model) == 0 {
		t.Errorf("result is %+v", r)
	}
	made, err := filepath.Glob(filepath.Join(at("class"), "generated-*", "*.png"))
	if err != nil || len(made) != 2 {
		t.Errorf("%d prior pictures: %v", len(made), err)
	}
	if again := decode[tuned](t, succeed(t, "finetune", "--out", at("svdiff"), "--resume", "--json")); again != r {
		t.Errorf("resumed, the finished run says %+v", again)
	}
	r = decode[tuned](t, succeed(t, finetuneArgs(at("lora"), "--json", "--method", "lora", "--lora-dropout", "0.5",
		"--targets", "attention,feed-forward,convolutions")...))
	adapter, err := weights.ReadLoRA(r.LoRA)
	if err != nil || len(adapter.Layers) <= 32 {
		t.Errorf("the adapter is %v: %v", adapter, err)
	}
	code, _, said := command(t, finetuneArgs(at("buckets"), "--buckets")...)
	if code != exitDone || !strings.Contains(said, "buckets  32×32: 4 pictures") {
		t.Errorf("about its buckets the command says %q", said)
	}
	for want, more := range map[string][]string{
		"--lora-dropout: 2 must":                 {"--method", "lora", "--lora-dropout", "2"},
		"--lora-dropout: 0.5 is only":            {"--lora-dropout", "0.5"},
		"--bucket-upscale: true is only":         {"--bucket-upscale"},
		"--buckets: true does not go with prior": {"--method", "dreambooth", "--prior", "x", "--buckets"},
		"--class-prompt: \"x\" needs prior":      {"--method", "dreambooth", "--class-prompt", "x"},
		"--prior-pictures: -1 must":              {"--method", "custom", "--prior", "x", "--class-prompt", "x", "--prior-pictures", "-1"},
		"--prior: \"x\" is only for methods":     {"--prior", "x"},
		"--method: \"svd\" is not known":         {"--method", "svd"},
		"--train-text-encoder: true is only":     {"--method", "svdiff", "--train-text-encoder"},
	} {
		fail(t, exitUsage, finetuneArgs(at("bad"), more...), want)
	}
}
