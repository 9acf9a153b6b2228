package clip

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/random"
)

// Transform is how a picture of any size becomes CLIP's square input. All resample bicubically, as Pillow does to the
// last bit. The zero value is [Standard].
type Transform struct {
	kind transformKind
	seed uint64
}

type transformKind int

const (
	standard transformKind = iota
	processor
	cropFirst
	training
)

// The transforms without a choice.
var (
	// Standard resizes the short side and cuts out the centre, of odd margins by rounding halves to even: CLIP's own
	// (openai/CLIP, clip.py; torchvision's Resize and CenterCrop).
	Standard = Transform{kind: standard}
	// Processor is Standard with margins rounded down: transformers' CLIPImageProcessor, which diffusers' safety checker
	// sees pictures through.
	Processor = Transform{kind: processor}
	// CropFirst cuts out the central square and resizes that: CMMD's (google-research, cmmd/io_util.py).
	CropFirst = Transform{kind: cropFirst}
)

// Training cuts out a random part of 90 to 100 % of the area, with sides in a ratio of 3:4 to 4:3, and resizes it to a
// square (torchvision's RandomResizedCrop as open_clip trains with it; there is no flip). The part depends on the seed and on
// the picture alone. Published figures of MHSC were computed so by mistake; use it to compare with them only.
func Training(seed uint64) Transform { return Transform{kind: training, seed: seed} }

// String says what the transform does, for the record.
func (t Transform) String() string {
	switch t.kind {
	case processor:
		return "short side bicubic, centre crop (CLIPImageProcessor)"
	case cropFirst:
		return "centre square, bicubic"
	case training:
		return fmt.Sprintf("random crop of 90 to 100 %%, bicubic, seed %d", t.seed)
	}
	return "short side bicubic, centre crop"
}

// Apply returns the picture as side × side pixels. It fails for a picture without pixels, and for one so elongated that it
// would pass [data.MaxPixels] when its short side is enlarged.
func (t Transform) Apply(picture *data.RGB, side int) (*data.RGB, error) {
	if picture == nil || picture.Width < 1 || picture.Height < 1 || len(picture.Pix) != 3*picture.Width*picture.Height {
		return nil, fmt.Errorf("it has no pixels; read it again")
	}
	short, long := min(picture.Width, picture.Height), max(picture.Width, picture.Height)
	switch t.kind {
	case cropFirst:
		square := picture.Crop((picture.Width-short)/2, (picture.Height-short)/2, short, short)
		return square.Resize(side, side, data.Bicubic), nil
	case training:
		x, y, width, height := t.randomPart(picture)
		return picture.Crop(x, y, width, height).Resize(side, side, data.Bicubic), nil
	}
	long = int(int64(side) * int64(long) / int64(short)) // rounded down, as torchvision and transformers do
	if long > data.MaxPixels/side {
		return nil, fmt.Errorf("its %d × %d pixels are too elongated for a short side of %d; crop it", picture.Width, picture.Height, side)
	}
	width, height := side, long
	if picture.Width > picture.Height {
		width, height = long, side
	}
	margin := func(length int) int {
		if t.kind == processor {
			return (length - side) / 2
		}
		return int(math.RoundToEven(float64(length-side) / 2)) // Python's round
	}
	return picture.Resize(width, height, data.Bicubic).Crop(margin(width), margin(height), side, side), nil
}

// randomPart draws the rectangle of torchvision's RandomResizedCrop: ten attempts, then the centre.
func (t Transform) randomPart(picture *data.RGB) (x, y, width, height int) {
	hash := sha256.New()
	hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(picture.Width)))
	hash.Write(picture.Pix)
	r := random.New(t.seed, "random resized crop", binary.LittleEndian.Uint64(hash.Sum(nil)))
	const narrowest, widest = 3.0 / 4, 4.0 / 3
	area := float64(picture.Width) * float64(picture.Height)
	for range 10 {
		part := area * (0.9 + 0.1*r.Float64())
		ratio := math.Exp(math.Log(narrowest) + (math.Log(widest)-math.Log(narrowest))*r.Float64())
		width, height = int(math.RoundToEven(math.Sqrt(part*ratio))), int(math.RoundToEven(math.Sqrt(part/ratio)))
		if width > 0 && width <= picture.Width && height > 0 && height <= picture.Height {
			return r.IntN(picture.Width - width + 1), r.IntN(picture.Height - height + 1), width, height
		}
	}
	width, height = picture.Width, picture.Height
	switch ratio := float64(width) / float64(height); {
	case ratio < narrowest:
		height = int(math.RoundToEven(float64(width) / narrowest))
	case ratio > widest:
		width = int(math.RoundToEven(float64(height) * widest))
	}
	return (picture.Width - width) / 2, (picture.Height - height) / 2, width, height
}
