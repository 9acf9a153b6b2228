package data

import "image"

// flattenLossyWebP converts the luma and chroma of a lossy WebP picture to RGB as libwebp does, to the bit. Chroma is of half the
// resolution both ways (4:2:0); libwebp interpolates it where color.YCbCr repeats it.
func flattenLossyWebP(img *image.YCbCr) *RGB {
	out := NewRGB(img.Rect.Dx(), img.Rect.Dy())
	cb, cr := make([]uint8, out.Width), make([]uint8, out.Width)
	for y := range out.Height {
		chromaRow(cb, img, img.Cb, y)
		chromaRow(cr, img, img.Cr, y)
		luma := img.Y[img.YOffset(img.Rect.Min.X, img.Rect.Min.Y+y):][:out.Width]
		row := out.Pix[3*y*out.Width:][:3*out.Width]
		for x, l := range luma {
			row[3*x], row[3*x+1], row[3*x+2] = studioToRGB(l, cb[x], cr[x])
		}
	}
	return out
}

// studioToRGB is ITU-R BT.601 with luma 16 … 235 and chroma 16 … 240. Factors have 14 binary places, each product loses
// eight of them.
func studioToRGB(y, cb, cr uint8) (r, g, b uint8) {
	const (
		luma    = 19077 // 255/219
		redCr   = 26149 // 1.402 · 255/224
		greenCb = 6419  // 0.344136 · 255/224
		greenCr = 13320 // 0.714136 · 255/224
		blueCb  = 33050 // 1.772 · 255/224
		// What the offsets of luma (16) and chroma (128) amount to, and one half.
		red, green, blue = -14234, 8708, -17685
	)
	times := func(v uint8, factor int32) int32 { return int32(v) * factor >> 8 }
	limit := func(v int32) uint8 { return uint8(min(max(v>>6, 0), 255)) }
	l := times(y, luma)
	return limit(l + times(cr, redCr) + red), limit(l - times(cb, greenCb) - times(cr, greenCr) + green), limit(l + times(cb, blueCb) + blue)
}

// chromaRow fills row with the chroma of picture row y. A sample stands for two pixels along an axis and lies between
// them, so a pixel is ¾ of the nearer sample and ¼ of the next; edges repeat.
func chromaRow(row []uint8, img *image.YCbCr, plane []uint8, y int) {
	width, height := (len(row)+1)/2, (img.Rect.Dy()+1)/2
	first := img.COffset(img.Rect.Min.X, img.Rect.Min.Y)
	near := plane[first+y/2*img.CStride:][:width]
	// The next row is the one above for even rows, below for odd ones.
	far := plane[first+min(max(y/2-1+y%2*2, 0), height-1)*img.CStride:][:width]
	column := func(i int) uint32 { // in quarters
		i = min(max(i, 0), width-1)
		return 3*uint32(near[i]) + uint32(far[i])
	}
	for x := range row {
		row[x] = uint8((3*column(x/2) + column(x/2-1+x%2*2) + 8) >> 4)
	}
}
