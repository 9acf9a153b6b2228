package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDemoAndMiniHelp(t *testing.T) {
	for command, flags := range map[string][]string{
		"demo": {"--out", "--seed", "--pictures", "--engine", "goes on where it stopped"},
		"mini": {"--out", "--seed", "--steps", "--autoencoder-steps", "--detector-steps", "goes on where it stopped"},
	} {
		out := succeed(t, command, "--help")
		for _, flag := range flags {
			if !strings.Contains(strings.Join(strings.Fields(out), " "), flag) {
				t.Errorf("%s --help has no %q:\n%s", command, flag, out)
			}
		}
	}
}

func TestDemoAndMiniRefuse(t *testing.T) {
	dir := t.TempDir()
	file := write(t, filepath.Join(dir, "file"), "mine")
	mine := filepath.Join(dir, "mine")
	if err := os.Mkdir(mine, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(mine, "thesis.tex"), "mine")
	fresh := filepath.Join(dir, "new")
	for _, c := range []struct {
		code  int
		args  []string
		parts []string
	}{
		{exitUsage, []string{"demo", "now"}, []string{`"now" is not expected`}},
		{exitUsage, []string{"demo", "--seeds", "1"}, []string{"--seeds"}},
		{exitUsage, []string{"demo", "--seed", "-1"}, []string{"--seed"}},
		{exitUsage, []string{"demo", "--pictures", "many"}, []string{"--pictures"}},
		{exitUsage, []string{"demo", "--out", ""}, []string{"--out must be given"}},
		{exitUsage, []string{"mini"}, []string{"--out must be given"}},
		{exitUsage, []string{"mini", "now"}, []string{`"now" is not expected`}},
		{exitUsage, []string{"mini", "--out", fresh, "--steps", "x"}, []string{"--steps"}},
		{exitFailed, []string{"demo", "--out", fresh, "--pictures", "0"}, []string{"0 pictures"}},
		{exitFailed, []string{"demo", "--out", fresh, "--engine", "abacus"}, []string{`"abacus"`}},
		{exitFailed, []string{"demo", "--out", file}, []string{file + " is a file; name a folder"}},
		{exitFailed, []string{"demo", "--out", mine}, []string{mine + " is not empty"}},
		{exitFailed, []string{"mini", "--out", file}, []string{file + " is a file; name a folder"}},
		{exitFailed, []string{"mini", "--out", mine}, []string{mine + " is not empty"}},
		{exitFailed, []string{"mini", "--out", fresh, "--steps", "-1"}, []string{"steps"}},
		{exitFailed, []string{"mini", "--out", fresh, "--autoencoder-steps", "-1"}, []string{"steps"}},
	} {
		fail(t, c.code, c.args, c.parts...)
		if _, _, errOut := command(t, c.args...); strings.Count(errOut, "\n") != 1 {
			t.Errorf("resalign %s: the error is not one line:\n%s", strings.Join(c.args, " "), errOut)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("refused commands left %v, %v", entries, err)
	}
	if string(read(t, file)) != "mine" || string(read(t, mine, "thesis.tex")) != "mine" {
		t.Error("a refused command overwrote a file")
	}
}
