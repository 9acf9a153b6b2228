// Package files stores files and folders that appear whole or not at all: a reader, also one after a crash or a power
// failure, finds what was there before or everything that is new.
package files

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
)

// partialPrefix starts the names of files and folders that are not complete.
const partialPrefix = ".partial-"

// Write makes the file path hold exactly what fill writes. The folder must exist. The file is written under another name
// beside path, flushed to the disk and renamed. If anything fails, the error names path, the unfinished file is removed
// and a file that was there before is untouched.
func Write(path string, fill func(io.Writer) error) error {
	return write(disk{}, path, filepath.Dir(path), fill)
}

// WriteBytes makes the file path hold the content, in the way of Write.
func WriteBytes(path string, content []byte) error {
	return Write(path, copyOf(content))
}

// WriteBytesVia is WriteBytes with the unfinished file in another folder, on the same disk, where one that a killed process
// leaves is easily found.
func WriteBytesVia(folder, path string, content []byte) error {
	return write(disk{}, path, folder, copyOf(content))
}

func copyOf(content []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(content))
		return err
	}
}

// filesystem is what write needs of the disk; tests put a failing one in its place.
type filesystem interface {
	create(path string) (outFile, error) // fails if path exists
	rename(from, to string) error
	remove(path string) error
	syncFolder(path string) error
}

type outFile interface {
	io.WriteCloser
	Sync() error
}

type disk struct{}

func (disk) create(path string) (outFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err // not f: a nil *os.File must not become a non-nil interface
	}
	return f, nil
}
func (disk) rename(from, to string) error { return os.Rename(from, to) }
func (disk) remove(path string) error     { return os.Remove(path) }
func (disk) syncFolder(path string) error { return SyncFolder(path) }

// write makes path hold what fill writes, by way of a file in the folder partials.
func write(on filesystem, path, partials string, fill func(io.Writer) error) error {
	var f outFile
	partial, err := makeFresh(partials, func(name string) (err error) {
		f, err = on.create(name)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = on.rename(partial, path)
	}
	if err != nil {
		if left := on.remove(partial); left != nil {
			err = fmt.Errorf("%w (and the unfinished file stays behind: %w)", err, left)
		}
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	if err := on.syncFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%s is complete, but its folder could not be flushed to the disk: %w", path, err)
	}
	return nil
}

// makeFresh calls create with names in the folder until one is free, and returns that name.
func makeFresh(folder string, create func(name string) error) (string, error) {
	for i := range math.MaxInt16 {
		name := filepath.Join(folder, fmt.Sprintf("%s%d-%d", partialPrefix, os.Getpid(), i))
		err := create(name)
		if errors.Is(err, fs.ErrExist) { // left by a killed process or being written by another goroutine
			continue
		}
		return name, err
	}
	return "", fmt.Errorf("%s is full of unfinished %s files; remove them", folder, partialPrefix+"*")
}
