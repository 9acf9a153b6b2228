package data

import (
	"fmt"
	"image"
	"image/color"
	"image/draw"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

const (
	gridGap     = 4  // pixels between pictures and around them
	labelHeight = 16 // a line of the 7×13 font and its margin
)

// Grid lays pictures out row by row on white, for previews. Cells have the size of the largest picture. Labels, if there
// are any, must be as many as the pictures; each is drawn in one line below its picture and cut to fit.
func Grid(pictures []*RGB, columns int, labels []string) (*RGB, error) {
	if len(pictures) == 0 || columns <= 0 {
		return nil, fmt.Errorf("a grid needs pictures and columns, not %d and %d", len(pictures), columns)
	}
	if len(labels) != 0 && len(labels) != len(pictures) {
		return nil, fmt.Errorf("%d labels for %d pictures; give one to each or none", len(labels), len(pictures))
	}
	columns = min(columns, len(pictures))
	width, height := 0, 0
	for i, p := range pictures {
		if p == nil || p.Width <= 0 || p.Height <= 0 || len(p.Pix) != 3*p.Width*p.Height {
			return nil, fmt.Errorf("picture %d of the grid is empty or has the wrong number of bytes", i)
		}
		width, height = max(width, p.Width), max(height, p.Height)
	}
	if len(labels) > 0 {
		height += labelHeight
	}
	rows := (len(pictures) + columns - 1) / columns
	bounds := image.Rect(0, 0, columns*(width+gridGap)+gridGap, rows*(height+gridGap)+gridGap)
	if bounds.Dx() > MaxPixels/bounds.Dy() {
		return nil, fmt.Errorf("a grid of %d×%d is over %d megapixels; show fewer or smaller pictures", bounds.Dx(), bounds.Dy(), MaxPixels/1_000_000)
	}
	canvas := image.NewRGBA(bounds)
	draw.Draw(canvas, bounds, image.White, image.Point{}, draw.Src)
	for i, p := range pictures {
		corner := image.Pt(gridGap+i%columns*(width+gridGap), gridGap+i/columns*(height+gridGap))
		draw.Draw(canvas, image.Rect(0, 0, p.Width, p.Height).Add(corner), p.image(), image.Point{}, draw.Src)
		if len(labels) > 0 {
			cell := image.Rect(0, 0, width, height).Add(corner)
			pen := font.Drawer{
				Dst:  canvas.SubImage(cell).(*image.RGBA),
				Src:  image.NewUniform(color.Black),
				Face: basicfont.Face7x13,
				Dot:  fixed.P(cell.Min.X, cell.Max.Y-4), // the baseline leaves room for descenders
			}
			pen.DrawString(cut(labels[i], width/basicfont.Face7x13.Advance))
		}
	}
	return flatten(canvas), nil
}

// cut shortens a label to a number of characters.
func cut(label string, length int) string {
	if runes := []rune(label); len(runes) > length {
		return string(runes[:max(length-2, 0)]) + ".."
	}
	return label
}
