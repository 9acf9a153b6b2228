//go:build unix

package main

import (
	"bytes"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/resalign/resalign/inspect"
)

// tripwire sends the process an interrupt when a text is first written to it.
type tripwire struct {
	text string
	once sync.Once
	mu   sync.Mutex
	all  bytes.Buffer
}

func (w *tripwire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all.Write(p)
	if bytes.Contains(p, []byte(w.text)) {
		w.once.Do(func() { _ = syscall.Kill(os.Getpid(), syscall.SIGINT) }) // the test sees that nothing came
	}
	return len(p), nil
}

func (w *tripwire) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.all.String()
}

// interrupted carries out a command line that is interrupted as soon as it writes the text, and returns the command that
// it says continues it.
func interrupted(t *testing.T, text string, args ...string) (again string) {
	t.Helper()
	late := make(chan os.Signal, 1) // an interrupt that comes too late must not end the tests
	signal.Notify(late, os.Interrupt)
	defer signal.Stop(late)
	w := &tripwire{text: text}
	if code := run(t.Context(), args, &bytes.Buffer{}, w); code != exitInterrupted {
		t.Fatalf("exit code %d instead of %d:\n%s", code, exitInterrupted, w)
	}
	_, again, ok := strings.Cut(w.String(), "; go on with\n  ")
	if !ok {
		t.Fatalf("the error does not say how to go on:\n%s", w)
	}
	return strings.TrimSpace(again)
}

func TestFinetuneInterrupted(t *testing.T) {
	dir := t.TempDir()
	whole, parts := filepath.Join(dir, "whole"), filepath.Join(dir, "parts")
	more := []string{"--steps", "12", "--method", "lora", "--ema-decay", "0.9", "--checkpoint-every", "0"}
	succeed(t, finetuneArgs(whole, more...)...)
	again := interrupted(t, "fine-tuning ", finetuneArgs(parts, more...)...)
	if again != commandLine("resalign", "finetune", "--out", parts, "--resume") {
		t.Errorf("it goes on with %s", again)
	}
	found := decode[inspect.Found](t, succeed(t, "inspect", parts, "--json"))
	if found.Run.Finished != "" || found.Run.Steps < 1 || found.Run.Steps >= 12 || len(found.Run.Checkpoints) != 1 {
		t.Errorf("after the interrupt the run is %+v", found.Run)
	}
	succeed(t, strings.Fields(again)[1:]...)
	for _, name := range []string{"lora.safetensors", unetFile, "recipe.toml"} {
		if !bytes.Equal(read(t, whole, name), read(t, parts, name)) {
			t.Errorf("%s differs from that of a run without a break", name)
		}
	}
}

func TestUnlearnInterrupted(t *testing.T) {
	file, overrides := tinyRecipe(t)
	out := filepath.Join(t.TempDir(), "run")
	args := append([]string{"unlearn", file, "--engine", "go", "--out", out}, overrides...)
	args = append(args, "--set", "outer.steps=4", "--set", "method=ascent")
	again := interrupted(t, "unlearning ", args...)
	if want := commandLine(append(append([]string{"resalign"}, "unlearn", file), "--set")...); !strings.HasPrefix(again, want) || !strings.HasSuffix(again, "--out "+out+" --engine go --resume") {
		t.Errorf("it goes on with %s", again)
	}
	succeed(t, strings.Fields(again)[1:]...)
	read(t, out, "lora.safetensors")
}

func TestGenerateInterrupted(t *testing.T) {
	out := filepath.Join(t.TempDir(), "pictures")
	args := generateArgs(out, "--prompt", "a red star", "--images", "20")
	interrupted(t, "making pictures", args...)
	list := read(t, out, "metadata.jsonl")
	some := bytes.Count(list, []byte("\n"))
	if some < 1 || some >= 20 {
		t.Errorf("%d pictures are listed after the interrupt", some)
	}
	made := decode[generated](t, succeed(t, append(args, "--json")...))
	if made.Skipped != some || made.Made != 20-some {
		t.Errorf("after %d pictures the command says %+v", some, made)
	}
}
