package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	diag "github.com/resalign/resalign/diagnose"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// diagnoseArgs is a diagnosis of a second.
func diagnoseArgs(out string, more ...string) []string {
	return append([]string{
		"diagnose", "--models", "tiny=" + tinyModel, "--harmful", examples + "/harmful", "--benign", examples + "/people", "--out", out,
		"--steps", "1", "--accumulation", "1", "--probes", "4", "--draws", "1", "--power-iterations", "1", "--iterations", "1", "--points", "3", "--from", "-1", "--to", "1", "--loss-batches", "4",
	}, more...)
}

func TestDiagnose(t *testing.T) {
	out := filepath.Join(t.TempDir(), "diagnosis")
	r := decode[diagnosed](t, succeed(t, diagnoseArgs(out, "--json")...))
	d := decode[diag.Diagnosis](t, string(read(t, r.Results)))
	if len(d.Models) != 1 || d.Models[0].Name != "tiny" || len(d.Models[0].Harm.Probes) != 4 || d.Settings.Gamma != 1 || d.Settings.Steps != 1 {
		t.Errorf("the diagnosis is %+v", d)
	}
	trace := diag.Short(d.Models[0].Harm.Trace.Value)
	for _, file := range []string{r.Page, r.Table} {
		if content := string(read(t, file)); !strings.Contains(content, "tiny") || len(content) < 1000 {
			t.Errorf("%s holds little", file)
		}
	}
	if !strings.Contains(string(read(t, r.Page)), trace) {
		t.Errorf("the page does not show the trace %s", trace)
	}
	// Another γ changes nothing else, and what is there is not made again.
	text := succeed(t, diagnoseArgs(out, "--gamma", "0.5")...)
	for _, part := range []string{trace, "At γ = 0.5", r.Page} {
		if !strings.Contains(text, part) {
			t.Errorf("the text has no %q:\n%s", part, text)
		}
	}
}

func TestDiagnoseErrors(t *testing.T) {
	out := filepath.Join(t.TempDir(), "diagnosis")
	for _, c := range []struct {
		code  int
		args  []string
		parts []string
	}{
		{exitUsage, []string{"diagnose"}, []string{"--out must be given"}},
		{exitUsage, []string{"diagnose", "--out", out}, []string{"--models: is missing", "--harmful: is missing", "--benign: is missing"}},
		{exitUsage, diagnoseArgs(out, "--run", "x"), []string{"either --models or --run"}},
		{exitUsage, diagnoseArgs(out, "--models", "b"), []string{`--models "b"`, "NAME=FOLDER"}},
		{exitUsage, diagnoseArgs(out, "--models", "Tiny=x"), []string{"--models: ", "used twice"}},
		{exitUsage, diagnoseArgs(out, "--probes", "1"), []string{"--probes: 1", "between 4"}},
		{exitUsage, diagnoseArgs(out, "--power-iterations", "0"), []string{"--power-iterations: 0"}},
		{exitUsage, diagnoseArgs(out, "--to", "0.5"), []string{"--to: 0.5", "at least 1"}},
		{exitUsage, diagnoseArgs(out, "--method", "textual-inversion"), []string{"--method: ", "full, lora, custom, svdiff"}},
		{exitUsage, diagnoseArgs(out, "--batch-size", "0"), []string{"--batch-size: 0"}},
		{exitUsage, []string{"diagnose", "--run", tinyModel, "--out", out}, []string{tinyModel, "holds no run", "resalign unlearn"}},
		{exitFailed, diagnoseArgs(out, "--harmful", "nowhere"), []string{"nowhere does not exist"}},
		{exitFailed, diagnoseArgs(out, "--benign", truncatedPictures(t)), []string{"02.png"}},
		{exitFailed, diagnoseArgs(out, "--models", "other=nowhere"), []string{"nowhere"}},
		{exitFailed, diagnoseArgs(examples), []string{examples, "no diagnosis"}},
	} {
		fail(t, c.code, c.args, c.parts...)
	}
}

func TestDiagnoseOfAFineTuning(t *testing.T) {
	dir, j := filepath.Join(t.TempDir(), "tuned"), finetune.DefaultJob(finetune.LoRA)
	j.Model, j.Data = tinyModel, examples+"/people"
	text, err := recipe.Encode(j)
	if err != nil {
		t.Fatal(err)
	}
	made, err := train.CreateRun(dir, text, train.Session{})
	if err != nil {
		t.Fatal(err)
	}
	if err := made.Close(); err != nil {
		t.Fatal(err)
	}
	fail(t, exitUsage, []string{"diagnose", "--run", dir, "--out", dir + "-out"}, dir, "it holds a fine-tuning", "resalign unlearn")
}

// recipeRun writes the folder of a run as far as a diagnosis looks at it.
func recipeRun(t *testing.T, name string, change func(*unlearn.Recipe)) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	r := unlearn.Defaults()
	r.Method, r.Model, r.Out, r.Seed = unlearn.Ascent, tinyModel, dir, 7
	r.Hypergradient.Metric = unlearn.PlainMetric
	r.Trainable = unlearn.Trainable{Parameters: "all"}
	r.Data = map[string]unlearn.Dataset{
		"harmful": {Folder: examples + "/harmful", Batch: 2},
		"retain":  {Parts: []unlearn.Part{{Folder: examples + "/retain", Weight: 2}, {Folder: examples + "/people", Weight: 1}}},
	}
	if change != nil {
		change(&r)
	}
	text, err := recipe.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "recipe.toml"), string(text))
	write(t, filepath.Join(dir, "run.json"), "{}")
	return dir
}

