package data

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSquareKeepsTheAspectRatioAndTheCentre(t *testing.T) {
	wide := NewRGB(32, 8) // its columns are numbered
	for i := range wide.Width * wide.Height {
		wide.Pix[3*i] = uint8(i % 32)
	}
	got, err := Preprocess{Resolution: 8}.Square(wide, false)
	if err != nil {
		t.Fatal(err)
	}
	flipped, err := Preprocess{Resolution: 8}.Square(wide, true)
	if err != nil {
		t.Fatal(err)
	}
	for x := range 8 {
		if v := got.Pix[3*x]; v != uint8(12+x) {
			t.Errorf("column %d is column %d of the picture, want %d", x, v, 12+x)
		}
		if v := flipped.Pix[3*x]; v != uint8(19-x) {
			t.Errorf("flipped column %d is column %d, want %d", x, v, 19-x)
		}
	}
	tall, err := Preprocess{Resolution: 16, Filter: Bicubic}.Square(gradient(20, 61), false)
	if err != nil {
		t.Fatal(err)
	}
	want := gradient(20, 61).Resize(16, 48, Bicubic).Crop(0, 16, 16, 16)
	if !bytes.Equal(tall.Pix, want.Pix) {
		t.Error("a tall picture is not resized to 16×48 and cut at row 16")
	}
}

func TestPixelsAreChannelsFirstAndInvertible(t *testing.T) {
	p := gradient(6, 5)
	pixels := p.Pixels()
	if len(pixels) != 90 || pixels[30+7] != (float32(p.Pix[3*7+1])/255-0.5)/0.5 {
		t.Errorf("%d values, green of pixel 7 is %v", len(pixels), pixels[37])
	}
	if lo, hi := slices.Min(pixels), slices.Max(pixels); lo != -1 || hi > 1 {
		t.Errorf("the range is %v … %v", lo, hi)
	}
	q, err := FromPixels(pixels, 6, 5)
	if err != nil || !bytes.Equal(q.Pix, p.Pix) {
		t.Errorf("the way back differs: %v", err)
	}
	clipped, err := FromPixels([]float32{-3, 3, 0}, 1, 1)
	if err != nil || !bytes.Equal(clipped.Pix, []uint8{0, 255, 128}) {
		t.Errorf("got %v, %v", clipped, err)
	}
	for _, bad := range [][]float32{{0, 0}, {float32(math.NaN()), 0, 0}} {
		if _, err := FromPixels(bad, 1, 1); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestPreprocessRefuses(t *testing.T) {
	for _, p := range []Preprocess{{}, {Resolution: 100}, {Resolution: -8}, {Resolution: 1 << 20}, {Resolution: 8, Filter: 9}} {
		if _, err := p.Apply(gradient(9, 9), false); err == nil {
			t.Errorf("%+v is accepted", p)
		}
	}
	if _, err := (Preprocess{Resolution: 512}).Apply(NewRGB(1, 5000), false); err == nil || !strings.Contains(err.Error(), "elongated") {
		t.Errorf("1×5000: %v", err)
	}
}

func TestSavePNG(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.png")
	p := gradient(13, 9)
	if err := SavePNG(path, p); err != nil {
		t.Fatal(err)
	}
	if q := readPNG(t, path); !bytes.Equal(p.Pix, q.Pix) || q.Width != 13 {
		t.Error("the picture differs after saving")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("the folder holds %v", entries)
	}
	for path, p := range map[string]*RGB{filepath.Join(dir, "none", "x.png"): p, filepath.Join(dir, "y.png"): {Width: 3, Height: 3}} {
		if err := SavePNG(path, p); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestGrid(t *testing.T) {
	pictures := []*RGB{gradient(20, 10), gradient(20, 10), gradient(8, 6)}
	g, err := Grid(pictures, 2, []string{"a", "a label too long", ""})
	if err != nil {
		t.Fatal(err)
	}
	if g.Width != 2*24+4 || g.Height != 2*(10+labelHeight+4)+4 {
		t.Fatalf("the grid is %d×%d", g.Width, g.Height)
	}
	if got := g.Crop(28, 4, 20, 10); !bytes.Equal(got.Pix, pictures[1].Pix) {
		t.Error("the second picture is not at (28, 4)")
	}
	dark := func(p *RGB) bool { return slices.Min(p.Pix) < 128 }
	if !dark(g.Crop(4, 14, 20, labelHeight)) || dark(g.Crop(4, 44, 20, labelHeight)) || dark(g.Crop(24, 0, 4, g.Height)) {
		t.Error("labels are not drawn, or drawn outside their cells")
	}
	for name, bad := range map[string]func() (*RGB, error){
		"none":    func() (*RGB, error) { return Grid(nil, 2, nil) },
		"columns": func() (*RGB, error) { return Grid(pictures, 0, nil) },
		"labels":  func() (*RGB, error) { return Grid(pictures, 2, []string{"a"}) },
		"empty":   func() (*RGB, error) { return Grid([]*RGB{{Width: 2, Height: 2}}, 1, nil) },
	} {
		if _, err := bad(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
