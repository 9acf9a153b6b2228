package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/weights"
)

func generateArgs(out string, more ...string) []string {
	return append([]string{"generate", "--model", tinyModel, "--steps", "2", "--scheduler", "ddim", "--out", out}, more...)
}

// pictures are the bytes of the pictures and of their list in a folder.
func pictures(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		out[e.Name()] = string(read(t, dir, e.Name()))
	}
	return out
}

func equalFolders(t *testing.T, a, b map[string]string) {
	t.Helper()
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s differs", name)
		}
	}
	if len(a) != len(b) {
		t.Errorf("%d files instead of %d", len(b), len(a))
	}
}

func TestGenerate(t *testing.T) {
	dir := t.TempDir()
	list := write(t, filepath.Join(dir, "list.csv"), "prompt,seed,guidance\na red star,,\na blue square,7,3\n\"a person, drawn\",,1\n")
	whole, shards := filepath.Join(dir, "whole"), filepath.Join(dir, "shards")
	made := decode[generated](t, succeed(t, generateArgs(whole, "--prompts", list, "--images", "2", "--json")...))
	if made.Made != 6 || made.Skipped != 0 {
		t.Errorf("the first run says %+v", made)
	}
	want := pictures(t, whole)

	// Half of the pictures by each of two shards, with another number of threads.
	succeed(t, generateArgs(shards, "--prompts", list, "--images", "2", "--shard", "1/2", "--threads", "1")...)
	if n := len(pictures(t, shards)); n != 5 { // three pictures, their list, the settings
		t.Errorf("half of the pictures are %d files", n)
	}
	succeed(t, generateArgs(shards, "--prompts", list, "--images", "2", "--shard", "0/2")...)
	equalFolders(t, want, pictures(t, shards))

	// What is missing is made again, and nothing else.
	lost := filepath.Join(whole, "00001-01.png")
	kept, err := os.Stat(filepath.Join(whole, "00000-00.png"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(lost); err != nil {
		t.Fatal(err)
	}
	again := decode[generated](t, succeed(t, generateArgs(whole, "--prompts", list, "--images", "2", "--json")...))
	if again.Made != 1 || again.Skipped != 5 {
		t.Errorf("the second run says %+v", again)
	}
	equalFolders(t, want, pictures(t, whole))
	if now, err := os.Stat(filepath.Join(whole, "00000-00.png")); err != nil || !now.ModTime().Equal(kept.ModTime()) {
		t.Errorf("a finished picture was touched: %v", err)
	}

	folder, err := data.ReadFolder(whole)
	if err != nil {
		t.Fatalf("the pictures are no data set: %v", err)
	}
	captions := []string{"a red star", "a red star", "a blue square", "a blue square", "a person, drawn", "a person, drawn"}
	for i, p := range folder.Pictures {
		if p.Caption != captions[i] {
			t.Errorf("%s has caption %q", p.Name, p.Caption)
		}
		if picture, err := folder.Decode(i); err != nil || picture.Width != 32 || picture.Height != 32 {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	unlike := map[string]bool{}
	for name, content := range want {
		if strings.HasSuffix(name, ".png") {
			unlike[content] = true
		}
	}
	if len(unlike) != 6 {
		t.Errorf("only %d of 6 pictures differ from one another", len(unlike))
	}

	// A prompt's own seed and guidance count as the flags do.
	single := filepath.Join(dir, "single")
	succeed(t, generateArgs(single, "--prompt", "a blue square", "--seed", "7", "--guidance", "3", "--images", "2")...)
	if !bytes.Equal(read(t, single, "00000-01.png"), read(t, whole, "00001-01.png")) {
		t.Error("the seed and guidance of the list were not honoured")
	}

	fail(t, exitFailed, generateArgs(whole, "--prompts", list, "--seed", "43"), "other settings", "seed 42, not 43")
	fail(t, exitFailed, generateArgs(whole, "--prompt", "a red star"), "another list of prompts")
}

func TestGenerateOptions(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	succeed(t, generateArgs(base, "--prompt", "a red star")...)
	plain := read(t, base, "00000-00.png")
	lora := filepath.Join(dir, "lora.safetensors")
	const module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
	values := slices.Repeat([]float32{0.5}, 64)
	adapter := &weights.LoRA{Layers: []weights.LoRALayer{{Module: module, Down: values[:32], Up: values, Rank: 1, In: 32, Out: 64, Alpha: 1}}}
	if err := weights.WriteLoRA(lora, adapter, weights.F32, nil); err != nil {
		t.Fatal(err)
	}
	for name, more := range map[string][]string{
		"seed":     {"--seed", "43"},
		"negative": {"--negative-prompt", "a blue square"},
		"guidance": {"--guidance", "1"},
		"sampler":  {"--scheduler", "euler"},
		"adapter":  {"--lora", lora},
	} {
		out := filepath.Join(dir, name)
		succeed(t, generateArgs(out, append(more, "--prompt", "a red star")...)...)
		if bytes.Equal(plain, read(t, out, "00000-00.png")) {
			t.Errorf("--%s changes nothing", name)
		}
	}
	wide := filepath.Join(dir, "wide")
	long := strings.Repeat("star ", 90) + "finis"
	code, _, errOut := command(t, generateArgs(wide, "--prompt", long, "--height", "32", "--width", "64")...)
	if code != exitDone || !strings.Contains(errOut, "longer than 77 tokens; cut off") || !strings.Contains(errOut, "finis") {
		t.Errorf("exit code %d, no warning of the prompt's cut end:\n%s", code, errOut)
	}
	if picture, err := data.Decode("wide", read(t, wide, "00000-00.png")); err != nil || picture.Width != 64 || picture.Height != 32 {
		t.Errorf("the wide picture: %v", err)
	}
	if err := weights.WriteLoRA(lora, &weights.LoRA{Layers: []weights.LoRALayer{{Module: "nowhere.to_q", Down: values[:32], Up: values, Rank: 1, In: 32, Out: 64, Alpha: 1}}}, weights.F32, nil); err != nil {
		t.Fatal(err)
	}
	fail(t, exitFailed, generateArgs(filepath.Join(dir, "never"), "--prompt", "a", "--lora", lora), "nowhere.to_q")
}
