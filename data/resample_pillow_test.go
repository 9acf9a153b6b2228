package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"image/png"
	"os"
	"testing"
)

// hashBytes is the function draw of scripts/check_fid.py, as bytes.
func hashBytes(name string, count int) []uint8 {
	h := fnv.New64a()
	h.Write([]byte(name))
	state := h.Sum64()
	out := make([]uint8, count)
	for i := range out {
		state += 0x9e3779b97f4a7c15
		z := (state ^ state>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		out[i] = uint8((z ^ z>>31) >> 56)
	}
	return out
}

// hashPNG is a picture of a kind whose pixels follow from its name.
func hashPNG(t *testing.T, name, kind string, width, height int) []byte {
	t.Helper()
	bounds := image.Rect(0, 0, width, height)
	var img image.Image
	switch kind {
	case "gray":
		img = &image.Gray{Pix: hashBytes(name, width*height), Stride: width, Rect: bounds}
	case "palette":
		colours := hashBytes(name+" palette", 768)
		var palette color.Palette
		for i := range 256 {
			palette = append(palette, color.RGBA{colours[3*i], colours[3*i+1], colours[3*i+2], 255})
		}
		img = &image.Paletted{Pix: hashBytes(name, width*height), Stride: width, Rect: bounds, Palette: palette}
	case "alpha":
		img = &image.NRGBA{Pix: hashBytes(name, 4*width*height), Stride: 4 * width, Rect: bounds}
	case "rgb", "edges":
		opaque := image.NewNRGBA(bounds)
		for i, v := range hashBytes(name, 3*width*height) {
			if kind == "edges" {
				v = v >> 7 * 255
			}
			opaque.Pix[i/3*4+i%3], opaque.Pix[i/3*4+3] = v, 255
		}
		img = opaque
	default:
		t.Fatalf("there are no pictures of kind %q", kind)
	}
	var out bytes.Buffer
	if err := png.Encode(&out, img); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The hashes are of what Pillow 13 makes of 100 pictures of odd sizes (scripts/check_resize.py).
func TestResizeOfManyPicturesEqualsPillow(t *testing.T) {
	content, err := os.ReadFile("testdata/resize.json")
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Pictures []struct {
			Name, Kind string
			From, To   [2]int
			SHA256     map[string]string
		}
	}
	if err := json.Unmarshal(content, &want); err != nil {
		t.Fatal(err)
	}
	if len(want.Pictures) != 100 {
		t.Fatalf("%d pictures", len(want.Pictures))
	}
	for _, c := range want.Pictures {
		picture, err := Decode(c.Name, hashPNG(t, c.Name, c.Kind, c.From[0], c.From[1]))
		if err != nil {
			t.Fatal(err)
		}
		for _, filter := range []Filter{Lanczos, Bicubic, Bilinear} {
			sum := sha256.Sum256(picture.Resize(c.To[0], c.To[1], filter).Pix)
			if got := fmt.Sprintf("%x", sum[:8]); got != c.SHA256[filter.String()] {
				t.Errorf("%s, %s, from %v to %v by %s differs from Pillow", c.Name, c.Kind, c.From, c.To, filter)
			}
		}
	}
}
