package data

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/png"
	"io"

	"golang.org/x/image/webp"

	"github.com/resalign/resalign/data/jpeg"
)

// MaxPixels is the largest picture that is decoded, told from its header before anything is allocated for it.
const MaxPixels = 100_000_000

// RGB is a picture of 8 bits per channel; Pix holds rows from the top, each Width × (red, green, blue).
type RGB struct {
	Width, Height int
	Pix           []uint8
}

// NewRGB returns a black picture.
func NewRGB(width, height int) *RGB {
	return &RGB{Width: width, Height: height, Pix: make([]uint8, 3*width*height)}
}

// format is a picture format, recognised by content whatever the file is called.
type format struct {
	matches func(file []byte) bool
	size    func(file []byte) (Size, error)
	decode  func(file []byte) (*RGB, error)
	// pixelsPerByte bounds what a file can honestly hold, so that a small file with a large header allocates nothing.
	// PNG: deflate packs at most 1032:1, and a byte has at most eight 1-bit pixels. JPEG: its decoder counts blocks. WebP
	// has no such bound: one colour fills a picture of any size in a few bytes.
	pixelsPerByte int
}

var formats = []format{
	{func(f []byte) bool { return bytes.HasPrefix(f, []byte("\x89PNG\r\n\x1a\n")) }, sizeBy(png.DecodeConfig), decodeBy(png.Decode), 8 * 1032},
	{func(f []byte) bool { return bytes.HasPrefix(f, []byte{0xff, 0xd8, 0xff}) }, sizeOfJPEG, decodeJPEG, MaxPixels},
	{func(f []byte) bool {
		return len(f) >= 12 && string(f[:4]) == "RIFF" && string(f[8:12]) == "WEBP"
	}, sizeBy(webp.DecodeConfig), decodeBy(webp.Decode), MaxPixels},
}

func sizeOfJPEG(file []byte) (Size, error) {
	h, err := jpeg.ReadHeader(file)
	return Size{h.Width, h.Height}, err
}

func decodeJPEG(file []byte) (*RGB, error) {
	h, pixels, err := jpeg.Decode(file)
	return &RGB{h.Width, h.Height, pixels}, err
}

// decodeHeader recognises the format of a picture file and checks its size.
func decodeHeader(name string, file []byte) (format, error) {
	f, _, err := readHeader(name, file)
	return f, err
}

// readHeader is decodeHeader with the size that the header gives, before the picture is turned upright.
func readHeader(name string, file []byte) (format, Size, error) {
	for _, f := range formats {
		if !f.matches(file) {
			continue
		}
		size, err := f.size(file)
		if err != nil {
			return f, Size{}, fmt.Errorf("%s cannot be decoded: %w; replace or remove it", name, err)
		}
		// The formats allow at most 32 bits a side, so the product cannot overflow.
		pixels := uint64(size.Width) * uint64(size.Height)
		switch {
		case pixels == 0:
			return f, Size{}, fmt.Errorf("%s is %d×%d and has no pixels; replace or remove it", name, size.Width, size.Height)
		case pixels > MaxPixels:
			return f, Size{}, fmt.Errorf("%s is %d×%d, over the limit of %d megapixels; shrink it", name, size.Width, size.Height, MaxPixels/1_000_000)
		case pixels > uint64(len(file))*uint64(f.pixelsPerByte):
			return f, Size{}, fmt.Errorf("%s cannot be decoded: %d bytes are too few for %d×%d; replace or remove it", name, len(file), size.Width, size.Height)
		}
		return f, size, nil
	}
	return format{}, Size{}, fmt.Errorf("%s is not a PNG, JPEG or WebP picture; convert or remove it", name)
}

// Decode decodes a PNG, JPEG or WebP file, told apart by content, and turns it upright if its EXIF data says so.
// Transparency is composited on white; 16-bit channels keep their high byte; gray, palettes and CMYK become RGB. The
// name is used in errors only.
func Decode(name string, file []byte) (*RGB, error) {
	f, err := decodeHeader(name, file)
	if err != nil {
		return nil, err
	}
	picture, err := f.decode(file)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be decoded: %w; replace or remove it", name, err)
	}
	return picture.upright(orientation(file)), nil
}

// sizeBy and decodeBy adapt the decoders of libraries.
func sizeBy(config func(io.Reader) (image.Config, error)) func([]byte) (Size, error) {
	return func(file []byte) (Size, error) {
		c, err := guarded(config, file)
		return Size{c.Width, c.Height}, err
	}
}

func decodeBy(decode func(io.Reader) (image.Image, error)) func([]byte) (*RGB, error) {
	return func(file []byte) (*RGB, error) {
		img, err := guarded(decode, file)
		if err != nil {
			return nil, err
		}
		return flatten(img), nil
	}
}

// guarded runs a decoder of a library that has panicked on malformed files before, and turns that into an error.
func guarded[T any](decode func(io.Reader) (T, error), file []byte) (out T, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("malformed picture (%v)", r)
		}
		if err != nil {
			err = plainly(err)
		}
	}()
	return decode(bytes.NewReader(file))
}

// plainly says in words what a decoder's error means.
func plainly(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return errors.New("the file is truncated")
	}
	return fmt.Errorf("the file is damaged or truncated (%w)", err)
}

// flatten converts a decoded picture to RGB on white.
func flatten(img image.Image) *RGB {
	bounds := img.Bounds()
	out := NewRGB(bounds.Dx(), bounds.Dy())
	i := 0
	put := func(r, g, b uint8) {
		out.Pix[i], out.Pix[i+1], out.Pix[i+2] = r, g, b
		i += 3
	}
	// Most pictures are of these kinds; the last case is right for all others and ten times slower.
	switch img := img.(type) {
	case *image.YCbCr:
		return flattenLossyWebP(img)
	case *image.NYCbCrA:
		opaque := flattenLossyWebP(&img.YCbCr)
		for i := range opaque.Pix {
			x, y := i/3%opaque.Width, i/3/opaque.Width
			opaque.Pix[i] = onWhite(opaque.Pix[i], img.A[img.AOffset(bounds.Min.X+x, bounds.Min.Y+y)])
		}
		return opaque
	case *image.RGBA: // what the PNG decoder gives for pictures without transparency
		if !img.Opaque() {
			return flattenAny(img)
		}
		for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
			for line := img.Pix[img.PixOffset(bounds.Min.X, y):][:4*out.Width]; len(line) > 0; line = line[4:] {
				put(line[0], line[1], line[2])
			}
		}
	case *image.NRGBA:
		for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
			for line := img.Pix[img.PixOffset(bounds.Min.X, y):][:4*out.Width]; len(line) > 0; line = line[4:] {
				put(onWhite(line[0], line[3]), onWhite(line[1], line[3]), onWhite(line[2], line[3]))
			}
		}
	default:
		return flattenAny(img)
	}
	return out
}

func flattenAny(img image.Image) *RGB {
	bounds := img.Bounds()
	out := NewRGB(bounds.Dx(), bounds.Dy())
	i := 0
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			r, g, b, a := img.At(x, y).RGBA() // 16 bits, colour multiplied by alpha
			for _, v := range [3]uint32{r, g, b} {
				out.Pix[i] = uint8((v + 0xffff - a) >> 8)
				i++
			}
		}
	}
	return out
}

// onWhite blends a channel with white, rounded to the nearest value.
func onWhite(v, alpha uint8) uint8 {
	return uint8((uint32(v)*uint32(alpha) + 255*(255-uint32(alpha)) + 127) / 255)
}
