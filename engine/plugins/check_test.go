package plugins

import (
	"debug/elf"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckTakesAPlugin(t *testing.T) {
	onLinux(t)
	if err := Check(write(t, "a_plugin.so", plugin().bytes(t))); err != nil {
		t.Error(err)
	}
}

func TestCheckRefusesWhatIsNoPlugin(t *testing.T) {
	onLinux(t)
	otherSymbol, otherMachine, program := plugin(), plugin(), plugin()
	otherSymbol.symbol = "cosf"
	otherMachine.machine = elf.EM_RISCV
	program.kind = elf.ET_EXEC
	whole := plugin().bytes(t)
	// The segment's size is at byte 96 (header 64, then type, flags, offset, two addresses).
	beyond := append([]byte(nil), whole...)
	beyond[64+32+4] = 1
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"text":          {[]byte("not a library\n"), "is not a shared library"},
		"empty":         {nil, "install one with"},
		"cut":           {whole[:len(whole)-100], "install one with"},
		"header only":   {whole[:64], "install one with"},
		"short segment": {beyond, "cut short"},
		"no entry":      {otherSymbol.bytes(t), "has no function GetPjrtApi"},
		"processor":     {otherMachine.bytes(t), "for another processor"},
		"executable":    {program.bytes(t), "is not a 64-bit shared library"},
	} {
		t.Run(name, func(t *testing.T) {
			path := write(t, "a_plugin.so", c.content)
			err := Check(path)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v, not one sentence with the path and %q", err, c.says)
			}
		})
	}
	folder := t.TempDir()
	for path, says := range map[string]string{folder: "is not a file", filepath.Join(folder, "none.so"): "does not exist"} {
		if err := Check(path); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: error is %v, not %q", path, err, says)
		}
	}
}

func FuzzCheck(f *testing.F) {
	onLinux(f)
	f.Add([]byte("\x7fELF"))
	whole := plugin().bytes(f)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "a_plugin.so")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_ = Check(path) // must not panic
	})
}
