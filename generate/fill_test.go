package generate

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/train"
)

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

// list is two pictures of each of two prompts.
func list() List {
	o := Defaults()
	o.Steps, o.Scheduler = 1, "ddim"
	return List{Options: o, Model: tinyModel, Images: 2, Seed: 42, Prompts: []data.Prompt{{Text: "a red star"}, {Text: "a blue ball"}}}
}

// contents are the files of a folder by name.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(content)
	}
	return out
}

func TestListSettings(t *testing.T) {
	for key, change := range map[string]func(l *List){
		"images":  func(l *List) { l.Images = 0 },
		"images ": func(l *List) { l.Images = MaxImages + 1 },
		"shard":   func(l *List) { l.Shard = Shard{Index: 2, Of: 2} },
		"shard ":  func(l *List) { l.Shard = Shard{Index: 1} },
		"prompts": func(l *List) { l.Prompts = nil },
		"prompt":  func(l *List) { l.Prompts[1].Text = " \t" },
	} {
		l := list()
		change(&l)
		dir := filepath.Join(t.TempDir(), "never")
		_, err := Fill(context.Background(), nil, l, dir, FillHooks{})
		var setting *SettingError
		if !errors.As(err, &setting) || setting.Key != strings.TrimSpace(key) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", key, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the folder was made", key)
		}
	}
	for _, s := range []string{"", "1", "1/", "/2", "-1/2", "2/2", "0/0", "a/b", "1/2/3"} {
		var setting *SettingError
		if shard, err := ParseShard(s); !errors.As(err, &setting) {
			t.Errorf("shard %q is taken for %v: %v", s, shard, err)
		}
	}
	if shard, err := ParseShard("3/4"); err != nil || shard != (Shard{Index: 3, Of: 4}) {
		t.Errorf("shard 3/4 is %v: %v", shard, err)
	}
}

// Each number belongs to exactly one shard.
func TestShardsAreAPartition(t *testing.T) {
	for of := range 5 {
		for i := range 20 {
			owners := 0
			for index := range max(1, of) {
				if (Shard{Index: index, Of: of}).Has(i) {
					owners++
				}
			}
			if owners != 1 {
				t.Errorf("picture %d has %d owners among %d shards", i, owners, of)
			}
		}
	}
}

func TestFillInPartsEqualsAtOnce(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	whole, parts := filepath.Join(t.TempDir(), "whole"), filepath.Join(t.TempDir(), "parts")
	var shown []int
	filled, err := Fill(ctx, e, list(), whole, FillHooks{OnPicture: func(done, total int, _ string) { shown = append(shown, done, total) }})
	if err != nil || filled != (Filled{Made: 4}) || len(shown) != 8 || shown[0] != 1 || shown[7] != 4 {
		t.Fatalf("made %+v, showed %v: %v", filled, shown, err)
	}
	// The second shard is stopped after its first picture, then the rest is made without shards.
	l, finish := list(), make(chan struct{})
	l.Shard = Shard{Index: 1, Of: 2}
	filled, err = Fill(ctx, e, l, parts, FillHooks{Finish: finish, OnPicture: func(int, int, string) { close(finish) }})
	if !errors.Is(err, train.ErrInterrupted) || filled != (Filled{Made: 1}) {
		t.Fatalf("stopped, it made %+v: %v", filled, err)
	}
	if listed := contents(t, parts)["metadata.jsonl"]; strings.Count(listed, "\n") != 1 || !strings.Contains(listed, "00000-01.png") {
		t.Errorf("after the stop the list says\n%s", listed)
	}
	if filled, err = Fill(ctx, e, list(), parts, FillHooks{}); err != nil || filled != (Filled{Made: 3, Skipped: 1}) {
		t.Fatalf("continued, it made %+v: %v", filled, err)
	}
	want, got := contents(t, whole), contents(t, parts)
	for name, content := range want {
		if got[name] != content {
			t.Errorf("%s differs", name)
		}
	}
	if len(want) != len(got) {
		t.Errorf("%d files instead of %d", len(got), len(want))
	}
}

