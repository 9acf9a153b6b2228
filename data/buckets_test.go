package data

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestBucketSizes(t *testing.T) {
	b := Buckets{Resolution: 512, Step: 64}
	sizes := b.Sizes()
	if !slices.Contains(sizes, Size{512, 512}) || !slices.Contains(sizes, Size{768, 320}) || !slices.Contains(sizes, Size{320, 768}) {
		t.Errorf("buckets %v", sizes)
	}
	for i, s := range sizes {
		if s.Width%64 != 0 || s.Height%64 != 0 || s.Width*s.Height > 512*512 || s.Width*s.Height < 3*512*512/4 || max(s.Width, s.Height) > 1024 {
			t.Errorf("bucket %v", s)
		}
		if i > 0 && s.Width <= sizes[i-1].Width {
			t.Errorf("buckets %v are not sorted", sizes)
		}
		if !slices.Contains(sizes, Size{s.Height, s.Width}) {
			t.Errorf("%v has no upright twin", s)
		}
	}
	for _, bad := range []Buckets{{Resolution: 500, Step: 64}, {}, {Resolution: -64, Step: 64}, {Resolution: 64}, {Resolution: 1 << 20, Step: 64}} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

func TestBucketOfAPicture(t *testing.T) {
	for _, c := range []struct {
		picture Size
		upscale bool
		want    Size
	}{
		{Size{2000, 2000}, false, Size{512, 512}},
		{Size{3000, 2000}, false, Size{640, 384}},
		{Size{2000, 3000}, false, Size{384, 640}},
		{Size{4000, 500}, false, Size{1024, 256}},
		{Size{400, 300}, false, Size{384, 256}}, // too small for 576×448
		{Size{400, 300}, true, Size{576, 448}},
		{Size{64, 64}, false, Size{64, 64}},
		{Size{20, 20}, true, Size{512, 512}},
		{Size{5000, 130}, false, Size{1024, 128}},
	} {
		got, err := (Buckets{Resolution: 512, Step: 64, Upscale: c.upscale}).For(c.picture)
		if err != nil || got != c.want {
			t.Errorf("%v, upscale %v: bucket %v, %v", c.picture, c.upscale, got, err)
		}
	}
	b := Buckets{Resolution: 512, Step: 64}
	if _, err := b.For(Size{63, 400}); err == nil || !strings.Contains(err.Error(), "63×400") {
		t.Errorf("error %v", err)
	}
	// Whatever the picture, nothing is enlarged and no area is above the square's.
	for width := 64; width < 3000; width += 97 {
		for height := 64; height < 3000; height += 89 {
			s, err := b.For(Size{width, height})
			if err != nil || s.Width > width || s.Height > height || s.Width*s.Height > 512*512 || s.Width%64 != 0 || s.Height%64 != 0 {
				t.Fatalf("%d×%d: bucket %v, %v", width, height, s, err)
			}
		}
	}
}

// What is left of a picture is its middle, in its own proportions.
func TestFitCoversAndCrops(t *testing.T) {
	p := NewRGB(60, 20)
	for i := range p.Pix {
		p.Pix[i] = uint8(4 * (i / 3 % 60))
	}
	out, err := (Preprocess{}).Fit(p, Size{20, 10}, false)
	if err != nil || out.Width != 20 || out.Height != 10 {
		t.Fatalf("%v, %v", out, err)
	}
	// Halved to 30×10, then columns 5 … 24: pixel x shows the source's columns around 2(x + 5) + ½.
	for x := range 20 {
		if want := 4 * (2*float64(x+5) + 0.5); math.Abs(float64(out.Pix[3*x])-want) > 2 {
			t.Errorf("column %d is %d, want about %v", x, out.Pix[3*x], want)
		}
	}
	flipped, err := (Preprocess{}).Fit(p, Size{20, 10}, true)
	if err != nil || flipped.Pix[0] != out.Pix[3*19] {
		t.Errorf("mirrored it begins with %d: %v", flipped.Pix[0], err)
	}
	for _, bad := range []Size{{0, 10}, {10, -1}, {1 << 20, 8}} {
		if _, err := (Preprocess{}).Fit(p, bad, false); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
	if _, err := (Preprocess{}).Fit(&RGB{Width: 1, Height: 100_000, Pix: make([]uint8, 300_000)}, Size{4096, 64}, false); err == nil {
		t.Error("a thread of a picture is enlarged")
	}
}

// Every batch has one bucket, every picture is seen once in each round of its bucket, and sources and buckets have their
// shares.
func TestBucketBatches(t *testing.T) {
	wide, tall, square := Size{96, 32}, Size{32, 96}, Size{64, 64}
	buckets := [][]Size{{wide, square, wide, tall, square, wide, square, square}, {square, wide}}
	sources := []Source{{Size: 8, Weight: 0.75}, {Size: 2, Weight: 0.25}}
	b, err := NewBucketBatches(3, "test", 2, true, sources, buckets)
	if err != nil {
		t.Fatal(err)
	}
	if want := []BucketCount{{tall, 1}, {square, 5}, {wide, 4}}; !slices.Equal(b.Counts(), want) {
		t.Errorf("buckets %v", b.Counts())
	}
	const steps = 4000
	seen, flips := map[[2]int]int{}, 0
	for step := range steps {
		draws, size := b.At(step)
		if len(draws) != 2 {
			t.Fatalf("%d draws", len(draws))
		}
		for _, d := range draws {
			if buckets[d.Source][d.Index] != size {
				t.Fatalf("a batch of %v has a picture of %v", size, buckets[d.Source][d.Index])
			}
			seen[[2]int{d.Source, d.Index}]++
			if d.Flip {
				flips++
			}
		}
	}
	for i, s := range sources {
		for k := range s.Size {
			want := 2 * steps * s.Weight / float64(s.Size)
			if n := float64(seen[[2]int{i, k}]); math.Abs(n-want) > 4 {
				t.Errorf("picture %d of source %d was drawn %v times, want %v", k, i, n, want)
			}
		}
	}
	if flips < steps*9/10 || flips > steps*11/10 {
		t.Errorf("%d of %d draws are mirrored", flips, 2*steps)
	}
	again, err := NewBucketBatches(3, "test", 2, true, sources, buckets)
	if err != nil {
		t.Fatal(err)
	}
	draws, size := again.At(1234)
	if want, wantSize := b.At(1234); !slices.Equal(draws, want) || size != wantSize {
		t.Error("a batch depends on the ones before")
	}
}

func TestBucketBatchesRefuse(t *testing.T) {
	one := [][]Size{{{8, 8}}}
	for name, f := range map[string]func() (*BucketBatches, error){
		"nothing drawn": func() (*BucketBatches, error) { return NewBucketBatches(1, "", 1, false, []Source{{Size: 1}}, one) },
		"no pictures":   func() (*BucketBatches, error) { return NewBucketBatches(1, "", 1, false, nil, nil) },
		"other lists": func() (*BucketBatches, error) {
			return NewBucketBatches(1, "", 1, false, []Source{{Size: 2, Weight: 1}}, one)
		},
		"batch of none": func() (*BucketBatches, error) {
			return NewBucketBatches(1, "", 0, false, []Source{{Size: 1, Weight: 1}}, one)
		},
	} {
		if b, err := f(); err == nil {
			t.Errorf("%s: %v", name, b)
		}
	}
}

// The size told from the header is that of the decoded picture, also of one that lies on its side.
func TestFolderSize(t *testing.T) {
	f, err := ReadPictures("testdata/decode")
	if err != nil {
		t.Fatal(err)
	}
	turned := 0
	for i := range f.Len() {
		p, err := f.Decode(i)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := f.Size(i); err != nil || s != (Size{p.Width, p.Height}) {
			t.Errorf("%s: size %v, %v, but it is %d×%d", f.Path(i), s, err, p.Width, p.Height)
		}
		if p.Height > p.Width {
			turned++
		}
	}
	if turned == 0 {
		t.Error("no picture is turned")
	}
	dir := t.TempDir()
	write(t, dir, "bad.png", "no picture")
	if f, err = ReadPictures(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Size(0); err == nil || !strings.Contains(err.Error(), "bad.png") {
		t.Errorf("error %v", err)
	}
}
