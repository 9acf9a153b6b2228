package files

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// put makes a file in a folder within the partial folder.
func put(partial string) error {
	if err := os.Mkdir(filepath.Join(partial, "inner"), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(partial, "inner", "file"), []byte("content"), 0o644)
}

func TestWriteFolder(t *testing.T) {
	above := filepath.Join(t.TempDir(), "above")
	for _, dir := range []string{filepath.Join(above, "new"), filepath.Join(above, "slash") + string(filepath.Separator)} {
		err := WriteFolder(dir, func(partial string) error {
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is there before it is complete (%v)", dir, err)
			}
			return put(partial)
		})
		if err != nil {
			t.Fatal(err)
		}
		holds(t, filepath.Join(dir, "inner", "file"), "content")
	}
	if left, err := os.ReadDir(above); err != nil || len(left) != 2 {
		t.Errorf("the folder above holds %v (%v)", left, err)
	}
}

func TestWriteFolderTakesAnEmptyFolderOnly(t *testing.T) {
	dir := t.TempDir()
	if err := WriteFolder(dir, put); err != nil {
		t.Fatalf("an empty folder is refused: %v", err)
	}
	err := WriteFolder(dir, func(string) error {
		t.Error("work begins on a folder that is refused")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "output: the folder "+dir+" is not empty") {
		t.Errorf("error %v", err)
	}
	holds(t, filepath.Join(dir, "inner", "file"), "content")
	if err := WriteFolder(filepath.Join(dir, "inner", "file"), put); err == nil {
		t.Error("a folder took the place of a file")
	}
}

func TestAFailedWriteFolderLeavesNothing(t *testing.T) {
	above := t.TempDir()
	dir := filepath.Join(above, "new")
	wrong := errors.New("wrong")
	err := WriteFolder(dir, func(partial string) error { return errors.Join(put(partial), wrong) })
	if !errors.Is(err, wrong) || strings.Contains(err.Error(), "output:") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(above); len(left) > 0 {
		t.Errorf("%v stays behind", left)
	}
	// The name is taken while the folder is being filled: nothing of the other's is lost.
	err = WriteFolder(dir, func(partial string) error {
		return errors.Join(put(partial), os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "theirs"), []byte("x"), 0o644))
	})
	if err == nil {
		t.Error("a folder that another made was replaced")
	}
	holds(t, filepath.Join(dir, "theirs"), "x")
	if left, _ := os.ReadDir(above); len(left) != 1 {
		t.Errorf("the folder above holds %v", left)
	}
}
