//go:build linux

package programs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFolderIsNamedOrMade(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	t.Setenv(Variable, "")
	if folder, err := Folder(); folder != "" || err != nil {
		t.Errorf("%s set to nothing gives %q, %v", Variable, folder, err)
	}
	named := filepath.Join(t.TempDir(), "programs")
	t.Setenv(Variable, named)
	if folder, err := Folder(); folder != named || err != nil {
		t.Errorf("%q, %v", folder, err)
	}
	os.Unsetenv(Variable) // t.Setenv puts back what was there
	if folder, err := Folder(); folder != "" || err != nil {
		t.Errorf("without the user's folder: %q, %v", folder, err)
	}
	own := filepath.Join(data, "resalign", "programs")
	if err := os.MkdirAll(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if folder, err := Folder(); folder != own || err != nil {
		t.Errorf("with the user's folder: %q, %v", folder, err)
	}
	if err := os.Chmod(own, 0o770); err != nil {
		t.Fatal(err)
	}
	if _, err := Folder(); err == nil || !strings.Contains(err.Error(), own) || !strings.Contains(err.Error(), Variable) {
		t.Errorf("a folder that others can write to is taken: %v", err)
	}
	file := filepath.Join(data, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(Variable, file)
	if _, err := Folder(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file is taken: %v", err)
	}
}
