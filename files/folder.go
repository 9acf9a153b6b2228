package files

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteFolder makes the folder dir, which must be new or empty, and the folders above it. What fill puts into the folder
// partial is flushed to the disk before partial gets the name dir. If anything fails, partial is removed. Errors of fill are
// returned as they are, others start with "output: ".
func WriteFolder(dir string, fill func(partial string) error) (err error) {
	dir = filepath.Clean(dir) // so that its parent is not dir itself, as that of "dir/" would be
	if err := checkVacant(dir); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	partial, err := makeFresh(parent, func(name string) error { return os.Mkdir(name, 0o755) })
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(partial))
		}
	}()
	if err := fill(partial); err != nil {
		return err
	}
	if err := syncTree(partial); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("output: %w", err)
	}
	if err := os.Rename(partial, dir); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if err := SyncFolder(parent); err != nil {
		return fmt.Errorf("output: %s is complete, but the folder above it could not be flushed to the disk: %w", dir, err)
	}
	return nil
}

func checkVacant(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("the folder %s is not empty; name a new one", dir)
	}
	return err
}

// syncTree flushes all files and folders below a folder, and the folder itself.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			return SyncFolder(path)
		case entry.Type().IsRegular():
			return syncFile(path)
		}
		return nil
	})
}
