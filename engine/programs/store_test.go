package programs

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestStoreKeepsAndRefusesDamage(t *testing.T) {
	s := NewStore(filepath.Join(t.TempDir(), "deep", "programs"), 1<<20)
	key := Key([]byte("text"), []byte("options"))
	if got, err := s.Load(key); got != nil || err != nil {
		t.Fatalf("an empty store gives %v, %v", got, err)
	}
	program := bytes.Repeat([]byte("machine code "), 100)
	if err := s.Save(key, program); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(key); !bytes.Equal(got, program) || err != nil {
		t.Fatalf("loaded %d bytes of %d, %v", len(got), len(program), err)
	}
	if n, size, err := s.Size(); n != 1 || size < int64(len(program)) || err != nil {
		t.Errorf("%d programs of %d bytes, %v", n, size, err)
	}
	path := s.path(key)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 1
	for name, content := range map[string][]byte{"empty": {}, "cut": whole[:len(whole)-1], "only its head": whole[:len(magic)+3], "flipped": flipped} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load(key); got != nil || err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: loaded %d bytes, %v", name, len(got), err)
		}
	}
	if err := s.Save(key, program); err != nil { // over the damaged one
		t.Fatal(err)
	}
	if got, err := s.Load(key); !bytes.Equal(got, program) || err != nil {
		t.Errorf("after the damage: %d bytes, %v", len(got), err)
	}
}

func TestKeyTellsPartsApart(t *testing.T) {
	if Key([]byte("ab"), []byte("c")) == Key([]byte("a"), []byte("bc")) || Key([]byte("a")) == Key([]byte("a"), nil) {
		t.Error("different parts have the same key")
	}
}

func TestStoreForgetsWhatWasNotUsed(t *testing.T) {
	folder := t.TempDir()
	s := NewStore(folder, 2500)
	others := filepath.Join(folder, "notes.xla")
	if err := os.WriteFile(others, bytes.Repeat([]byte("x"), 9000), 0o600); err != nil {
		t.Fatal(err)
	}
	keys := []string{Key([]byte("1")), Key([]byte("2")), Key([]byte("3"))}
	for i, key := range keys {
		if err := s.Save(key, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(s.path(key), then, then); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // the first is used again, so the second is the oldest
			if _, err := s.Load(keys[0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.prune(); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true} {
		if got, err := s.Load(keys[i]); (got != nil) != want || err != nil {
			t.Errorf("program %d: there %v, want %v; %v", i+1, got != nil, want, err)
		}
	}
	if _, err := os.Stat(others); err != nil {
		t.Errorf("a file of somebody else's is gone: %v", err)
	}
	if err := s.Save(Key([]byte("large")), make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := s.Size(); n != 2 {
		t.Errorf("a program above the limit displaced others: %d are left", n)
	}
}

func TestStoreSaysWhatFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := NewStore(file, 1<<20)
	if err := s.Save(Key(nil), []byte("x")); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("saving into a file says %v", err)
	}
	if _, err := s.Load(Key(nil)); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("loading from a file says %v", err)
	}
}
