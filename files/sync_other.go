//go:build !unix

package files

import (
	"errors"
	"os"
)

// SyncFolder flushes the names in a folder to the disk: without it a rename may be lost with the power. It does nothing
// where the system or the file system cannot flush a folder; Windows journals names.
func SyncFolder(string) error { return nil }

// syncFile flushes what a file holds.
func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0) // Windows flushes only what may be written
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
