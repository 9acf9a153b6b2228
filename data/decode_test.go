package data

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The expected pictures were made by Pillow 13.0: exif_transpose, white behind transparency, RGB. All must agree exactly, as
// JPEG and WebP are decoded as libjpeg-turbo and libwebp do.
func TestDecodeAgreesWithPillow(t *testing.T) {
	expected, err := filepath.Glob("testdata/decode/*.expected.png")
	if err != nil || len(expected) < 20 {
		t.Fatalf("%d cases, %v", len(expected), err)
	}
	for _, path := range expected {
		in := strings.TrimSuffix(path, ".expected.png")
		t.Run(filepath.Base(in), func(t *testing.T) {
			got, want := readPNG(t, in), readPNG(t, path)
			if got.Width != want.Width || got.Height != want.Height {
				t.Fatalf("%d×%d, want %d×%d", got.Width, got.Height, want.Width, want.Height)
			}
			if !bytes.Equal(got.Pix, want.Pix) {
				t.Error("the pixels differ")
			}
		})
	}
}

func TestDecodeRefusesBadFiles(t *testing.T) {
	read := func(name string) []byte {
		content, err := os.ReadFile(filepath.Join("testdata/decode", name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "not a PNG, JPEG or WebP"},
		{"text", []byte("hello"), "not a PNG, JPEG or WebP"},
		{"half a PNG", read("gray.png")[:60], "truncated"},
		{"half a JPEG", read("ycbcr.jpg")[:700], "truncated"},
		{"half a WebP", read("lossless.webp")[:40], "cannot be decoded"},
		{"only a signature", []byte("\x89PNG\r\n\x1a\n"), "truncated"},
		{"huge header", pngHeader(20_000, 20_000), "megapixels"},
		{"header larger than the file justifies", pngHeader(9000, 9000), "too few"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Decode("x.png", c.file)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "x.png") {
				t.Errorf("got %v, want an error with %q and the name", err, c.want)
			}
		})
	}
}

// pngHeader is a PNG file that ends after declaring its size.
func pngHeader(width, height uint32) []byte {
	chunk := append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte("IHDR"), width), height), 8, 2, 0, 0, 0)
	file := append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\x0d"), chunk...)
	return append(binary.BigEndian.AppendUint32(file, crc32.ChecksumIEEE(chunk)), "\x00\x00\x00\x00IDAT"...)
}

func TestCheckReportsEveryBadPicture(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "bad.png", "no picture")
	write(t, dir, "huge.png", string(pngHeader(20_000, 20_000)))
	good, err := os.ReadFile("testdata/decode/rgba.png")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "good.jpg", string(good)) // content counts, not the name
	f, err := ReadPictures(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = f.Check()
	if err == nil || !strings.Contains(err.Error(), "bad.png") || !strings.Contains(err.Error(), "huge.png") || strings.Contains(err.Error(), "good") {
		t.Errorf("got %v", err)
	}
	if p, err := f.Decode(1); err != nil || p.Width != 11 || p.Height != 7 {
		t.Errorf("good.jpg: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/decode/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if !bytes.Contains([]byte(path), []byte("expected")) {
			f.Add(content)
		}
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		began := time.Now()
		p, err := Decode("x", file)
		if err == nil && (p.Width <= 0 || p.Height <= 0 || len(p.Pix) != 3*p.Width*p.Height) {
			t.Errorf("%d×%d with %d bytes", p.Width, p.Height, len(p.Pix))
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("decoding %d bytes took %v", len(file), d)
		}
	})
}
