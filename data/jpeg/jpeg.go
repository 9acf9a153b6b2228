// Package jpeg decodes JPEG files to the very pixels that libjpeg-turbo gives with its default settings, and with it
// Pillow, torchvision and most programs that pictures are trained and measured with. The JPEG standard leaves the
// rounding of the inverse transform and the interpolation of colour open, so decoders differ by a few levels, which moves
// a Fréchet distance by more than a percent.
//
// Read are baseline, extended sequential and progressive files with Huffman coding, 8 bits per sample and one component
// (gray), three (Y′CbCr, RGB) or four (CMYK, YCCK). Arithmetic coding, lossless and hierarchical files, other depths and
// a height told by a DNL segment are refused by name. Reading is strict: a file whose picture data is damaged or
// incomplete is an error.
//
// File structure and coding follow ITU-T T.81; JFIF and Adobe segments tell colour spaces.
package jpeg

import "errors"

// Header is what a file says of its picture before the picture itself.
type Header struct {
	Width, Height int  // pixels, at least 1
	Components    int  // 1 gray, 3 colours, 4 CMYK
	Progressive   bool // coded in passes of growing detail
}

// ErrTruncated is the error for a file that ends before its picture does.
var ErrTruncated = errors.New("the file is truncated")

// ReadHeader reads a file as far as the header of its picture. It refuses what [Decode] does not support, and sizes that
// no picture in a file of so few bytes can have. Errors are phrases that say what is wrong with the file.
func ReadHeader(file []byte) (Header, error) {
	d, err := open(file)
	if err != nil {
		return Header{}, err
	}
	for d.components == nil {
		if _, err := d.segment(); err != nil {
			return Header{}, err
		}
	}
	return d.Header, nil
}

// Decode returns the picture's rows from the top, each Width × (red, green, blue). CMYK is taken to be stored inverted, as
// Adobe's programs and Pillow do, and converted without a colour profile; EXIF orientation is not applied. Memory is
// bounded by what the file's bytes can code. Errors are phrases that say what is wrong with the file.
func Decode(file []byte) (Header, []uint8, error) {
	d, err := open(file)
	if err != nil {
		return Header{}, nil, err
	}
	for ended := false; !ended; {
		if ended, err = d.segment(); err != nil {
			return Header{}, nil, err
		}
	}
	if err := d.complete(); err != nil {
		return Header{}, nil, err
	}
	return d.Header, d.picture(), nil
}
