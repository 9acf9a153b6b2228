package plan

import (
	"os"
	"path/filepath"
	"testing"
)

func TestParseMemory(t *testing.T) {
	for text, want := range map[string]int64{"24GB": 24e9, "24 GiB": 24 << 30, "512mb": 512e6, "1.5GiB": 3 << 29, "4096": 4096} {
		if got, err := ParseMemory(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GB", "-1GB", "NaN", "1e300GB", "many", "0"} {
		if n, err := ParseMemory(text); err == nil {
			t.Errorf("%q: %d, want an error", text, n)
		}
	}
}

func TestGroupLimit(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("membership", "0::/a/b\n")
	write("root/a/memory.max", "1000\n")
	write("root/a/memory.current", "300\n")
	write("root/a/b/memory.max", "max\n")
	write("root/a/b/memory.current", "200\n")
	if got := groupLeft(filepath.Join(dir, "membership"), filepath.Join(dir, "root"), 5000); got != 700 {
		t.Errorf("%d bytes left, want 700", got)
	}
	if got := groupLeft(filepath.Join(dir, "nothing"), filepath.Join(dir, "root"), 5000); got != 5000 {
		t.Errorf("%d bytes left without a group, want 5000", got)
	}
}
