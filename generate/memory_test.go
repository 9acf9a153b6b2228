package generate

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

// Tiles change a picture where they meet, slices at most its last bits, and a tile as large as the picture nothing.
func TestVAEMemorySwitches(t *testing.T) {
	m := load(t)
	picture := func(change func(o *Options)) []byte {
		t.Helper()
		o := quick()
		o.Batch = 2
		change(&o)
		made, err := generator(t, m, o).Pictures(context.Background(), []Request{{Prompt: "a star"}, {Prompt: "a box"}})
		if err != nil {
			t.Fatal(err)
		}
		return slices.Concat(made[0].Image.Pix, made[1].Image.Pix)
	}
	whole := picture(func(*Options) {})
	worst := func(other []byte) (most int) {
		for i, x := range other {
			most = max(most, int(x)-int(whole[i]), int(whole[i])-int(x))
		}
		return most
	}
	if d := worst(picture(func(o *Options) { o.VAESlicing = true })); d > 1 {
		t.Errorf("slicing changes pictures by %d levels", d)
	}
	if d := worst(picture(func(o *Options) { o.VAETiling = true })); d > 1 {
		t.Errorf("a tile as large as the picture changes it by %d levels", d)
	}
	if d := worst(picture(func(o *Options) { o.VAETiling, o.VAETileSize = true, 16 })); d < 2 {
		t.Errorf("small tiles change pictures by %d levels only", d)
	}
}

func TestMemorySettingsOfAList(t *testing.T) {
	for key, change := range map[string]func(l *List){
		"vae-tile-size": func(l *List) { l.VAETileSize = 16 },
		"batch":         func(l *List) { l.Batch = -1 },
	} {
		l := list()
		change(&l)
		var setting *SettingError
		if err := l.Validate(); !errors.As(err, &setting) || setting.Key != key || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", key, err)
		}
	}
	l := list()
	l.Images = 1
	dir := t.TempDir()
	if _, err := Fill(context.Background(), openEngine(t), l, dir, FillHooks{}); err != nil {
		t.Fatal(err)
	}
	l.VAETiling, l.VAETileSize = true, 16
	if _, err := Fill(context.Background(), openEngine(t), l, dir, FillHooks{}); err == nil || !strings.Contains(err.Error(), "VAE tiling false, not true") {
		t.Errorf("pictures of other tiles go into one folder: %v", err)
	}
}
