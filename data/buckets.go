package data

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Size is the width and height of a picture in pixels.
type Size struct{ Width, Height int }

// String is WIDTH×HEIGHT.
func (s Size) String() string { return fmt.Sprintf("%d×%d", s.Width, s.Height) }

// Buckets bring pictures of all aspect ratios to a few sizes of about equal area, so that batches can be made of pictures
// of one size and little is cut off: sides are multiples of a step, the area is at most that of the square, and no side is
// longer than two of its.
type Buckets struct {
	Resolution int  // side of the square, in pixels
	Step       int  // sides are multiples of it; it must divide Resolution
	Upscale    bool // enlarge pictures that are too small for their bucket; otherwise they get a smaller one
}

// Validate says what is wrong with the settings.
func (b Buckets) Validate() error {
	if b.Resolution <= 0 || b.Resolution > maxResolution || b.Step <= 0 || b.Resolution%b.Step != 0 {
		return fmt.Errorf("buckets need a resolution that is a multiple of %d, not %d", b.Step, b.Resolution)
	}
	return nil
}

// Sizes lists the buckets of pictures that are large enough, by width.
func (b Buckets) Sizes() []Size {
	var out []Size
	for width := b.Step; width <= 2*b.Resolution; width += b.Step {
		height := min(b.Resolution*b.Resolution/width, 2*b.Resolution) / b.Step * b.Step
		if height == 0 {
			continue
		}
		// A wider one of the same height takes its place.
		out = slices.DeleteFunc(out, func(s Size) bool { return s.Height == height })
		out = append(out, Size{width, height})
	}
	return slices.DeleteFunc(out, func(s Size) bool { return 2*min(s.Width, s.Height) < b.Resolution })
}

// For is the bucket of a picture: the one with the nearest aspect ratio. A picture that would have to be enlarged gets its
// own size, rounded down, unless Upscale is set; one that is smaller than a step then is an error.
func (b Buckets) For(picture Size) (Size, error) {
	sizes := b.Sizes()
	if picture.Width <= 0 || picture.Height <= 0 || len(sizes) == 0 {
		return Size{}, fmt.Errorf("a picture of %v fits no bucket", picture)
	}
	away := func(s Size) float64 {
		return math.Abs(math.Log(float64(s.Width) / float64(s.Height) * float64(picture.Height) / float64(picture.Width)))
	}
	best := slices.MinFunc(sizes, func(x, y Size) int { return cmp.Compare(away(x), away(y)) })
	if b.Upscale || picture.Width >= best.Width && picture.Height >= best.Height {
		return best, nil
	}
	own := func(side int) int { return min(side, 2*b.Resolution) / b.Step * b.Step }
	small := Size{own(picture.Width), own(picture.Height)}
	if small.Width == 0 || small.Height == 0 {
		return Size{}, fmt.Errorf("a picture of %v is smaller than %d pixels on a side, the least that training takes; leave it out or allow pictures to be enlarged", picture, b.Step)
	}
	if area := b.Resolution * b.Resolution; small.Width*small.Height > area { // large in one direction
		small.Width = area / small.Height / b.Step * b.Step
	}
	return small, nil
}

// Fit resizes a picture so that it just covers a size, and cuts out its centre; flip mirrors the result left to right.
func (p Preprocess) Fit(picture *RGB, size Size, flip bool) (*RGB, error) {
	if picture.Width <= 0 || picture.Height <= 0 || len(picture.Pix) != 3*picture.Width*picture.Height {
		return nil, fmt.Errorf("a picture of %d×%d with %d bytes has no pixels to resize", picture.Width, picture.Height, len(picture.Pix))
	}
	if size.Width <= 0 || size.Height <= 0 || size.Width > maxResolution || size.Height > maxResolution {
		return nil, fmt.Errorf("a picture cannot be brought to %v; use sides from 1 to %d", size, maxResolution)
	}
	width, height := int64(size.Width), int64(size.Height)
	if w, h := int64(picture.Width), int64(picture.Height); w*height > h*width { // wider than the size
		width = (w*height + h/2) / h
	} else {
		height = (h*width + w/2) / w
	}
	if width > MaxPixels/height {
		return nil, fmt.Errorf("a picture of %d×%d is too elongated for %v; crop it", picture.Width, picture.Height, size)
	}
	out := picture.Resize(int(width), int(height), p.Filter)
	out = out.Crop((out.Width-size.Width)/2, (out.Height-size.Height)/2, size.Width, size.Height)
	if flip {
		out = out.Flip()
	}
	return out, nil
}

// BucketCount is a bucket and how many pictures it has.
type BucketCount struct {
	Size
	Pictures int
}

// BucketBatches are [Batches] each of which is made of pictures of one bucket. They are a pure function of (seed, purpose,
// step) as well. Buckets take turns as evenly as their shares allow; within a bucket every picture is seen before any of
// them comes again. A bucket's share is that of its pictures, so that each picture of a source is drawn as often as the
// others, and each source as often as its weight says.
type BucketBatches struct {
	counts  []BucketCount
	choice  *Batches // whose turn it is: one source for each bucket
	inside  []*Batches
	members [][][]int // of each bucket and source, the pictures
}

// NewBucketBatches prepares batches of pictures whose buckets are given for each source.
func NewBucketBatches(seed uint64, purpose string, batchSize int, flip bool, sources []Source, buckets [][]Size) (*BucketBatches, error) {
	if len(sources) != len(buckets) {
		return nil, fmt.Errorf("%d sources of pictures for %d lists of their buckets", len(sources), len(buckets))
	}
	var sizes []Size
	for i, list := range buckets {
		if len(list) != sources[i].Size {
			return nil, fmt.Errorf("source %d has %d pictures and %d buckets of them", i, sources[i].Size, len(list))
		}
		sizes = append(sizes, list...)
	}
	slices.SortFunc(sizes, func(a, b Size) int { return cmp.Or(cmp.Compare(a.Width, b.Width), cmp.Compare(a.Height, b.Height)) })
	b := &BucketBatches{}
	var turns []Source
	for _, size := range slices.Compact(sizes) {
		members, parts := make([][]int, len(sources)), make([]Source, len(sources))
		turn, count := Source{Size: 1}, 0
		for i, list := range buckets {
			for k, s := range list {
				if s == size {
					members[i] = append(members[i], k)
				}
			}
			parts[i] = Source{Size: len(members[i])}
			if len(members[i]) > 0 {
				parts[i].Weight = sources[i].Weight * float64(len(members[i])) / float64(len(list))
			}
			turn.Weight += parts[i].Weight
			count += len(members[i])
		}
		if turn.Weight == 0 {
			continue // pictures of sources that are never drawn
		}
		inside, err := NewBatches(seed, fmt.Sprintf("%s, %v", purpose, size), batchSize, flip, parts...)
		if err != nil {
			return nil, err
		}
		b.counts = append(b.counts, BucketCount{size, count})
		b.inside, b.members = append(b.inside, inside), append(b.members, members)
		turns = append(turns, turn)
	}
	var err error
	b.choice, err = NewBatches(seed, purpose+", buckets", 1, false, turns...)
	return b, err
}

// Counts lists the buckets, by width.
func (b *BucketBatches) Counts() []BucketCount { return slices.Clone(b.counts) }

// At returns the draws of a step, counted from 0, and their bucket.
func (b *BucketBatches) At(step int) ([]Draw, Size) {
	bucket, turn := b.choice.source(step)
	draws := b.inside[bucket].At(turn)
	for i, d := range draws {
		draws[i].Index = b.members[bucket][d.Source][d.Index]
	}
	return draws, b.counts[bucket].Size
}
