//go:build unix

package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestDiagnoseInterrupted(t *testing.T) {
	out := filepath.Join(t.TempDir(), "diagnosis")
	args := diagnoseArgs(out, "--flip=false")
	again := interrupted(t, "trace-harm", args...)
	words := strings.Fields(again)
	if len(words) < 2 || words[0] != "resalign" {
		t.Fatalf("it is continued by %q", again)
	}
	given, said := slices.Clone(args[1:]), slices.Clone(words[2:])
	slices.Sort(given)
	slices.Sort(said)
	if words[1] != "diagnose" || !slices.Equal(given, said) {
		t.Errorf("given %q, it is continued by %q", args, again)
	}
	if text := succeed(t, words[1:]...); !strings.Contains(text, "diagnose.html") {
		t.Errorf("continued, it says:\n%s", text)
	}
}
