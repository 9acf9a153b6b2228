package jpeg

// picture computes the pixels of a complete file.
func (d *decoder) picture() []uint8 {
	channels := make([]*upsampler, len(d.components))
	for i, c := range d.components {
		if d.Progressive {
			c.transformAll()
		}
		channels[i] = newUpsampler(c, d.maxH, d.maxV)
	}
	convert := d.conversion()
	pixels := make([]uint8, 3*d.Width*d.Height)
	rows := make([][]uint8, len(channels))
	for y := range d.Height {
		for i, c := range channels {
			rows[i] = c.at(y)[:d.Width]
		}
		convert(pixels[3*d.Width*y:][:3*d.Width], rows)
	}
	return pixels
}

// conversion tells the colour space as libjpeg does: a JFIF segment means Y′CbCr, an Adobe segment names it, and without
// either the components' numbers may.
func (d *decoder) conversion() func(to []uint8, rows [][]uint8) {
	id := func(i int) byte { return d.components[i].id }
	switch {
	case d.Components == 1:
		return fromGray
	case d.Components == 4 && d.adobe <= 0:
		return fromCMYK
	case d.Components == 4:
		return fromYCCK
	case d.jfif:
		return fromYCbCr
	case d.adobe == 0, d.adobe == noAdobe && id(0) == 'R' && id(1) == 'G' && id(2) == 'B':
		return fromRGB
	}
	return fromYCbCr
}

func fromGray(to []uint8, rows [][]uint8) {
	for x, v := range rows[0] {
		to[3*x], to[3*x+1], to[3*x+2] = v, v, v
	}
}

func fromRGB(to []uint8, rows [][]uint8) {
	for x := range rows[0] {
		to[3*x], to[3*x+1], to[3*x+2] = rows[0][x], rows[1][x], rows[2][x]
	}
}

func fromYCbCr(to []uint8, rows [][]uint8) {
	luma := rows[0]
	blue, red := rows[1][:len(luma)], rows[2][:len(luma)]
	for x, v := range luma {
		pixel := to[3*x : 3*x+3 : 3*x+3]
		pixel[0], pixel[1], pixel[2] = toRGB(v, blue[x], red[x])
	}
}

// toRGB is the conversion of JFIF (ITU-R BT.601, full range) with 16 binary places.
func toRGB(y, cb, cr uint8) (r, g, b uint8) {
	const (
		redCr   = 91881  // 1.40200
		greenCb = 22554  // 0.34414
		greenCr = 46802  // 0.71414
		blueCb  = 116130 // 1.77200
	)
	luma := int32(y)<<16 + 1<<15
	u, v := int32(cb)-128, int32(cr)-128
	return clamp((luma + redCr*v) >> 16), clamp((luma - greenCb*u - greenCr*v) >> 16), clamp((luma + blueCb*u) >> 16)
}

// fromCMYK takes inks as Adobe stores them: 255 is none.
func fromCMYK(to []uint8, rows [][]uint8) {
	for x, black := range rows[3] {
		to[3*x], to[3*x+1], to[3*x+2] = printed(rows[0][x], black), printed(rows[1][x], black), printed(rows[2][x], black)
	}
}

// fromYCCK is fromCMYK with cyan, magenta and yellow coded as the Y′CbCr of the opposite colours.
func fromYCCK(to []uint8, rows [][]uint8) {
	for x, black := range rows[3] {
		r, g, b := toRGB(rows[0][x], rows[1][x], rows[2][x])
		to[3*x], to[3*x+1], to[3*x+2] = printed(^r, black), printed(^g, black), printed(^b, black)
	}
}

// printed is the light that an ink and black let through, both stored inverted, as Pillow rounds it.
func printed(ink, black uint8) uint8 {
	covered := uint32(255-ink)*uint32(black) + 128
	return clamp(int32(black) - int32((covered>>8+covered)>>8))
}
