//go:build unix

package files

import (
	"errors"
	"os"
	"syscall"
)

// SyncFolder flushes the names in a folder to the disk: without it a rename may be lost with the power. It does nothing
// where the system or the file system cannot flush a folder.
func SyncFolder(path string) error {
	err := syncFile(path)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		return nil // as some network file systems say
	}
	return err
}

// syncFile flushes what a file holds.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
