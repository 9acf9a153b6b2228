package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/inspect"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/unlearn"
	"github.com/resalign/resalign/weights"
)

func TestInitWritesValidRecipes(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(presets())) {
		file := filepath.Join(t.TempDir(), name+".toml")
		succeed(t, "init", "--preset", name, "--out", file)
		r := unlearn.Defaults()
		if err := recipe.Load(file, recipe.Layers{Presets: presets()}, &r); err != nil {
			t.Errorf("preset %s: %v", name, err)
		}
		based := unlearn.Defaults()
		if err := recipe.LoadBytes("test", []byte("preset = \""+name+"\""), recipe.Layers{Presets: presets()}, &based); err != nil {
			t.Errorf("a recipe with preset %s: %v", name, err)
		}
		based.Preset = r.Preset
		a, errA := recipe.Encode(r)
		b, errB := recipe.Encode(based)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("preset %s as a file and as a preset differ (%v, %v)", name, errA, errB)
		}
		fail(t, exitFailed, []string{"init", "--out", file}, "exists already")
		if !bytes.Equal(read(t, file), presets()[name]) {
			t.Errorf("init overwrote %s", file)
		}
	}
}

// TestPublicRecipe compares the preset with the published constants.
func TestPublicRecipe(t *testing.T) {
	r := unlearn.Recipe{}
	if err := recipe.LoadBytes("sd14", presets()["sd14"], recipe.Layers{}, &r); err != nil {
		t.Fatal(err)
	}
	d := unlearn.Defaults()
	o, tr, h := r.Objective, r.Trainable, r.Hypergradient
	if r.Outer != d.Outer || o.Lambda != 0.8 || o.Alpha != 1.6 || o.AlphaFinal != 2 || h.Iterations != 5 || h.Gamma != 1 || h.Solver != unlearn.Richardson {
		t.Errorf("constants are %+v %+v %+v", r.Outer, o, h)
	}
	if tr.Rank != 4 || tr.Scale != 1 || tr.DownStd != 0.008 || tr.UpStd != 0.002 || len(tr.Targets) != 0 {
		t.Errorf("θ is %+v", tr)
	}
	if r.Data["harmful"].Batch != 1 || r.Data["retain"].Batch != 4 || r.Resolution != 512 {
		t.Errorf("batches are %+v at %d", r.Data, r.Resolution)
	}
	var pool []string
	folders := map[string]bool{}
	for _, s := range r.Simulations {
		what := ""
		if s.Prior != "" {
			what = " prior"
		}
		if s.Adapts != unlearn.SameParameters {
			what += " " + s.Adapts
		}
		folder := r.Data[s.Data].Folder
		folders[folder] = true
		pool = append(pool, strings.TrimPrefix(folder, "data/")+" "+s.Optimizer+what)
		if r.Data[s.Data].Batch != 1 {
			t.Errorf("%s has batches of %d", s.Name, r.Data[s.Data].Batch)
		}
	}
	want := []string{
		"down3 sgd", "down2 sgd prior", "down1 sgd", "down2 adam", "down3 sgd", "down1 adam", "down2 sgd",
		"down2 sgd", "down3 sgd", "down1 sgd", "down3 adam", "down3 sgd", "down2 adam", "down3 sgd", "down3 adamw all",
	}
	steps := []int{20, 5, 30, 5, 5, 30, 10, 30, 5, 10, 10, 30, 10, 20, 5}
	if !slices.Equal(pool, want) || len(folders) != 3 {
		t.Errorf("pool is %v", pool)
	}
	for i, s := range r.Simulations {
		rate := 1e-4
		if i >= 13 {
			rate = 1e-6
		} else if i >= 7 {
			rate = 1e-5
		}
		if s.Steps != steps[i] || s.LearningRate != rate {
			t.Errorf("%s has %d steps at %v", s.Name, s.Steps, s.LearningRate)
		}
	}
}

// tinyRecipe is the example's recipe with paths that hold from here, cut to a few steps.
func tinyRecipe(t *testing.T) (file string, overrides []string) {
	t.Helper()
	text := string(read(t, examples, "recipe.toml"))
	text = strings.ReplaceAll(text, `"examples/tiny/`, `"`+examples+`/`)
	text = strings.ReplaceAll(text, `"testdata/golden/`, `"`+golden+`/`)
	file = write(t, filepath.Join(t.TempDir(), "recipe.toml"), text)
	return file, []string{"--set", "outer.steps=2", "--set", "checkpoint.every=1", "--set", "preview.every=0", "--set", "outer.simulations_per_step=1"}
}

func TestUnlearnRefusesBadRecipes(t *testing.T) {
	file, _ := tinyRecipe(t)
	out := filepath.Join(t.TempDir(), "out")
	for _, c := range []struct{ set, part string }{
		{"outer.step=3", `did you mean "steps"?`},
		{"objektive.lambda=1", `did you mean "objective"?`},
		{"outer.steps=many", "outer.steps"},
		{"objective.lambda=2", "between 0 and 1"},
		{"simulation[1].name=people-same-sgd", "used twice"},
		{"preset=sd41", `did you mean "sd14"?`},
		{"data.retain.folder=nowhere", "nowhere"},
		{"engine=cuda", `engine "cuda" is not known`},
		{"nothing", "not an assignment"},
	} {
		fail(t, exitFailed, []string{"unlearn", file, "--out", out, "--set", c.set}, c.part)
	}
	fail(t, exitFailed, []string{"unlearn", file, "--out", out, "--resume"}, "holds no run")
	if _, err := os.Stat(out); err == nil {
		t.Error("a refused recipe made its folder")
	}
}

func TestUnlearn(t *testing.T) {
	file, overrides := tinyRecipe(t)
	out := filepath.Join(t.TempDir(), "run")
	args := append([]string{"unlearn", file, "--json", "--out", out}, overrides...)
	r := decode[unlearned](t, succeed(t, args...))
	if r.Steps != 2 || r.Model == "" || r.LoRA == "" {
		t.Errorf("result is %+v", r)
	}
	lora, err := weights.ReadLoRA(r.LoRA)
	if err != nil || len(lora.Layers) != 32 {
		t.Errorf("the adapter has %v layers: %v", lora, err)
	}
	found := decode[inspect.Found](t, succeed(t, "inspect", out, "--json"))
	if found.Run == nil || found.Run.Finished == "" || found.Run.Steps != 2 || found.Run.Model == "" {
		t.Errorf("inspect says %+v", found.Run)
	}
	fail(t, exitFailed, args, "finished run")
}
