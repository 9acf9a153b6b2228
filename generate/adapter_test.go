package generate

import (
	"os"
	"path/filepath"
	"testing"
)

// An adapter's folder is told from others by all that is read of it, and by nothing else.
func TestAdapterHash(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hash := func(path string) string {
		t.Helper()
		h, err := adapterHash(path)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	put("a/unet/adapter_model.safetensors", "weights")
	put("a/unet/adapter_config.json", "settings")
	first := hash(filepath.Join(dir, "a"))
	put("a/unet/README.md", "words")
	if got := hash(filepath.Join(dir, "a")); got != first {
		t.Error("a file that no reader looks at changed the adapter")
	}
	put("a/unet/adapter_config.json", "other settings")
	second := hash(filepath.Join(dir, "a"))
	put("a/text_encoder/adapter_model.safetensors", "more")
	third := hash(filepath.Join(dir, "a"))
	if first == second || second == third || first == third {
		t.Errorf("different adapters are told apart by %s, %s, %s", first, second, third)
	}
	put("b.safetensors", "weights")
	put("c.safetensors", "weights")
	if hash(filepath.Join(dir, "b.safetensors")) != hash(filepath.Join(dir, "c.safetensors")) {
		t.Error("the name of a file changed the adapter")
	}
	if _, err := adapterHash(filepath.Join(dir, "none")); err == nil {
		t.Error("an adapter that is not there has a hash")
	}
}
