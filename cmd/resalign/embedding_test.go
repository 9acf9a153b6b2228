package main

import (
	"path/filepath"
	"testing"
)

// A word that finetune learns is one that generate knows.
func TestLearnAWordAndUseIt(t *testing.T) {
	dir := t.TempDir()
	r := decode[tuned](t, succeed(t, finetuneArgs(filepath.Join(dir, "word"), "--json",
		"--method", "textual-inversion", "--placeholder", "<zq>", "--initializer", "photo", "--vectors", "2", "--nesterov", "--momentum", "0.5", "--optimizer", "sgd")...))
	if r.Model != "" || filepath.Base(r.Embedding) != "learned_embeds.safetensors" {
		t.Errorf("result is %+v", r)
	}
	with, without := filepath.Join(dir, "with"), filepath.Join(dir, "without")
	succeed(t, generateArgs(with, "--prompt", "a photo of <zq>", "--embedding", r.Embedding)...)
	succeed(t, generateArgs(without, "--prompt", "a photo of <zq>")...)
	if a, b := pictures(t, with), pictures(t, without); a["00000-00.png"] == b["00000-00.png"] {
		t.Error("the word makes no difference")
	}
	fail(t, 1, generateArgs(filepath.Join(dir, "bad"), "--prompt", "a", "--embedding", filepath.Join(dir, "none")), "none")
}
