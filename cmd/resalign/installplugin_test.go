package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInstallPluginRefuses(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	text := filepath.Join(t.TempDir(), "a.so")
	if err := os.WriteFile(text, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	fail(t, exitUsage, []string{"doctor", "--install-xla", "cuda12"}, "cpu, cuda13")
	fail(t, exitUsage, []string{"doctor", "--from", text}, "--install-xla")
	fail(t, exitUsage, []string{"doctor", "--install-xla", "cpu", "--from", text, "--index", "http://x"}, "exclude each other")
	fail(t, exitFailed, []string{"doctor", "--install-xla", "cpu", "--from", text}, text)
	fail(t, exitFailed, []string{"doctor", "--install-xla", "cpu", "--index", "http://127.0.0.1:1"}, "127.0.0.1:1")
	if entries, err := os.ReadDir(data); err != nil || len(entries) > 0 {
		t.Errorf("%v was left (%v)", entries, err)
	}
	// Where plugins are looked for is told, also by a program that cannot use them.
	if out := succeed(t, "doctor"); !strings.Contains(out, filepath.Join(data, "resalign", "plugins")+": nothing") {
		t.Errorf("doctor does not say where it looked:\n%s", out)
	}
}