// typedOptions is what the command makes of a command line.
func typedOptions(t *testing.T, args ...string) (diag.Options, error) {
	t.Helper()
	d := diagnosing{Options: diag.Defaults()}
	cmd := &cobra.Command{Use: "diagnose"}
	c := &console{}
	addConsole(cmd, c)
	d.bind(cmd.Flags())
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	cmd.SetContext(t.Context())
	cmd.SetErr(t.Output())
	cmd.PreRun(cmd, nil)
	return d.options(cmd, c)
}

// TestDiagnoseRuns: what a recipe says is taken over, and what is typed wins.
func TestDiagnoseRuns(t *testing.T) {
	ascent := recipeRun(t, "ascent", nil)
	resalign := recipeRun(t, "resalign", func(r *unlearn.Recipe) {
		r.Method, r.Outer.SimulationsPerStep = unlearn.ResAlign, 1
		r.Data["simulated"] = unlearn.Dataset{Folder: examples + "/people", Batch: 3, Prompt: "a person", Flip: true}
		r.Simulations = []unlearn.Simulation{{Name: "s", Data: "simulated", Steps: 9, Optimizer: "sgd", LearningRate: 0.5, Momentum: 0.9, ClipNorm: 3}}
		r.Hypergradient.Gamma, r.Hypergradient.Iterations, r.Hypergradient.Damping = 0.02, 3, 0.7
	})
	o, err := typedOptions(t, "--run", ascent, "--run", resalign+"/", "--out", "x")
	if err != nil {
		t.Fatal(err)
	}
	want := []diag.Model{{Name: "base", Dir: tinyModel}, {Name: "ascent", Dir: ascent + "/model"}, {Name: "resalign", Dir: resalign + "/model"}}
	if len(o.Models) != 3 || o.Models[0] != want[0] || o.Models[1] != want[1] || o.Models[2] != want[2] {
		t.Errorf("the models are %v", o.Models)
	}
	tuning := o.Tuning
	if o.Gamma != 0.02 || o.Iterations != 3 || o.Damping != 0.7 || o.Seed != 7 || tuning.Seed != 7 || o.Parameters != diag.AllWeights ||
		tuning.Method != "full" || tuning.Optimizer != "sgd" || tuning.LearningRate != 0.5 || tuning.Momentum != 0.9 || tuning.ClipNorm != 3 || tuning.BatchSize != 3 || tuning.Accumulation != 1 || !tuning.Flip {
		t.Errorf("the options are %+v", o)
	}
	if len(o.Harmful) != 1 || len(o.Retain) != 2 || o.Retain[0].Weight != 2 || len(o.Benign) != 1 || o.Benign[0].Folder.Pictures[0].Caption != "a person" {
		t.Errorf("the pictures are %v, %v and %v", o.Harmful, o.Retain, o.Benign)
	}
	o, err = typedOptions(t, "--run", resalign, "--gamma", "0.5", "--learning-rate", "0.25", "--benign", examples+"/retain", "--targets", "attn1", "--out", "x")
	if err != nil {
		t.Fatal(err)
	}
	if o.Gamma != 0.5 || o.Tuning.LearningRate != 0.25 || o.Iterations != 3 || o.Benign[0].Folder.Dir != examples+"/retain" || len(o.Tuning.Targets) != 1 {
		t.Errorf("the options are %+v", o)
	}

	lora := recipeRun(t, "lora", func(r *unlearn.Recipe) {
		r.Trainable = unlearn.Trainable{Parameters: "lora", Rank: 3, Scale: 2, Targets: []string{"attn2"}, DownStd: 0.1}
		r.Method, r.Outer.SimulationsPerStep = unlearn.ResAlign, 1
		r.Data["simulated"] = unlearn.Dataset{Folder: examples + "/people"}
		r.Simulations = []unlearn.Simulation{{Name: "s", Data: "simulated", Steps: 9, Optimizer: "adam", LearningRate: 0.5}}
	})
	o, err = typedOptions(t, "--run", lora, "--out", "x")
	if err != nil {
		t.Fatal(err)
	}
	if o.Parameters != diag.LoRA || o.DownStd != 0.1 || o.Tuning.Rank != 3 || o.Tuning.Alpha != 6 || o.Tuning.Method != "lora" || o.Tuning.Targets[0] != "attn2" || o.Tuning.BatchSize != 1 {
		t.Errorf("the options are %+v", o)
	}

	if _, err := typedOptions(t, "--run", ascent, "--out", "x"); err == nil || !strings.Contains(err.Error(), "--benign: is missing") {
		t.Errorf("a run without simulations: %v", err)
	}
	other := recipeRun(t, "other", func(r *unlearn.Recipe) { r.Model = "another" })
	if _, err := typedOptions(t, "--run", ascent, "--run", other, "--out", "x"); err == nil || !strings.Contains(err.Error(), "runs of one model") {
		t.Errorf("runs of two models: %v", err)
	}
	o, err = typedOptions(t, "--models", "tiny="+tinyModel, "--harmful", examples+"/harmful", "--benign", examples+"/people", "--method", "lora", "--seed", "3", "--out", "x")
	if err != nil || o.Tuning.LearningRate != 1e-4 || o.Tuning.Seed != 3 {
		t.Errorf("with --method lora: %+v, %v", o.Tuning, err)
	}
}
