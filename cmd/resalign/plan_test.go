package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/plan"
)

func TestPlanRecipes(t *testing.T) {
	recipe := write(t, filepath.Join(t.TempDir(), "uce.toml"), "model = \""+tinyModel+"\"\nout = \"x\"\nmethod = \"uce\"\n[edit]\nerase = [\"a dog\"]\n")
	p := decode[plan.Plan](t, succeed(t, "plan", recipe, "--json", "--memory", "8GB", "--threads", "2"))
	if p.Method != "uce" || p.Engine != "go" || p.StepName != "edit" || !p.Fits || p.Rates.Host == 0 || p.Seconds <= 0 {
		t.Errorf("%+v", p)
	}
	p = decode[plan.Plan](t, succeed(t, "plan", recipe, "--json", "--memory", "8GB", "--engine", "xla"))
	if p.Engine != "xla" || p.Seconds != 0 || p.Peak == 0 {
		t.Errorf("%+v", p)
	}
	if out := succeed(t, "plan", recipe, "--memory", "8GB", "--engine", "xla"); !strings.Contains(out, "of the device") || strings.Contains(out, "GFLOP/s") {
		t.Errorf("a plan for XLA says\n%s", out)
	}
	fail(t, exitFailed, []string{"plan", recipe, "--memory", "10KB", "--engine", "xla"}, "does not fit")
	fail(t, exitFailed, []string{"plan", recipe, "--engine", "tpu"}, `engine "tpu" is not known; plans are made for go and xla`)
	fail(t, exitUsage, []string{"plan", recipe, "--memory", "much"}, "--memory")
	fail(t, exitUsage, []string{"plan", recipe, "--preset", "tiny", "--model", tinyModel}, "give one")
}

func TestPlanFineTuning(t *testing.T) {
	args := func(more ...string) []string {
		return append([]string{"finetune", "--plan", "--data", examples + "/people", "--method", "lora", "--memory", "8GB"}, more...)
	}
	p := decode[plan.Plan](t, succeed(t, args("--model", tinyModel, "--json")...))
	if p.Method != "lora" || p.StepName != "step" || p.Steps != 200 || p.Parameters.Theta != 9984 || !p.Fits {
		t.Errorf("%+v", p)
	}
	p = decode[plan.Plan](t, succeed(t, args("--preset", "tiny", "--engine", "xla", "--json")...))
	if p.Model != "preset tiny" || p.Engine != "xla" {
		t.Errorf("%+v", p)
	}
	fail(t, exitUsage, args(), "--model must be given")
	fail(t, exitUsage, args("--model", tinyModel, "--preset", "tiny"), "give one")
	fail(t, exitUsage, args("--model", tinyModel, "--threads", "-1"), "--threads -1")
	fail(t, exitUsage, []string{"finetune", "--model", tinyModel, "--data", "x", "--out", "y", "--memory", "1GB"}, "go with --plan")
}

// A LoRA in any format makes the same pictures.
func TestFormatsOfAdapters(t *testing.T) {
	dir := t.TempDir()
	var want string
	for format, name := range map[string]string{"diffusers": "lora.safetensors", "peft": "lora", "kohya": "lora.safetensors"} {
		run, out := filepath.Join(dir, format), filepath.Join(dir, "pictures of "+format)
		succeed(t, finetuneArgs(run, "--method", "lora", "--no-merge", "--learning-rate", "0.1", "--lora-format", format)...)
		succeed(t, generateArgs(out, "--lora", filepath.Join(run, name), "--prompt", "a red star")...)
		got := pictures(t, out)["00000-00.png"]
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("the adapter as %s makes another picture", format)
		}
	}
	fail(t, exitUsage, finetuneArgs(filepath.Join(dir, "x"), "--lora-format", "peft"), `--lora-format: "peft" is only for method lora`)
	fail(t, exitFailed, []string{"generate", "--model", tinyModel, "--lora", dir, "--prompt", "x", "--out", filepath.Join(dir, "y")}, "holds no adapter_model.safetensors")
}
