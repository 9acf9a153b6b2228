package protocol

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/train"
)

// childRoot and childOut tell this test's process that it is to carry an audit out and be killed meanwhile.
const (
	childRoot = "RESALIGN_TEST_AUDIT_ROOT"
	childOut  = "RESALIGN_TEST_AUDIT_OUT"
)

// TestKilled kills the process of an audit ten times at random moments, and compares the result with that of an audit
// that was left alone.
func TestKilled(t *testing.T) {
	if root := os.Getenv(childRoot); root != "" {
		child(t, root, os.Getenv(childOut))
		return
	}
	root := writeWorld(t)
	writeCLIP(t, root)
	whole, dir := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "killed")
	carryOut(t, openEngine(t), read(t, root, withCLIP(small), whole), Options{})
	draw := random.New(uint64(time.Now().UnixNano()), "kills") // other moments every time: each must do
	want := published(t, whole)
	for kills := 0; kills < 10; {
		// Each process gets a little further, to a line that it prints, and then a random while.
		lines, pause := 1+draw.IntN(2), time.Duration(draw.IntN(25))*time.Millisecond
		if killed(t, root, dir, lines, pause) {
			kills++
			continue
		}
		same(t, fmt.Sprintf("finished after %d kills", kills), want, published(t, dir))
		if err := os.RemoveAll(dir); err != nil { // the rest of the ten on another
			t.Fatal(err)
		}
	}
	if killed(t, root, dir, never, 0) {
		t.Error("the audit did not come to its end")
	}
	same(t, "killed", want, published(t, dir))
}

const never = 1 << 30

// killed starts the audit in a process, and kills it a while after it has printed some lines. It returns false if the
// audit was finished before.
func killed(t *testing.T, root, dir string, lines int, pause time.Duration) bool {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestKilled$", "-test.v")
	cmd.Env = append(os.Environ(), childRoot+"="+root, childOut+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	text := ""
	scanner := bufio.NewScanner(out)
	for n := 0; scanner.Scan(); {
		if text += scanner.Text() + "\n"; len(scanner.Text()) == 0 || scanner.Text()[0] != '*' {
			continue
		}
		if n++; n == lines {
			time.Sleep(pause)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	switch err := cmd.Wait(); {
	case err == nil:
		return false
	case lines == never: // it was not killed
		t.Fatalf("the audit failed: %v\n%s", err, text)
	}
	return true
}

// child carries the audit out and prints a line that begins with a star for everything that it does.
func child(t *testing.T, root, out string) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	_, err = Run(t.Context(), e, read(t, root, withCLIP(small), out), Options{Program: "test"}, Hooks{
		OnPicture: func(done, total int, cell string) { fmt.Printf("* %d of %d, %s\n", done, total, cell) },
		OnTune:    func(what string, event train.Event, _ int) { fmt.Printf("* %s %d\n", what, event.Step) },
	})
	if err != nil {
		t.Fatal(err)
	}
}
