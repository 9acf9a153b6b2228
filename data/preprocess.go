package data

import (
	"fmt"
	"math"
)

// Preprocess turns pictures into the square input of a diffusion model: the short side becomes Resolution, the aspect
// ratio is kept, and the centre is cut out (torchvision's Resize and CenterCrop).
type Preprocess struct {
	Resolution int    // side of the output in pixels, a multiple of 8 (the factor between pictures and latents)
	Filter     Filter // Lanczos unless set
}

// String names everything that the pixels depend on besides the picture, for a [Key].
func (p Preprocess) String() string {
	return fmt.Sprintf("short side %d %s, centre crop", p.Resolution, p.Filter)
}

// maxResolution bounds the sides of training pictures.
const maxResolution = 8192

// Validate says what is wrong with the settings.
func (p Preprocess) Validate() error {
	if p.Resolution <= 0 || p.Resolution%8 != 0 || p.Resolution > maxResolution {
		return fmt.Errorf("the resolution is %d; use a multiple of 8 from 8 to 8192, such as 512", p.Resolution)
	}
	if p.Filter < Lanczos || p.Filter > Bilinear {
		return fmt.Errorf("the resampling filter %d is unknown; use Lanczos, Bicubic or Bilinear", p.Filter)
	}
	return nil
}

// Square resizes and crops; flip mirrors the result left to right. It fails for unusable settings, and for a picture so
// elongated that it would pass [MaxPixels] when its short side is enlarged.
func (p Preprocess) Square(picture *RGB, flip bool) (*RGB, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	short, long := min(picture.Width, picture.Height), max(picture.Width, picture.Height)
	if short <= 0 || len(picture.Pix) != 3*short*long {
		return nil, fmt.Errorf("a picture of %d×%d with %d bytes has no pixels to resize", picture.Width, picture.Height, len(picture.Pix))
	}
	long = int(int64(p.Resolution) * int64(long) / int64(short)) // rounded down, as torchvision does
	if long > MaxPixels/p.Resolution {
		return nil, fmt.Errorf("a picture of %d×%d is too elongated for resolution %d; crop it", picture.Width, picture.Height, p.Resolution)
	}
	width, height := p.Resolution, long
	if picture.Width > picture.Height {
		width, height = long, p.Resolution
	}
	margin := func(side int) int { return int(math.RoundToEven(float64(side-p.Resolution) / 2)) } // Python's round
	out := picture.Resize(width, height, p.Filter).Crop(margin(width), margin(height), p.Resolution, p.Resolution)
	if flip {
		out = out.Flip()
	}
	return out, nil
}

// Apply returns the pixels of [Preprocess.Square] as [3, Resolution, Resolution] in [−1, 1].
func (p Preprocess) Apply(picture *RGB, flip bool) ([]float32, error) {
	square, err := p.Square(picture, flip)
	if err != nil {
		return nil, err
	}
	return square.Pixels(), nil
}

// Pixels returns the picture as [3, Height, Width] in [−1, 1]: v/255 first and (v − ½)/½ then, as torchvision's ToTensor
// and Normalize do, to the last bit.
func (p *RGB) Pixels() []float32 {
	var scaled [256]float32
	for v := range scaled {
		scaled[v] = (float32(v)/255 - 0.5) / 0.5
	}
	area := p.Width * p.Height
	out := make([]float32, 3*area)
	for i := range area {
		for c := range 3 {
			out[c*area+i] = scaled[p.Pix[3*i+c]]
		}
	}
	return out
}

// FromPixels is the inverse of [RGB.Pixels], for pixels of shape [3, height, width]: values outside [−1, 1] are clipped
// and the rest rounded to the nearest byte, half to even, as diffusers writes pictures. A value that is not a number is
// an error.
func FromPixels(pixels []float32, width, height int) (*RGB, error) {
	if width <= 0 || height <= 0 || width > len(pixels) || height > len(pixels) || len(pixels) != 3*width*height {
		return nil, fmt.Errorf("%d values are not a picture of 3×%d×%d", len(pixels), height, width)
	}
	out := NewRGB(width, height)
	area := width * height
	for i, v := range pixels {
		if v != v {
			return nil, fmt.Errorf("value %d of the picture is not a number; the model or its decoder has diverged", i)
		}
		v = min(max(v/2+0.5, 0), 1)
		out.Pix[3*(i%area)+i/area] = uint8(math.RoundToEven(float64(v * 255)))
	}
	return out, nil
}
