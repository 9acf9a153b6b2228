package denoise

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
)

// Pictures that are larger than a tile are encoded by tiles and kept apart from those that were encoded whole; others are
// encoded whole.
func TestDatasetEncodesByTiles(t *testing.T) {
	m := loadTiny(t)
	folder := t.TempDir()
	picture := data.NewRGB(64, 64)
	for y := range 64 {
		for x := range 64 {
			copy(picture.Pix[3*(64*y+x):], []uint8{uint8(4 * x), uint8(4 * y), uint8(x * y)})
		}
	}
	if err := data.SavePNG(filepath.Join(folder, "a.png"), picture); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "a.txt"), []byte("a ramp"), 0o600); err != nil {
		t.Fatal(err)
	}
	pictures, err := data.ReadFolder(folder)
	if err != nil {
		t.Fatal(err)
	}
	cache, err := data.OpenCache(t.TempDir(), 1<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	moments := func(side, tile int) []float32 {
		t.Helper()
		d, err := NewDataset("ramp", m, data.Mixture{{Folder: pictures, Weight: 1}}, data.Preprocess{Resolution: side}, cache, DatasetOptions{VAETile: tile}, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := d.moments(t.Context(), data.Draw{})
		if err != nil {
			t.Fatal(err)
		}
		return append(slices.Clone(got.Mean), got.LogVariance...)
	}
	whole, tiled := moments(64, 0), moments(64, 32)
	if slices.Equal(whole, tiled) {
		t.Error("64 pixels were encoded alike whole and by tiles of 32")
	}
	if again := moments(64, 0); !slices.Equal(again, whole) {
		t.Error("what was encoded by tiles is taken for what was encoded whole")
	}
	picture, err = pictures.Decode(0)
	if err != nil {
		t.Fatal(err)
	}
	pixels, err := data.Preprocess{Resolution: 64}.Apply(picture, false)
	if err != nil {
		t.Fatal(err)
	}
	want, err := m.EncodePictureTiled(t.Context(), pixels, 64, 64, 32)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(tiled, append(want.Mean, want.LogVariance...)) {
		t.Error("the tiles are not those of the model")
	}
	if !slices.Equal(moments(32, 32), moments(32, 0)) {
		t.Error("a picture of the size of a tile is not encoded whole")
	}
	_, err = NewDataset("ramp", m, data.Mixture{{Folder: pictures, Weight: 1}}, data.Preprocess{Resolution: 64}, cache, DatasetOptions{VAETile: 30}, nil)
	if err == nil || !strings.Contains(err.Error(), "vae_tile_size: tiles of 30 pixels") {
		t.Errorf("tiles that do not fit give %v", err)
	}
}
