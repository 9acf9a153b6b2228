//go:build !unix

package weights

import (
	"io"
	"os"
)

// mapFile reads the first size bytes of f, on systems without mmap.
func mapFile(f *os.File, size int) (data []byte, release func([]byte), err error) {
	data = make([]byte, size)
	_, err = io.ReadFull(f, data)
	return data, nil, err
}

// forgetPages does nothing: the bytes are nowhere else.
func forgetPages([]byte) {}
