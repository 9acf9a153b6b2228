package tokenizer

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// The vocabulary that the program carries is, byte for byte, the one that published models come with.
func TestWriteCLIPIsThePublishedVocabulary(t *testing.T) {
	dir := t.TempDir()
	if err := WriteCLIP(dir, defaultEnd); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"vocab.json", "merges.txt"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("../testdata/golden/clip-vocab", name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from the published one (%d and %d bytes)", name, len(got), len(want))
		}
	}
	if len(clipMerges) > 350<<10 {
		t.Errorf("the vocabulary takes %d bytes of the program", len(clipMerges))
	}
}

func TestWriteCLIPPads(t *testing.T) {
	golden, err := Load("../testdata/golden/clip-vocab")
	if err != nil {
		t.Fatal(err)
	}
	for padding, id := range map[string]int32{"<|endoftext|>": 49407, "!": 0} {
		dir := t.TempDir()
		if err := WriteCLIP(dir, padding); err != nil {
			t.Fatal(err)
		}
		got, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.VocabSize() != 49408 || got.Length() != 77 || got.StartID() != 49406 || got.EndID() != 49407 || got.PadID() != id {
			t.Errorf("padding %q: %d tokens, length %d, start %d, end %d, padding %d", padding, got.VocabSize(), got.Length(), got.StartID(), got.EndID(), got.PadID())
		}
		if own, err := CLIP(padding); err != nil || !reflect.DeepEqual(own, got) {
			t.Errorf("padding %q: without files the tokenizer is another one (%v)", padding, err)
		}
		const prompt = "a photo of a Dog, <|endoftext|> naïve café"
		a, _ := golden.Encode(prompt)
		b, _ := got.Encode(prompt)
		for i := range a {
			if a[i] == b[i] {
				continue
			}
			if a[i] != golden.PadID() || b[i] != id {
				t.Fatalf("padding %q: token %d is %d instead of %d", padding, i, b[i], a[i])
			}
		}
	}
	if _, err := CLIP("no such token"); err == nil || !strings.Contains(err.Error(), `no token "no such token"`) {
		t.Errorf("padding that is no token: %v", err)
	}
	if err := WriteCLIP(filepath.Join(t.TempDir(), "absent"), "!"); err == nil {
		t.Error("an absent folder is no error")
	}
	var special map[string]json.RawMessage
	dir := t.TempDir()
	if err := WriteCLIP(dir, "!"); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "special_tokens_map.json"))
	if err != nil || json.Unmarshal(raw, &special) != nil || string(special["pad_token"]) != `"!"` {
		t.Errorf("special_tokens_map.json is %s (%v)", raw, err)
	}
}
