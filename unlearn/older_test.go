package unlearn

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/train"
)

// startedEarlier is tinyRecipe in a run that was stopped after its first step and whose stored recipe is what the program
// wrote when it knew fewer keys: testdata/older, with ROOT for the folder of everything.
func startedEarlier(t *testing.T) Recipe {
	t.Helper()
	root := t.TempDir()
	r := tinyRecipe(t, root)
	finish := make(chan struct{})
	_, err := Run(context.Background(), openEngine(t), r, Hooks{Finish: finish, OnEvent: func(e train.Event) {
		if e.Step == 1 {
			close(finish)
		}
	}})
	if !errors.Is(err, train.ErrInterrupted) {
		t.Fatal(err)
	}
	older, err := os.ReadFile(filepath.Join("testdata", "older", "recipe.toml"))
	if err != nil {
		t.Fatal(err)
	}
	older = bytes.ReplaceAll(older, []byte("ROOT"), []byte(filepath.ToSlash(root)))
	if err := os.WriteFile(storedRecipe(r), older, 0o644); err != nil {
		t.Fatal(err)
	}
	return r
}

func storedRecipe(r Recipe) string { return filepath.Join(r.Out, "recipe.toml") }

// A run that an earlier version began goes on, to the same bytes, and its folder keeps the recipe that it was begun with.
func TestRunOfAnOlderVersionResumes(t *testing.T) {
	r := startedEarlier(t)
	older, err := os.ReadFile(storedRecipe(r))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"lora_format", "nesterov", "[memory]"} {
		if bytes.Contains(older, []byte(key)) {
			t.Fatalf("the older recipe knows %s", key)
		}
	}
	_, events := run(t, r, Hooks{Resume: true})
	if len(events) != r.Outer.Steps-1 || events[0].Step != 2 {
		t.Errorf("resumed, %d steps were done", len(events))
	}
	whole := tinyRecipe(t, t.TempDir())
	run(t, whole, Hooks{})
	if !bytes.Equal(modelBytes(t, whole), modelBytes(t, r)) {
		t.Error("the resumed run ends elsewhere than one without a break")
	}
	if now, err := os.ReadFile(storedRecipe(r)); err != nil || !bytes.Equal(now, older) {
		t.Errorf("the stored recipe was changed: %v", err)
	}
}

func TestOlderRunIsNotResumedWithAnotherRecipe(t *testing.T) {
	began := startedEarlier(t)
	for want, change := range map[string]func(*Recipe){
		"outer.steps is 5 and was 4;":                                 func(r *Recipe) { r.Outer.Steps = 5 },
		`memory.compute is "bfloat16" and was "float32";`:             func(r *Recipe) { r.Memory.Compute = "bfloat16" },
		"simulation[0].momentum is 0.5 and was 0.0;":                  func(r *Recipe) { r.Simulations[0].Momentum = 0.5 },
		"seed is 1 and was 42; objective.lambda is 0.25 and was 0.8;": func(r *Recipe) { r.Seed, r.Objective.Lambda = 1, 0.25 },
	} {
		r := began
		r.Simulations = []Simulation{began.Simulations[0]}
		change(&r)
		_, err := Run(context.Background(), openEngine(t), r, Hooks{Resume: true})
		if err == nil || !strings.Contains(err.Error(), "with another recipe: "+want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, not %q", err, want)
		}
	}
	// A key that this version does not have comes from a later one.
	f, err := os.OpenFile(storedRecipe(began), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("whenever = 3\n")
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = Run(context.Background(), openEngine(t), began, Hooks{Resume: true})
	if err == nil || !strings.Contains(err.Error(), "checkpoint.whenever is not a known key") {
		t.Errorf("error %v", err)
	}
}

// A finished run that is resumed tells where its work is, and touches nothing; what was removed of it is written again.
func TestFinishedRunIsLeftAlone(t *testing.T) {
	r := tinyRecipe(t, t.TempDir())
	r.Outer.Steps = 1
	first, _ := run(t, r, Hooks{})
	info := filepath.Join(r.Out, "run.json")
	before, err := os.ReadFile(info)
	if err != nil {
		t.Fatal(err)
	}
	if again, events := run(t, r, Hooks{Resume: true}); *again != *first || len(events) != 0 {
		t.Errorf("%+v after %d steps, not %+v", again, len(events), first)
	}
	if after, err := os.ReadFile(info); err != nil || !bytes.Equal(before, after) {
		t.Errorf("run.json was changed: %v", err)
	}
	model := modelBytes(t, r)
	if err := os.RemoveAll(first.Model); err != nil {
		t.Fatal(err)
	}
	if again, _ := run(t, r, Hooks{Resume: true}); *again != *first || !bytes.Equal(modelBytes(t, r), model) {
		t.Errorf("the model was not written again: %+v", again)
	}
}

// A folder that cannot be used is found out before the model is read.
func TestFolderIsCheckedFirst(t *testing.T) {
	r := tinyRecipe(t, t.TempDir())
	r.Model = "no such model"
	if _, err := Run(context.Background(), openEngine(t), r, Hooks{Resume: true}); err == nil || !strings.Contains(err.Error(), "holds no run") {
		t.Errorf("error %v", err)
	}
	r.Out = "testdata"
	if _, err := Run(context.Background(), openEngine(t), r, Hooks{}); err == nil || !strings.Contains(err.Error(), "folder testdata is not empty") {
		t.Errorf("error %v", err)
	}
}
