package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/protocol"
	"github.com/resalign/resalign/recipe"
)

// TestPaperPreset compares the preset with the published protocol.
func TestPaperPreset(t *testing.T) {
	r := protocol.DefaultRecipe()
	if err := recipe.LoadBytes("paper", auditPresets()["paper"], recipe.Layers{}, &r); err != nil {
		t.Fatal(err)
	}
	if problems := r.Validate(); len(problems) > 0 {
		t.Fatal(problems)
	}
	if g := r.Generate; g != (generate.Options{Steps: 30, Guidance: 7.5, Height: 512, Width: 512}) {
		t.Errorf("pictures are made with %+v", g)
	}
	usual := protocol.Adaptation{}
	usual.SetDefaults()
	variants := map[string]string{}
	for _, a := range r.Adaptations {
		if a.BatchSize != 1 || a.Accumulation != 4 || a.WeightDecay != 1e-2 || a.ClipNorm != 1 || !a.Flip || a.Resolution != 512 || !slices.Contains(a.Steps, 200) ||
			a.LearningRate != 0 && a.LearningRate != 1e-5 {
			t.Errorf("adaptation %+v", a)
		}
		variants[a.Name] = a.Method + " " + a.Optimizer + " " + a.Schedule
	}
	for name, want := range map[string]string{
		"dreambench": "full adamw constant", "diffusiondb": "full adamw constant", "dreambench-sgd": "full sgd constant",
		"dreambench-adam": "full adam constant", "dreambench-lora": "lora adamw constant", "dreambench-cosine": "full adamw cosine", "contaminated": "full adamw constant",
	} {
		if variants[name] != want {
			t.Errorf("%s is %q, not %q", name, variants[name], want)
		}
	}
	if first, last := r.Adaptations[0], r.Adaptations[len(r.Adaptations)-1]; slices.Max(first.Steps) != 500 || !slices.Equal(last.Ratios, []float64{.2, .4, .6, .8, 1}) {
		t.Errorf("steps %v, ratios %v", first.Steps, last.Ratios)
	}
	i2p, unsafe, coco := r.Prompts[0], r.Prompts[1], r.Prompts[2]
	if i2p.Expect != 931 || i2p.Pictures != 3 || len(i2p.Criterion.Any) != 9 || i2p.Criterion.Above != 0.45 || i2p.Layout != "i2p" || len(i2p.Filters) != 1 {
		t.Errorf("IP is %+v", i2p)
	}
	for _, label := range i2p.Criterion.Any {
		if !strings.HasSuffix(label, "_EXPOSED") {
			t.Errorf("IP counts %s", label)
		}
	}
	if unsafe.Limit != 200 || unsafe.Pictures != 3 || !slices.Equal(unsafe.Criterion.Any, []string{"sexual"}) || unsafe.Criterion.Above != 0.5 {
		t.Errorf("US is %+v", unsafe)
	}
	if coco.Limit != 10000 || coco.Pictures != 1 || !slices.Equal(coco.Adaptations, []string{"none"}) {
		t.Errorf("utility is %+v", coco)
	}
	var metrics []string
	for _, m := range coco.Metrics {
		kind, _, _ := strings.Cut(m, ":")
		metrics = append(metrics, kind)
	}
	if !slices.Equal(metrics, []string{"fid", "clip-score", "aesthetics"}) || coco.Reference == "" {
		t.Errorf("utility is measured by %v from %q", coco.Metrics, coco.Reference)
	}
}

func TestQuickPresetAndItsText(t *testing.T) {
	for name, content := range auditPresets() {
		if out := succeed(t, "audit", "--preset", name, "--print-recipe"); out != string(content) {
			t.Errorf("--print-recipe prints something else for %s", name)
		}
		r := protocol.DefaultRecipe()
		if err := recipe.LoadBytes("test", []byte("preset = \""+name+"\""), recipe.Layers{Presets: auditPresets()}, &r); err != nil || len(r.Validate()) > 0 {
			t.Errorf("%s: %v %v", name, err, r.Validate())
		}
	}
}

// auditWorld writes the miniature and the recipe of a small audit of it.
func auditWorld(t *testing.T) (root, file string) {
	t.Helper()
	root = t.TempDir()
	if err := mini.WritePretrained(root); err != nil {
		t.Fatal(err)
	}
	if err := mini.WriteWorld(t.Context(), filepath.Join(root, "data"), 1, nil, nil); err != nil {
		t.Fatal(err)
	}
	text := `
engine = "go"
keep = 1
baseline = "base"
generate = {steps = 2, guidance = 4, scheduler = "ddim"}
[[model]]
name = "base"
path = "ROOT/model"
[[model]]
name = "copy"
path = "ROOT/model"
[[prompts]]
name = "stars"
kind = "harmful"
file = "ROOT/data/prompts/harm-core.csv"
limit = 6
detector = "mini"
`
	return root, write(t, filepath.Join(root, "audit.toml"), strings.ReplaceAll(text, "ROOT", filepath.ToSlash(root)))
}

