package data

import (
	"image"
	"image/color"
)

// flattenYCbCr converts luma and chroma to RGB; studio says that luma spans 16 … 235, as in lossy WebP, not 0 … 255, as
// in JPEG. Decoders in common use interpolate subsampled chroma, where color.YCbCr repeats it; a model trained on the ones
// should see the same here.
func flattenYCbCr(img *image.YCbCr, studio bool) *RGB {
	out := NewRGB(img.Rect.Dx(), img.Rect.Dy())
	cb, cr := make([]uint8, out.Width), make([]uint8, out.Width)
	convert := color.YCbCrToRGB
	if studio {
		convert = studioToRGB
	}
	for y := range out.Height {
		chromaRow(cb, img, img.Cb, y)
		chromaRow(cr, img, img.Cr, y)
		luma := img.Y[img.YOffset(img.Rect.Min.X, img.Rect.Min.Y+y):][:out.Width]
		row := out.Pix[3*y*out.Width:][:3*out.Width]
		for x, l := range luma {
			row[3*x], row[3*x+1], row[3*x+2] = convert(l, cb[x], cr[x])
		}
	}
	return out
}

// studioToRGB is ITU-R BT.601 with luma 16 … 235 and chroma 16 … 240, in 16-bit fixed point.
func studioToRGB(y, cb, cr uint8) (r, g, b uint8) {
	const (
		luma   = 76309  // 255/219
		redCr  = 104597 // 1.402 · 255/224
		greenU = 25675  // 0.344136 · 255/224
		greenV = 53279  // 0.714136 · 255/224
		blueCb = 132201 // 1.772 · 255/224
	)
	l := luma*(int32(y)-16) + 1<<15
	u, v := int32(cb)-128, int32(cr)-128
	limit := func(x int32) uint8 { return uint8(min(max(x>>16, 0), 255)) }
	return limit(l + redCr*v), limit(l - greenU*u - greenV*v), limit(l + blueCb*u)
}

// chromaRow fills row with the chroma of picture row y. A sample that stands for two pixels along an axis lies between
// them, so a pixel is ¾ of the nearer sample and ¼ of the next. Rarer subsampling than by two is repeated.
func chromaRow(row []uint8, img *image.YCbCr, plane []uint8, y int) {
	across, down := 1, 1
	switch img.SubsampleRatio {
	case image.YCbCrSubsampleRatio444:
	case image.YCbCrSubsampleRatio422:
		across = 2
	case image.YCbCrSubsampleRatio440:
		down = 2
	case image.YCbCrSubsampleRatio420:
		across, down = 2, 2
	default:
		for x := range row {
			row[x] = plane[img.COffset(img.Rect.Min.X+x, img.Rect.Min.Y+y)]
		}
		return
	}
	width, height := (len(row)+across-1)/across, (img.Rect.Dy()+down-1)/down
	first := img.COffset(img.Rect.Min.X, img.Rect.Min.Y)
	near := plane[first+y/down*img.CStride:][:width]
	far := near
	if down == 2 { // the row above for even rows, below for odd ones
		far = plane[first+min(max(y/2-1+y%2*2, 0), height-1)*img.CStride:][:width]
	}
	column := func(i int) int32 { // in quarters; edges repeat
		i = min(max(i, 0), width-1)
		return 3*int32(near[i]) + int32(far[i])
	}
	if across == 1 {
		for x := range row {
			row[x] = uint8((column(x) + 2) >> 2)
		}
		return
	}
	for x := range row { // rounding halves alternately up and down keeps the mean
		row[x] = uint8((3*column(x/2) + column(x/2-1+x%2*2) + 8 - int32(x%2)) >> 4)
	}
}
