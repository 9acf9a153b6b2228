package data

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

func readPNG(t *testing.T, path string) *RGB {
	t.Helper()
	dir, name := filepath.Split(path)
	p, err := (&Folder{Dir: dir, Pictures: []Picture{{Name: name}}}).Decode(0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The expected pictures were made by Pillow 13.0 (Image.resize).
func TestResizeEqualsPillow(t *testing.T) {
	cases, err := filepath.Glob("testdata/resize/*.in.png")
	if err != nil || len(cases) < 10 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	filters := map[string]Filter{"lanczos": Lanczos, "bicubic": Bicubic, "bilinear": Bilinear}
	for _, in := range cases {
		name := strings.TrimSuffix(filepath.Base(in), ".in.png")
		t.Run(name, func(t *testing.T) {
			var w, h, width, height int
			var filter string
			if _, err := fmt.Sscanf(strings.ReplaceAll(name, "_", " "), "%dx%d %dx%d %s", &w, &h, &width, &height, &filter); err != nil {
				t.Fatal(err)
			}
			got := readPNG(t, in).Resize(width, height, filters[filter])
			want := readPNG(t, strings.Replace(in, ".in.", ".out.", 1))
			if got.Width != want.Width || got.Height != want.Height || !bytes.Equal(got.Pix, want.Pix) {
				t.Errorf("%d×%d differs from Pillow's %d×%d:\n%v\n%v", got.Width, got.Height, want.Width, want.Height, got.Pix, want.Pix)
			}
		})
	}
}

func TestResizeToTheSameSizeCopies(t *testing.T) {
	p := gradient(5, 4)
	q := p.Resize(5, 4, Lanczos)
	if !bytes.Equal(p.Pix, q.Pix) {
		t.Error("the copy differs")
	}
	q.Pix[0]++
	if p.Pix[0] == q.Pix[0] {
		t.Error("the copy shares its bytes with the original")
	}
}

// gradient is a picture whose pixels all differ.
func gradient(width, height int) *RGB {
	p := NewRGB(width, height)
	for i := range width * height {
		p.Pix[3*i], p.Pix[3*i+1], p.Pix[3*i+2] = uint8(i%width*7), uint8(i/width*11), uint8(i)
	}
	return p
}

func BenchmarkResizePhoto(b *testing.B) {
	photo := gradient(4000, 3000)
	for b.Loop() {
		photo.Resize(683, 512, Lanczos)
	}
}