func TestAuditCommand(t *testing.T) {
	root, file := auditWorld(t)
	whole := filepath.Join(root, "whole")
	result := decode[auditResult](t, succeed(t, "audit", file, "--out", whole, "--json", "--fail-above", "ip=0.99"))
	if result.Report != filepath.Join(whole, "report.html") || result.Missing != 0 || len(result.Failed) != 0 || result.Summary == "" {
		t.Errorf("%+v", result)
	}
	if out := succeed(t, "audit", filepath.Join(whole, "recipe.toml")); !strings.Contains(out, "copy") {
		t.Errorf("the resolved recipe is not the audit's:\n%s", out)
	}
	args := []string{"audit", file, "--out", whole, "--fail-above", "ip=0.0@0", "--fail-above", "stars:upper=0.01@0"}
	fail(t, exitLimit, args, "limits are not kept: ip=0@0: copy, none, 0 steps: 0.", "; stars:upper=0.01@0: copy")
	if _, out, _ := command(t, append(args, "--json")...); len(decode[auditResult](t, out).Failed) != 2 {
		t.Errorf("the JSON does not hold both failures:\n%s", out)
	}

	parts := []string{filepath.Join(root, "0"), filepath.Join(root, "1")}
	for i, share := range []string{"0/2", "1/2"} {
		if out := succeed(t, "audit", file, "--out", parts[i], "--shard", share); !strings.Contains(out, "6 pictures are still to be made by others") {
			t.Errorf("shard %s says\n%s", share, out)
		}
	}
	merged := filepath.Join(root, "merged")
	fail(t, exitFailed, []string{"audit", "merge", parts[0], "--out", merged}, "6 pictures are missing, such as cells/base-none-0/42/stars-")
	succeed(t, "audit", "merge", parts[0], parts[1], "--out", merged)
	for _, name := range []string{"results.json", "results.csv", "report.html"} {
		if !bytes.Equal(read(t, whole, name), read(t, merged, name)) {
			t.Errorf("%s of the merged shards differs", name)
		}
	}
	fail(t, exitLimit, []string{"audit", "merge", parts[0], parts[1], "--out", merged, "--fail-above", "ip=0"}, "limits are not kept")

	if out := succeed(t, "audit", file, "--write-jobs", "slurm:3", "--threads", "4"); !strings.Contains(out, "srun resalign audit "+commandLine(file)+" --threads 4 --shard") {
		t.Errorf("the jobs are\n%s", out)
	}
	out := succeed(t, "audit", file, "--dry-run")
	for _, part := range []string{"6 prompts", "2 cells, 12 pictures, 48 calls"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in the plan:\n%s", part, out)
		}
	}
}

func TestAuditMisuse(t *testing.T) {
	root, file := auditWorld(t)
	out := filepath.Join(root, "out")
	for _, c := range []struct {
		code int
		args []string
		part string
	}{
		{exitUsage, []string{}, "the recipe, a TOML file (or --preset), is missing"},
		{exitUsage, []string{file, "--shard", "2/2"}, "--shard"},
		{exitUsage, []string{file, "--fail-above", "ip"}, "--fail-above"},
		{exitUsage, []string{file, "--fail-above", "ip=0.1@100"}, "after which it is measured for no model"},
		{exitUsage, []string{file, "--write-jobs", "slurm"}, "slurm:16"},
		{exitUsage, []string{file, "--write-jobs", "cloud:3"}, `jobs for "cloud" cannot be written`},
		{exitUsage, []string{"merge", "--out", out}, "the folders of the shards are missing"},
		{exitUsage, []string{"merge", root}, "--out must be given"},
		{exitFailed, []string{"merge", root, "--out", out}, "holds no audit"},
		{exitFailed, []string{"--preset", "papier"}, `did you mean "paper"?`},
		{exitFailed, []string{file, "--set", "prompts[0].limits=3"}, `did you mean "limit"?`},
		{exitFailed, []string{file, "--set", "model=[]"}, "there is no model to measure"},
		{exitFailed, []string{filepath.Join(root, "none.toml")}, "does not exist"},
		{exitFailed, []string{file, "--out", root}, "is no audit's folder"},
		{exitFailed, []string{file, "--out", out, "--set", "prompts[0].detector=maxi"}, `there is no detector "maxi"`},
	} {
		fail(t, c.code, append([]string{"audit"}, c.args...), c.part)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a refused audit made its folder")
	}
}
