package files

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// failingDisk is the real disk, but the operation failAt fails.
type failingDisk struct {
	disk
	failAt string
	room   int // bytes that fit before a write fails
}

var errDisk = errors.New("no space left on device")

type failingFile struct {
	outFile
	disk *failingDisk
}

func (d *failingDisk) create(path string) (outFile, error) {
	if d.failAt == "create" {
		return nil, errDisk
	}
	f, err := d.disk.create(path)
	if err != nil {
		return nil, err
	}
	return &failingFile{f, d}, nil
}

func (d *failingDisk) rename(from, to string) error {
	if d.failAt == "rename" {
		return errDisk
	}
	return d.disk.rename(from, to)
}

func (d *failingDisk) syncFolder(path string) error {
	if d.failAt == "sync folder" {
		return errDisk
	}
	return d.disk.syncFolder(path)
}

func (f *failingFile) Write(p []byte) (int, error) {
	if f.disk.failAt == "write" && len(p) > f.disk.room {
		n, _ := f.outFile.Write(p[:f.disk.room])
		return n, errDisk
	}
	f.disk.room -= len(p)
	return f.outFile.Write(p)
}

func (f *failingFile) Sync() error {
	if f.disk.failAt == "sync" {
		return errDisk
	}
	return f.outFile.Sync()
}

func (f *failingFile) Close() error {
	err := f.outFile.Close()
	if f.disk.failAt == "close" {
		return errDisk
	}
	return err
}

// holds checks that a folder has one entry, a file with this content.
func holds(t *testing.T, path, content string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("%s holds %q (%v), not %q", path, got, err, content)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Errorf("the folder holds %v (%v), not one file", left, err)
	}
}

func TestAFailedWriteLeavesTheOldFile(t *testing.T) {
	for _, failAt := range []string{"create", "write", "sync", "close", "rename"} {
		path := filepath.Join(t.TempDir(), "file")
		if err := WriteBytes(path, []byte("old")); err != nil {
			t.Fatal(err)
		}
		err := write(&failingDisk{failAt: failAt, room: 2}, path, filepath.Dir(path), copyOf([]byte("new content")))
		if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), path+" cannot be written") {
			t.Errorf("%s: error %v", failAt, err)
		}
		holds(t, path, "old")
	}
}

func TestAFailedFillLeavesTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := WriteBytes(path, []byte("old")); err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("wrong")
	err := Write(path, func(w io.Writer) error {
		_, err := io.WriteString(w, "new")
		return errors.Join(err, wrong)
	})
	if !errors.Is(err, wrong) || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v", err)
	}
	holds(t, path, "old")
}

func TestAnUnflushedFolderIsAnErrorOfACompleteFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	err := write(&failingDisk{failAt: "sync folder"}, path, filepath.Dir(path), copyOf([]byte("new")))
	if !errors.Is(err, errDisk) || !strings.Contains(err.Error(), path+" is complete") {
		t.Errorf("error %v", err)
	}
	holds(t, path, "new")
}

func TestWriteReplaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, content := range []string{"a long text", "short", ""} {
		if err := WriteBytes(path, []byte(content)); err != nil {
			t.Fatal(err)
		}
		holds(t, path, content)
	}
	aside := t.TempDir()
	if err := WriteBytesVia(aside, path, []byte("via")); err != nil {
		t.Fatal(err)
	}
	holds(t, path, "via")
	if left, err := os.ReadDir(aside); err != nil || len(left) > 0 {
		t.Errorf("%v stays behind (%v)", left, err)
	}
	if err := WriteBytesVia(filepath.Join(aside, "absent"), path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("an absent folder for unfinished files: %v", err)
	}
	holds(t, path, "via")
}

func TestWriteGoesAroundUnfinishedFilesOfOthers(t *testing.T) {
	dir := t.TempDir()
	var others []string
	for range 3 {
		name, err := makeFresh(dir, func(name string) error {
			f, err := disk{}.create(name)
			if err == nil {
				err = f.Close()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, name)
	}
	if err := WriteBytes(filepath.Join(dir, "file"), []byte("new")); err != nil {
		t.Fatal(err)
	}
	for _, other := range others {
		if content, err := os.ReadFile(other); err != nil || len(content) > 0 {
			t.Errorf("%s became %q (%v)", other, content, err)
		}
	}
}

func TestManyWritersOfOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	contents := []string{strings.Repeat("a", 1<<16), strings.Repeat("b", 1<<15), strings.Repeat("c", 1<<14)}
	var all sync.WaitGroup
	for _, content := range contents {
		all.Go(func() {
			for range 5 {
				if err := WriteBytes(path, []byte(content)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, content := range contents {
		if string(got) == content {
			holds(t, path, content)
			return
		}
	}
	t.Errorf("the file holds %d bytes that nobody wrote", len(got))
}
