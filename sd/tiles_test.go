package sd

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/weights"
)

// furthest is the largest difference of two lists of numbers.
func furthest(t *testing.T, got, want []float32) float64 {
	t.Helper()
	if len(got) != len(want) || len(got) == 0 {
		t.Fatalf("%d numbers, want %d", len(got), len(want))
	}
	worst := 0.0
	for i := range want {
		worst = max(worst, math.Abs(float64(got[i])-float64(want[i])))
	}
	return worst
}

// The tiles are those of diffusers (scripts/tiled_vae.py): two rows of four, the last of each narrower, 48 by 80 pixels.
func TestTilesAgreeWithDiffusers(t *testing.T) {
	m := load(t, tinySD)
	file, err := weights.Open("../testdata/vae-tiles.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	read := func(name string) []float32 {
		x, err := file.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		values, err := x.Float32()
		if err != nil {
			t.Fatal(err)
		}
		return values
	}
	const h, w = 24, 40
	tile, err := m.TileSize(0)
	if err != nil || tile != 32 {
		t.Fatalf("tiles of %d pixels, %v", tile, err)
	}
	latents, want := read("latents"), read("picture")
	whole, err := m.Decode(t.Context(), latents, h, w)
	if err != nil {
		t.Fatal(err)
	}
	if e := furthest(t, whole, read("whole")); e > 1e-5 {
		t.Errorf("the whole picture differs by %g", e)
	}
	picture, err := m.DecodeSparing(t.Context(), latents, 1, h, w, VAEMemory{Tile: tile})
	if err != nil {
		t.Fatal(err)
	}
	if e := furthest(t, picture, want); e > 1e-5 {
		t.Errorf("the tiled picture differs by %g", e)
	} else {
		t.Logf("tiled picture: %.1g from diffusers', %.2g (root mean square %.2g of the picture's) from the whole one",
			e, furthest(t, picture, whole), relative(picture, whole))
	}
	moments, err := m.EncodePictureTiled(t.Context(), want, 2*h, 2*w, tile)
	if err != nil {
		t.Fatal(err)
	}
	if e := furthest(t, append(moments.Mean, moments.LogVariance...), read("moments")); e > 1e-5 {
		t.Errorf("the tiled moments differ by %g", e)
	}
}

// Pictures no larger than a tile are whole, and slices are what each picture is by itself.
func TestSlicesAndSmallPictures(t *testing.T) {
	m := load(t, tinySD)
	const h, w = 16, 12
	latents := random.New(3, "slices").Normals(3 * 4 * h * w)
	all, err := m.DecodeBatch(t.Context(), latents, 3, h, w)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []VAEMemory{{Slicing: true}, {Tile: 32}, {Slicing: true, Tile: 32}} {
		got, err := m.DecodeSparing(t.Context(), latents, 3, h, w, s)
		if err != nil {
			t.Fatal(err)
		}
		if e := relative(got, all); e > 1e-5 {
			t.Errorf("%+v: differs by %g", s, e)
		}
	}
	var alone []float32
	for one := range slices.Chunk(latents, len(latents)/3) {
		picture, err := m.Decode(t.Context(), one, h, w)
		if err != nil {
			t.Fatal(err)
		}
		alone = append(alone, picture...)
	}
	sliced, err := m.DecodeSparing(t.Context(), latents, 3, h, w, VAEMemory{Slicing: true})
	if err != nil || !slices.Equal(sliced, alone) {
		t.Errorf("slices are not the pictures by themselves (%v)", err)
	}
	tiled, err := m.DecodeSparing(t.Context(), latents, 3, h, w, VAEMemory{Tile: 16})
	if err != nil {
		t.Fatal(err)
	}
	last, err := m.DecodeSparing(t.Context(), latents[2*4*h*w:], 1, h, w, VAEMemory{Tile: 16})
	if err != nil || !slices.Equal(tiled[2*len(tiled)/3:], last) {
		t.Errorf("tiles of a batch are not those of its pictures (%v)", err)
	}
}

// With a map that sees no surroundings, blending and cutting must give back the whole, whatever the size.
func TestTilesOfALocalMapAreSeamless(t *testing.T) {
	s := random.New(4, "tiles")
	for range 200 {
		tile := 4 * (1 + s.IntN(4))
		in := plane{h: 1 + s.IntN(40), w: 1 + s.IntN(40)}
		in.values = s.Normals(2 * in.h * in.w)
		const scale = 2
		double := func(p plane) ([]float32, error) {
			var out []float32
			for y := range 2 * p.h * scale { // both channels
				for x := range p.w * scale {
					out = append(out, 3*p.values[y/scale*p.w+x/scale])
				}
			}
			return out, nil
		}
		want, _ := double(in)
		got, err := tiling{tile: tile, extent: tile * scale / overlapShare, outHeight: in.h * scale, outWidth: in.w * scale}.run(in, double)
		if err != nil {
			t.Fatal(err)
		}
		if e := furthest(t, got, want); e > 1e-5 {
			t.Fatalf("%d×%d in tiles of %d: differs by %g", in.h, in.w, tile, e)
		}
	}
}

func TestTileErrors(t *testing.T) {
	m := load(t, tinySD)
	for _, size := range []int{-8, 4, 12, 33} {
		if _, err := m.TileSize(size); err == nil || !strings.Contains(err.Error(), "multiple of 8") {
			t.Errorf("tiles of %d: %v", size, err)
		}
	}
	m.VAE.Config.SampleSize = 36
	if _, err := m.TileSize(0); err == nil || !strings.Contains(err.Error(), "sample_size = 36") {
		t.Errorf("default: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.DecodeSparing(ctx, make([]float32, 4*24*24), 1, 24, 24, VAEMemory{Tile: 16}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := m.EncodePictureTiled(ctx, make([]float32, 3*48*48), 48, 48, 16); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := m.EncodePictureTiled(t.Context(), make([]float32, 3*49*49), 49, 49, 16); err == nil || !strings.Contains(err.Error(), "multiples") {
		t.Errorf("odd size: %v", err)
	}
	if _, err := m.DecodeSparing(t.Context(), make([]float32, 7), 1, 24, 24, VAEMemory{Tile: 16}); err == nil || !strings.Contains(err.Error(), "7 latents") {
		t.Errorf("too few latents: %v", err)
	}
}
