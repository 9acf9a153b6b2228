//go:build xla && linux && cgo

package programs

/*
#include "pjrt.h"
*/
import "C"

import (
	"fmt"
	"sync"
	"unsafe"
)

// Hook is one plugin whose compiler is watched.
type Hook struct {
	original *C.api
	hooked   *C.api

	mu       sync.Mutex
	store    *Store
	identity []byte
	trouble  func(error)
	counts   Counts
	platform []byte
}

// Counts is what became of programs so far.
type Counts struct {
	Compiled int // by the plugin
	Loaded   int // from the store
	Saved    int // into it
}

var (
	hooksLock sync.Mutex
	hooks     = map[int]*Hook{}
)

// Watch puts itself between a plugin's table of functions, as its GetPjrtApi returns it, and those who compile with it.
func Watch(table unsafe.Pointer) (*Hook, error) {
	hooksLock.Lock()
	defer hooksLock.Unlock()
	h := &Hook{original: (*C.api)(table)}
	var slot C.int
	h.hooked = C.resalign_hook(h.original, &slot)
	if h.hooked == nil {
		return nil, fmt.Errorf("its table of functions is too short, or too many other plugins were opened before")
	}
	hooks[int(slot)] = h
	return h, nil
}

// Table is the table of functions to compile with.
func (h *Hook) Table() unsafe.Pointer { return unsafe.Pointer(h.hooked) }

// Keep has programs kept in a store from now on, or not any more if it is nil. identity is all that compiled programs
// depend on beside their text, their options and the version of the plugin's platform: device, processor, flags. trouble
// is told what goes wrong with the store; the program in question is then compiled.
func (h *Hook) Keep(store *Store, identity []byte, trouble func(error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.store, h.identity, h.trouble = store, identity, trouble
}

// Counts says what became of programs so far.
func (h *Hook) Counts() Counts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts
}

func (h *Hook) count(n *int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*n++
}

//export resalignCompile
func resalignCompile(slot C.int, args *C.compile_args) *C.error {
	hooksLock.Lock()
	h := hooks[int(slot)]
	hooksLock.Unlock()
	return h.compile(args)
}

func (h *Hook) compile(args *C.compile_args) *C.error {
	defer C.resalign_tidy()
	text := describe(view(args.program.code, args.program.code_size))
	h.mu.Lock()
	store, identity, trouble := h.store, h.identity, h.trouble
	h.mu.Unlock()
	if store == nil {
		return h.compileText(args, text)
	}
	complain := func(err error) {
		if err != nil && trouble != nil {
			trouble(err)
		}
	}
	platform, err := h.platformVersion(args.client)
	if err != nil {
		complain(err)
		return h.compileText(args, text)
	}
	key := Key(identity, platform, view(args.program.format, args.program.format_size), view(args.options, args.options_size), text)
	kept, err := store.Load(key)
	complain(err)
	if kept != nil {
		if err = h.load(args, kept); err == nil {
			h.count(&h.counts.Loaded)
			return nil
		}
		complain(fmt.Errorf("the plugin does not take compiled program %s back, and compiles it anew: %w", store.path(key), err))
	}
	if failed := h.compileText(args, text); failed != nil {
		return failed
	}
	fresh, err := h.serialize(args.executable)
	if err == nil {
		err = store.Save(key, fresh)
	}
	if complain(err); err == nil {
		h.count(&h.counts.Saved)
	}
	return nil
}

// compileText has the plugin compile.
func (h *Hook) compileText(args *C.compile_args, text []byte) *C.error {
	code := C.CBytes(text)
	defer free(code)
	p := *args.program
	p.code, p.code_size = (*C.char)(code), C.size_t(len(text))
	own := (*C.program)(C.CBytes(unsafe.Slice((*byte)(unsafe.Pointer(&p)), unsafe.Sizeof(p))))
	defer free(unsafe.Pointer(own))
	before := args.program
	args.program = own
	failed := C.resalign_compile(h.original, args)
	args.program = before
	h.count(&h.counts.Compiled)
	return failed
}

func (h *Hook) load(args *C.compile_args, kept []byte) error {
	bytes := C.CBytes(kept)
	defer free(bytes)
	var out *C.loaded
	if failed := C.resalign_load(h.original, args.client, (*C.char)(bytes), C.size_t(len(kept)), &out); failed != nil {
		return h.problem(failed)
	}
	args.executable = out
	return nil
}

func (h *Hook) serialize(l *C.loaded) ([]byte, error) {
	var s C.serialize_args
	if failed := C.resalign_serialize(h.original, l, &s); failed != nil {
		return nil, fmt.Errorf("the plugin cannot hand out compiled programs, so none are kept: %w", h.problem(failed))
	}
	defer C.resalign_release(&s)
	return append([]byte(nil), view(s.bytes, s.bytes_size)...), nil
}

func (h *Hook) platformVersion(c *C.client) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.platform != nil {
		return h.platform, nil
	}
	var version *C.char
	var size C.size_t
	if failed := C.resalign_platform_version(h.original, c, &version, &size); failed != nil {
		return nil, fmt.Errorf("the plugin does not tell its version, so compiled programs are not kept: %w", h.problem(failed))
	}
	h.platform = append([]byte{}, view(version, size)...)
	return h.platform, nil
}

// problem takes an error of the plugin.
func (h *Hook) problem(failed *C.error) error {
	const room = 512
	message := C.malloc(room)
	defer free(message)
	C.resalign_error(h.original, failed, (*C.char)(message), room)
	return fmt.Errorf("%s", C.GoString((*C.char)(message)))
}

func free(p unsafe.Pointer) { C.free(p) }

// view is C memory as a slice, not copied.
func view(start *C.char, size C.size_t) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(start)), int(size))
}