// In batches, cut where the guidance changes, every picture is that of its own request, up to rounding.
func TestFillInBatches(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	guidance := 3.0
	l := list()
	l.Images, l.Prompts = 1, append(l.Prompts, data.Prompt{Text: "a box"}, data.Prompt{Text: "a box", Guidance: &guidance})
	single, batches := filepath.Join(t.TempDir(), "single"), filepath.Join(t.TempDir(), "batches")
	if _, err := Fill(ctx, e, l, single, FillHooks{}); err != nil {
		t.Fatal(err)
	}
	l.Batch = 2
	if filled, err := Fill(ctx, e, l, batches, FillHooks{}); err != nil || filled.Made != 4 {
		t.Fatalf("made %+v: %v", filled, err)
	}
	want, got := contents(t, single), contents(t, batches)
	if got["metadata.jsonl"] != want["metadata.jsonl"] {
		t.Errorf("the list of pictures is\n%s, not\n%s", got["metadata.jsonl"], want["metadata.jsonl"])
	}
	for _, name := range []string{"00000-00.png", "00001-00.png", "00002-00.png", "00003-00.png"} {
		a, errA := data.Decode(name, []byte(want[name]))
		b, errB := data.Decode(name, []byte(got[name]))
		if errA != nil || errB != nil || len(a.Pix) != len(b.Pix) {
			t.Fatal(errA, errB)
		}
		for i := range a.Pix {
			if d := int(a.Pix[i]) - int(b.Pix[i]); d < -1 || d > 1 {
				t.Fatalf("%s: byte %d is %d, not %d", name, i, b.Pix[i], a.Pix[i])
			}
		}
	}
}

func TestFillRefusesWhatItDidNotMake(t *testing.T) {
	e, ctx := openEngine(t), context.Background()
	dir := t.TempDir()
	l := list()
	l.Prompts, l.Images = l.Prompts[:1], 1
	refused := func(l List, parts ...string) {
		t.Helper()
		before := contents(t, dir)
		_, err := Fill(ctx, e, l, dir, FillHooks{})
		if err == nil || strings.Contains(err.Error(), "\n") {
			t.Fatalf("error %v", err)
		}
		for _, part := range parts {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("no %q in error %v", part, err)
			}
		}
		for name, content := range contents(t, dir) {
			if before[name] != content {
				t.Errorf("%s changed", name)
			}
		}
	}
	mine := filepath.Join(dir, "mine.txt")
	if err := os.WriteFile(mine, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(l, "is not empty", "mine.txt")
	if err := os.Remove(mine); err != nil {
		t.Fatal(err)
	}
	if _, err := Fill(ctx, e, l, dir, FillHooks{}); err != nil {
		t.Fatal(err)
	}
	other := l
	other.Steps, other.Seed, other.Negative, other.Batch = 2, 43, "a box", 2
	refused(other, "other settings", "steps 1, not 2", "seed 42, not 43", `"a box"`, "batch 0, not 2")
	other = l
	other.Prompts = []data.Prompt{{Text: "a red star", Seed: new(uint64)}}
	refused(other, "another list of prompts")
	if err := os.WriteFile(filepath.Join(dir, "generation.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	refused(l, "generation.json is damaged")
	bad := list()
	bad.Scheduler = "fast"
	never := filepath.Join(dir, "never")
	if _, err := Fill(ctx, e, bad, never, FillHooks{}); err == nil {
		t.Error("an unknown sampler is taken")
	}
	if _, err := os.Stat(never); err == nil {
		t.Error("a bad setting made the folder")
	}
}

func TestFillWarnsOfCutPrompts(t *testing.T) {
	l := list()
	l.Images = 1
	l.Prompts = []data.Prompt{{Text: strings.Repeat("star ", 90) + "finis"}}
	var warnings []string
	if _, err := Fill(context.Background(), openEngine(t), l, t.TempDir(), FillHooks{Warn: func(s string) { warnings = append(warnings, s) }}); err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "prompt 0 is longer than 77 tokens") || !strings.Contains(warnings[0], "finis") {
		t.Errorf("warnings %q", warnings)
	}
}
