package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

func TestPlaceholder(t *testing.T) {
	plain, err := Load("../testdata/golden/tiny-sd/tokenizer")
	if err != nil {
		t.Fatal(err)
	}
	words, err := plain.WithPlaceholder("<ball>", 2)
	if err != nil {
		t.Fatal(err)
	}
	ids, cut := words.Encode("A photo of <Ball>, and a red circle")
	// From transformers and diffusers (scripts/check_embedding.py).
	want := []int32{1512, 320, 1125, 539, 1514, 1515, 267, 537, 320, 736, 66, 582, 66, 579, 1513}
	if !slices.Equal(ids[:len(want)], want) || cut != "" {
		t.Errorf("ids %v, want %v; cut %q", ids[:len(want)], want, cut)
	}
	if words.VocabSize() != plain.VocabSize()+2 {
		t.Errorf("%d tokens", words.VocabSize())
	}
	before, _ := plain.Encode("a <ball>")
	if slices.Contains(before, 1514) {
		t.Error("the tokenizer that was given learnt the word too")
	}
	// Where only one of its tokens fits the word is said to be cut.
	ids, cut = words.Encode(strings.Repeat("a ", 74) + "<ball>")
	if ids[75] != 1514 || ids[76] != words.EndID() || cut != "<ball>" {
		t.Errorf("at the end of the window: ids %v, cut %q", ids[74:], cut)
	}
	for _, bad := range []string{"", " ", "a photo", "photo", "a"} {
		if _, err := plain.WithPlaceholder(bad, 1); err == nil {
			t.Errorf("the placeholder %q is accepted", bad)
		}
	}
	if _, err := words.WithPlaceholder("<ball>", 1); err == nil {
		t.Error("the same placeholder is accepted twice")
	}
	for _, n := range []int{0, 76} {
		if _, err := plain.WithPlaceholder("<ball>", n); err == nil {
			t.Errorf("%d tokens are accepted", n)
		}
	}
}
