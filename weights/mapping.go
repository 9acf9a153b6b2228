package weights

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"
)

// mapping is a file's content. It is released when neither a source nor a tensor refers to it any more, so that a view
// can never outlive the memory it shows.
type mapping struct {
	path string
	data []byte
}

// openMapping maps the regular file at path into memory, read-only.
func openMapping(path string) (*mapping, error) {
	// Opening a named pipe would wait for a writer, hence the look before the open.
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("cannot read weights: %w; check the path", err)
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file; give the path of a weights file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read weights: %w; check the path", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read weights: %w; check the path", err)
	}
	if info.Size() != int64(int(info.Size())) {
		return nil, fmt.Errorf("%s: %d bytes are more than this 32-bit program can map; use a 64-bit build", path, info.Size())
	}
	data, release, err := mapFile(f, int(info.Size()))
	if err != nil {
		return nil, fmt.Errorf("%s: cannot map the file into memory: %w; check that the disk is readable", path, err)
	}
	m := &mapping{path: path, data: data}
	if release != nil {
		runtime.AddCleanup(m, release, data)
	}
	return m, nil
}

// guard runs read, which touches the mapped bytes, and turns the fault of a file that shrank meanwhile into an error.
func (m *mapping) guard(read func() error) (err error) {
	if m == nil {
		return read()
	}
	defer runtime.KeepAlive(m)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(interface{ Addr() uintptr }); !ok {
				panic(r)
			}
			err = fmt.Errorf("%s: the file shrank or became unreadable while it was in use; restore it and start again", m.path)
		}
	}()
	return read()
}

// copied tells the system that data, which was copied elsewhere, will hardly be read again: its pages stop counting as this
// process's memory, which would else hold a model twice while it is loaded. Reading them again brings them back.
func (m *mapping) copied(data []byte) {
	if m == nil || len(data) == 0 || len(data) > len(m.data) {
		return
	}
	// Only what lies in the file: elsewhere it would lose its content.
	begin := uintptr(unsafe.Pointer(&m.data[0]))
	from := uintptr(unsafe.Pointer(&data[0]))
	if from < begin || from-begin > uintptr(len(m.data)-len(data)) {
		return
	}
	page := uintptr(os.Getpagesize())
	offset, end := from-begin, from-begin+uintptr(len(data))
	offset = (offset + page - 1) / page * page // a mapping begins at the beginning of a page
	if end = end / page * page; offset < end {
		forgetPages(m.data[offset:end])
	}
	runtime.KeepAlive(m)
}
