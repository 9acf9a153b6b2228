package plugins

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

// entry is the function by which a plugin hands out its interface (pjrt_c_api.h).
const entry = "GetPjrtApi"

// Check tells whether a file can be a plugin for this machine: a whole ELF shared library for this processor that has the
// entry point of the PJRT interface. It does not load the file.
func Check(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("XLA plugin %s does not exist; `resalign doctor` lists where plugins are looked for", path)
	case err != nil:
		return fmt.Errorf("XLA plugin %s: %w", path, err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("XLA plugin %s is not a file; name the .so file itself", path)
	}
	machine, known := machines[runtime.GOARCH]
	if runtime.GOOS != "linux" || !known {
		return fmt.Errorf("XLA plugin %s: plugins run on Linux on x86-64 and 64-bit ARM only, not on %s/%s; use --engine go", path, runtime.GOOS, runtime.GOARCH)
	}
	f, err := elf.Open(path)
	if err != nil {
		var format *elf.FormatError
		if errors.As(err, &format) {
			return fmt.Errorf("XLA plugin %s is not a shared library or is cut short; install one with `resalign doctor --install-xla`", path)
		}
		return fmt.Errorf("XLA plugin %s cannot be read as a shared library (%w); install one with `resalign doctor --install-xla`", path, err)
	}
	defer f.Close()
	if f.Type != elf.ET_DYN || f.Class != elf.ELFCLASS64 {
		return fmt.Errorf("XLA plugin %s is not a 64-bit shared library; name a PJRT plugin, such as pjrt_c_api_cpu_plugin.so", path)
	}
	if f.Machine != machine {
		return fmt.Errorf("XLA plugin %s is for another processor (%s, this machine is %s); install the one for %s", path, f.Machine, runtime.GOARCH, runtime.GOARCH)
	}
	// A segment that lies beyond the end of the file would kill the process when the loader touches it.
	size := uint64(info.Size())
	for _, p := range f.Progs {
		if p.Off > size || p.Filesz > size-p.Off {
			return fmt.Errorf("XLA plugin %s is cut short: %d bytes are there, a segment ends at byte %d; install it anew with `resalign doctor --install-xla`", path, size, p.Off+p.Filesz)
		}
	}
	symbols, err := f.DynamicSymbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return fmt.Errorf("XLA plugin %s is damaged (%w); install it anew with `resalign doctor --install-xla`", path, err)
	}
	for _, s := range symbols {
		if s.Name == entry && s.Section != elf.SHN_UNDEF && elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			return nil
		}
	}
	return fmt.Errorf("XLA plugin %s is a shared library, but has no function %s and so is no PJRT plugin; name another file", path, entry)
}

var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
