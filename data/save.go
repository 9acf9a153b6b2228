package data

import (
	"errors"
	"fmt"
	"image"
	"image/png"
	"os"
	"path/filepath"
)

// SavePNG writes a picture as PNG. The folder must exist; the file appears whole or not at all.
func SavePNG(path string, picture *RGB) error {
	if picture.Width <= 0 || picture.Height <= 0 || len(picture.Pix) != 3*picture.Width*picture.Height {
		return fmt.Errorf("%s cannot be written: %d bytes are not a picture of %d×%d", path, len(picture.Pix), picture.Width, picture.Height)
	}
	err := replaceFile(path, filepath.Dir(path), func(file *os.File) error { return png.Encode(file, picture.image()) })
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	return nil
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

// replaceFile writes a temporary file in the folder temporary, on the same disk as path, and renames it to path.
func replaceFile(path, temporary string, write func(*os.File) error) error {
	file, err := os.CreateTemp(temporary, ".partial-*")
	if err != nil {
		return err
	}
	err = write(file)
	if err == nil {
		err = file.Chmod(0o644)
	}
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		os.Remove(file.Name())
	}
	return err
}
