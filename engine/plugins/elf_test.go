package plugins

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// library describes a small ELF shared library.
type library struct {
	symbol  string
	machine elf.Machine
	kind    elf.Type
	padding int // bytes in its one segment
}

func plugin() library {
	return library{symbol: entry, machine: machines[runtime.GOARCH], kind: elf.ET_DYN, padding: 256}
}

// bytes writes the file: header, program header, segment, dynamic symbols and their names, section headers.
func (l library) bytes(t testing.TB) []byte {
	t.Helper()
	names := "\x00" + l.symbol + "\x00"
	const header, program, section = 64, 56, 64
	segment := uint64(header + program)
	symbols := segment + uint64(l.padding)
	texts := symbols + 2*24
	sections := texts + uint64(len(names))
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(l.kind), Machine: uint16(l.machine), Version: uint32(elf.EV_CURRENT), Phoff: header, Shoff: sections,
		Ehsize: header, Phentsize: program, Phnum: 1, Shentsize: section, Shnum: 3, Shstrndx: 2,
	})
	put(elf.Prog64{Type: uint32(elf.PT_LOAD), Off: segment, Filesz: uint64(l.padding), Memsz: uint64(l.padding)})
	b.Write(make([]byte, l.padding))
	put(elf.Sym64{})
	put(elf.Sym64{Name: 1, Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: 16})
	b.WriteString(names)
	put(elf.Section64{})
	put(elf.Section64{Type: uint32(elf.SHT_DYNSYM), Off: symbols, Size: 48, Link: 2, Entsize: 24})
	put(elf.Section64{Type: uint32(elf.SHT_STRTAB), Off: texts, Size: uint64(len(names))})
	return b.Bytes()
}

// write puts content into a new file and returns its path.
func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// onLinux skips tests of what is only there on systems for which plugins exist.
func onLinux(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" || machines[runtime.GOARCH] == 0 {
		t.Skip("there are no XLA plugins for " + runtime.GOOS + "/" + runtime.GOARCH)
	}
}
