//go:build unix

package weights

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAFileThatShrinksIsAnErrorNotACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	const n = 1 << 20
	if err := Write(path, []*Tensor{NewFloat32("a", []int{n}, make([]float32, n))}, nil); err != nil {
		t.Fatal(err)
	}
	source, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	a, err := source.Tensor("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Float32(); err == nil || !strings.Contains(err.Error(), "shrank") {
		t.Errorf("reading a file that shrank: %v", err)
	}
	if err := Write(path+"2", []*Tensor{a}, nil); err == nil {
		t.Error("a file that shrank was copied")
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("%v stays behind", left)
	}
}

func TestOpenDoesNotWaitForANamedPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Skip(err)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := Open(path)
		failed <- err
	}()
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a named pipe was opened")
		}
	case <-time.After(10 * time.Second):
		t.Error("Open waits for a writer")
	}
}
