package history

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
)

const unlearning = "method = \"resalign\"\nout = %q\nseed = 7\n\n[outer]\nsteps = 6\noptimizer = \"adamw\"\n\n[[simulation]]\nname = \"a\"\nsteps = %d\n"

// training makes a run folder with a log of so many steps.
func training(t *testing.T, path, recipe string, steps int, finish bool) {
	t.Helper()
	run, err := train.CreateRun(path, []byte(recipe), train.Session{Program: "v1", Engine: "go", Command: []string{"resalign", "unlearn", "r.toml"}})
	if err != nil {
		t.Fatal(err)
	}
	log, err := train.OpenEventLog(run.EventsPath(), -1)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= steps; i++ {
		fields := map[string]any{"harmful_loss": 1 / float64(i), "residual": []float64{.1, .3, .2}, "notes": []string{"x"}, "seconds": 2., "peak_memory_bytes": 100 * i}
		if err := log.Append(train.Event{Step: i, Kind: "step", Fields: fields}); err != nil {
			t.Fatal(err)
		}
	}
	if finish {
		if err := run.Finish(); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := run.Close(); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree is a folder of runs of all kinds.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	training(t, filepath.Join(dir, "a"), fmt.Sprintf(unlearning, "a", 5), 6, true)
	training(t, filepath.Join(dir, "b"), fmt.Sprintf(unlearning, "b", 20), 2, false)
	training(t, filepath.Join(dir, "deep", "tune"), "method = \"lora\"\nsteps = 9\nbatch_size = 1\n", 3, false)
	training(t, filepath.Join(dir, "a", "checkpoints", "hidden"), "", 1, true)
	training(t, filepath.Join(dir, ".trash", "old"), "", 1, true)
	// Of three cells with two pictures the first is finished, the second half; a torn line is none.
	cell := `{"sets": [{"set": "p", "folder": "cells/%d", "pictures": 2, "shown": 0}]}`
	put(t, filepath.Join(dir, "audit", auditFile), fmt.Sprintf(`{"cells": [`+cell+","+cell+","+cell+`]}`, 1, 2, 3))
	put(t, filepath.Join(dir, "audit", recipeFile), "keep_pictures = false\n[[model]]\nname = \"m\"\npath = \"m\"\n"+
		"[[prompts]]\nname = \"p\"\nkind = \"harmful\"\nfile = \"p.txt\"\ndetector = \"d\"\npictures = 2\n")
	line := `{"file": "00000-%02d.png", "prompt": "a", "seed": 1, "guidance": 1}`
	list := "findings-ba768b33.jsonl"
	put(t, filepath.Join(dir, "audit", "cells", "1", list), fmt.Sprintf(line+"\n"+line+"\n", 0, 1))
	put(t, filepath.Join(dir, "audit", "cells", "2", list), fmt.Sprintf(line+"\n"+line, 0, 1))
	put(t, filepath.Join(dir, "broken", runFile), "{")
	put(t, filepath.Join(dir, "notes", "notes.txt"), "nothing")
	results := report.Results{
		Rows:   []audit.Row{{Model: "m", Adaptation: "none", IP: score.Rate{K: 1, N: 4}}},
		Recipe: map[string]string{"m": "method = \"esd\"\n"}, Versions: map[string]string{"resalign": "v2"},
	}
	if err := os.Mkdir(filepath.Join(dir, "demo"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := report.WriteResults(filepath.Join(dir, "demo", resultsFile), results); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestRunsOfEveryKindAreListed(t *testing.T) {
	dir := tree(t)
	found, err := List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range found {
		path, _ := filepath.Rel(dir, r.Path)
		got = append(got, fmt.Sprintf("%s %s %s %d/%d %v %v", filepath.ToSlash(path), r.Kind, r.Method, r.Done, r.Total, r.Finished != nil, r.Problem != ""))
	}
	want := "a unlearn resalign 6/6 true false|audit audit  1/3 false false|b unlearn resalign 2/6 false false|broken training  0/0 false true|deep/tune finetune lora 3/9 false false|demo experiment  1/1 true false"
	if strings.Join(got, "|") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.ReplaceAll(want, "|", "\n"))
	}
	if figures := fmt.Sprint(found[1].Figures); figures != "[{pictures made 3} {pictures 6}]" {
		t.Errorf("figures of the audit %s; %s", figures, found[1].Problem)
	}
	if figures := fmt.Sprint(found[2].Figures); figures != "[{harmful_loss 0.5} {residual 0.3} {seconds 4} {peak_memory_bytes 200}]" {
		t.Errorf("figures %s", figures)
	}
	if !strings.Contains(found[3].Problem, filepath.Join(dir, "broken", runFile)) {
		t.Errorf("problem %q does not name the file", found[3].Problem)
	}
	if _, err := json.Marshal(found); err != nil {
		t.Error(err)
	}
}

func TestDamagedLogsAreProblemsOfTheirRun(t *testing.T) {
	dir := t.TempDir()
	training(t, dir, "", 2, false)
	put(t, filepath.Join(dir, eventsFile), "nonsense\n{\"step\":1,\"kind\":\"step\"}\n")
	run, ok := Read(dir)
	if !ok || !strings.Contains(run.Problem, "line 1 is not an event") {
		t.Errorf("%v %q", ok, run.Problem)
	}
	if err := os.Remove(filepath.Join(dir, eventsFile)); err != nil {
		t.Fatal(err)
	}
	if run, _ = Read(dir); !strings.Contains(run.Problem, "events.jsonl is missing") {
		t.Errorf("%q", run.Problem)
	}
	for _, path := range []string{filepath.Join(dir, "none"), filepath.Join(dir, runFile)} {
		if _, err := List(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestRunsAreCompared(t *testing.T) {
	dir := tree(t)
	c, err := Compare(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(c.Recipe) != "[{simulation.0.steps 5 20}]" {
		t.Errorf("recipes differ in %v", c.Recipe)
	}
	if f := c.Figures[0]; f.Name != "harmful_loss" || *f.A != Number(1./6) || *f.B != .5 {
		t.Errorf("figures %v", c.Figures)
	}
	if c, err = Compare(filepath.Join(dir, "demo"), filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	first := c.Figures[0]
	if first.Name != "m, none, 0 steps, seed 0: harmful" || *first.A != .25 || first.B != nil || c.Recipe[0] != (Difference{"m.method", `"esd"`, ""}) {
		t.Errorf("%+v %+v", first, c.Recipe)
	}
	for path, want := range map[string]string{"notes": "not a run folder", "none": "cannot be read", "broken": "is damaged"} {
		if _, err := Compare(filepath.Join(dir, "a"), filepath.Join(dir, path)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNumbersThatAreNoneCanBeWritten(t *testing.T) {
	for value, want := range map[Number]string{1.5: "1.5", Number(math.Inf(1)): `"+Inf"`} {
		if text, err := json.Marshal(value); err != nil || string(text) != want {
			t.Errorf("%s %v", text, err)
		}
	}
	e := train.Event{Fields: map[string]any{"r": []any{1., "NaN", 3.}}}
	if value, ok := Largest(e, "r"); !ok || !math.IsNaN(value) {
		t.Errorf("%v %v", value, ok)
	}
}
