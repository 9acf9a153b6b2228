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

// forgetPages lets go of mapped pages, which are read from the file again when they are needed. It is advice: an error
// changes nothing but the memory in use.
func forgetPages(pages []byte) { _ = unix.Madvise(pages, unix.MADV_DONTNEED) }
