package generate

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/nn"
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

// A picture in bfloat16 differs by noise: at least 30 dB over it. A folder does not mix both.
func TestBFloat16(t *testing.T) {
	m := load(t)
	var made [2][]byte
	for i := range made {
		if i == 1 {
			m.Compute = nn.BFloat16
		}
		for _, p := range pictures(t, generator(t, m, quick()), requests(1)) {
			made[i] = append(made[i], p.Image.Pix...)
		}
	}
	square := 0.0
	for k, x := range made[0] {
		square += math.Pow(float64(x)-float64(made[1][k]), 2)
	}
	psnr := 10 * math.Log10(255*255*float64(len(made[0]))/square)
	t.Logf("%.1f dB", psnr)
	if !(psnr > 30) || math.IsInf(psnr, 0) {
		t.Errorf("pictures differ by %v dB", psnr)
	}

	e, dir, l := openEngine(t), t.TempDir(), list()
	l.Images = 1
	if _, err := Fill(context.Background(), e, l, dir, FillHooks{}); err != nil {
		t.Fatal(err)
	}
	l.Compute = "float32" // what empty stands for
	if _, err := Fill(context.Background(), e, l, dir, FillHooks{}); err != nil {
		t.Error(err)
	}
	l.Compute = "bfloat16"
	if _, err := Fill(context.Background(), e, l, dir, FillHooks{}); err == nil || !strings.Contains(err.Error(), "compute") {
		t.Errorf("a folder of float32 was filled in bfloat16: %v", err)
	}
	other := t.TempDir()
	if _, err := Fill(context.Background(), e, l, other, FillHooks{}); err != nil {
		t.Fatal(err)
	}
	if contents(t, other)["00000-00.png"] == contents(t, dir)["00000-00.png"] {
		t.Error("bfloat16 changed nothing")
	}
}

func TestMemorySettingsOfAList(t *testing.T) {
	for key, change := range map[string]func(l *List){
		"vae-tile-size": func(l *List) { l.VAETileSize = 16 },
		"batch":         func(l *List) { l.Batch = -1 },
		"compute":       func(l *List) { l.Compute = "float16" },
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
