package train

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/weights"
)

// fileSystem is every operation that changes a run folder, so that tests can let each of them fail.
type fileSystem interface {
	mkdirAll(path string) error
	// writeFile creates a file that must not exist yet and flushes it to the disk.
	writeFile(path string, data []byte) error
	// writeTensors creates a safetensors file and flushes it to the disk.
	writeTensors(path string, tensors []weights.Deferred, metadata map[string]string) error
	rename(from, to string) error
	// syncDir flushes the names in a folder to the disk: without it a rename may be lost with the power.
	syncDir(path string) error
	removeAll(path string) error
}

// disk is the fileSystem of the operating system.
type disk struct{}

func (disk) mkdirAll(path string) error   { return os.MkdirAll(path, 0o777) }
func (disk) rename(from, to string) error { return os.Rename(from, to) }
func (disk) removeAll(path string) error  { return os.RemoveAll(path) }
func (disk) syncDir(path string) error    { return files.SyncFolder(path) }
func (disk) writeTensors(path string, tensors []weights.Deferred, metadata map[string]string) error {
	return weights.WriteDeferred(path, tensors, metadata)
}

func (disk) writeFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// temporaryPrefix starts the names of files and folders that are not complete. They may be removed at any time.
const temporaryPrefix = ".tmp-"

// replaceFile puts data into path so that a reader, also one after a crash, finds the old bytes or the new ones.
func replaceFile(files fileSystem, path string, data []byte) error {
	dir, name := filepath.Split(path)
	temporary := filepath.Join(dir, temporaryPrefix+name)
	if err := files.removeAll(temporary); err != nil {
		return err
	}
	if err := files.writeFile(temporary, data); err != nil {
		return errors.Join(err, files.removeAll(temporary))
	}
	if err := files.rename(temporary, path); err != nil {
		return errors.Join(err, files.removeAll(temporary))
	}
	return files.syncDir(dir)
}

// readSmall reads a regular file of at most limit bytes.
func readSmall(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than the %s that such a file can have", path, FormatBytes(limit))
	}
	return data, err
}

// exists says whether there is anything at path.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
