//go:build unix

package weights

import (
	"os"

	"golang.org/x/sys/unix"
)

// mapFile maps the first size bytes of f, read-only; release undoes it.
func mapFile(f *os.File, size int) (data []byte, release func([]byte), err error) {
	if size == 0 { // an empty range cannot be mapped
		return nil, nil, nil
	}
	data, err = unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return data, func(data []byte) { _ = unix.Munmap(data) }, nil
}
