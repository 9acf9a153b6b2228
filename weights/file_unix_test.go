//go:build unix

package weights

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// TestPagesThatWereCopiedComeBack reads tensors of odd sizes again after their pages were let go.
func TestPagesThatWereCopiedComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	var tensors []*Tensor
	want := map[string][]float32{}
	for _, n := range []int{1, 5000, 1 << 20, 3, 70001} {
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(n + i)
		}
		name := strconv.Itoa(n)
		want[name] = values
		tensors = append(tensors, NewFloat32(name, []int{n}, values))
	}
	if err := Write(path, tensors, nil); err != nil {
		t.Fatal(err)
	}
	m, err := openMapping(path)
	if err != nil {
		t.Fatal(err)
	}
	source, err := parse(m)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for name, values := range want {
			x, err := source.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := x.Float32(); err != nil || !slices.Equal(got, values) {
				t.Fatalf("tensor %s: other numbers, %v", name, err)
			}
			if b, err := x.Bytes(); err != nil || len(b) != 4*len(values) {
				t.Fatalf("tensor %s: %d bytes, %v", name, len(b), err)
			}
		}
	}
	own := make([]byte, 1<<16)
	own[1<<15] = 7
	m.copied(own)
	if own[1<<15] != 7 {
		t.Error("memory that is not the file's was let go")
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
