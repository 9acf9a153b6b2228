package report

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html/template"
	"image"
	"image/jpeg"
	"image/png"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/image/draw"

	"github.com/resalign/resalign/data"
)

const (
	// asIs is the longest side of pictures that are embedded without loss.
	asIs = 128
	// embedded is the longest side that larger ones are shrunk to: twice the size they are shown in.
	embedded    = 256
	jpegQuality = 88
	// maxPictureBytes is far above what a generated picture takes.
	maxPictureBytes = 64 << 20
)

// album reads the kept pictures of one folder.
type album struct {
	root *os.Root
	path string
}

func openAlbum(path string) (*album, error) {
	if path == "" {
		return nil, fmt.Errorf("there are pictures to show, but no folder to find them in; set PictureRoot")
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("the folder of pictures cannot be opened: %w", err)
	}
	return &album{root, path}, nil
}

func (a *album) close() { a.root.Close() }

// embeddedPicture is a picture inside the page.
type embeddedPicture struct {
	URI           template.URL
	Pixelated     bool // it is small: its pixels are to be seen
	Width, Height int  // of the picture itself, before it was shrunk
}

// embed reads a picture.
func (a *album) embed(name string) (embeddedPicture, error) {
	var none embeddedPicture
	full := filepath.Join(a.path, name)
	file, err := a.root.Open(filepath.FromSlash(name))
	if err != nil {
		return none, fmt.Errorf("picture %s cannot be opened: %w; run the audit again to make it", full, err)
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return none, fmt.Errorf("picture %s is not a plain file; replace it", full)
	}
	content, err := io.ReadAll(io.LimitReader(file, maxPictureBytes+1))
	if err != nil {
		return none, fmt.Errorf("picture %s cannot be read: %w", full, err)
	}
	if len(content) > maxPictureBytes {
		return none, fmt.Errorf("picture %s is over the limit of %d MiB; shrink it", full, maxPictureBytes>>20)
	}
	picture, err := data.Decode(full, content)
	if err != nil {
		return none, err
	}
	var b bytes.Buffer
	out := embeddedPicture{Width: picture.Width, Height: picture.Height}
	kind := "png"
	if long := max(picture.Width, picture.Height); long <= asIs {
		out.Pixelated = true
		err = png.Encode(&b, toImage(picture))
	} else {
		kind = "jpeg"
		width, height := max(1, picture.Width*embedded/long), max(1, picture.Height*embedded/long)
		if long < embedded {
			width, height = picture.Width, picture.Height
		}
		small := image.NewRGBA(image.Rect(0, 0, width, height))
		source := toImage(picture)
		draw.CatmullRom.Scale(small, small.Bounds(), source, source.Bounds(), draw.Src, nil)
		err = jpeg.Encode(&b, small, &jpeg.Options{Quality: jpegQuality})
	}
	if err != nil {
		return none, fmt.Errorf("picture %s cannot be embedded: %w", full, err)
	}
	out.URI = template.URL("data:image/" + kind + ";base64," + base64.StdEncoding.EncodeToString(b.Bytes()))
	return out, nil
}

func toImage(p *data.RGB) *image.RGBA {
	out := image.NewRGBA(image.Rect(0, 0, p.Width, p.Height))
	for i := range p.Width * p.Height {
		copy(out.Pix[4*i:], p.Pix[3*i:3*i+3])
		out.Pix[4*i+3] = 255
	}
	return out
}
