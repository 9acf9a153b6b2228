package data

import (
	"fmt"
	"image"
	"image/png"
	"io"

	"github.com/resalign/resalign/files"
)

// SavePNG writes a picture as PNG. The folder must exist; the file appears whole or not at all.
func SavePNG(path string, picture *RGB) error {
	if picture.Width <= 0 || picture.Height <= 0 || len(picture.Pix) != 3*picture.Width*picture.Height {
		return fmt.Errorf("%s cannot be written: %d bytes are not a picture of %d×%d", path, len(picture.Pix), picture.Width, picture.Height)
	}
	return files.Write(path, func(w io.Writer) error { return png.Encode(w, picture.image()) })
}

// image converts to the standard library's form, opaque.
func (p *RGB) image() *image.RGBA {
	out := image.NewRGBA(image.Rect(0, 0, p.Width, p.Height))
	for i := range p.Width * p.Height {
		copy(out.Pix[4*i:], p.Pix[3*i:3*i+3])
		out.Pix[4*i+3] = 255
	}
	return out
}
