package jpeg

// upsampler gives a component row by row in the picture's size. Where samples stand for two pixels along an axis they
// lie between them, so that a pixel is ¾ of the nearer sample and ¼ of the next; the outermost are repeated. Halves are
// rounded up and down in turn, which keeps the mean. Repeated are samples in other ratios, and those of components that
// are only two samples wide.
type upsampler struct {
	*component
	across, down int // pixels for each sample
	smooth       bool
	row          []uint8
}

func newUpsampler(c *component, maxH, maxV int) *upsampler {
	u := &upsampler{component: c, across: maxH / c.h, down: maxV / c.v}
	u.smooth = u.across == 1 && u.down == 2 || u.across == 2 && u.down <= 2 && c.width > 2
	u.row = make([]uint8, u.across*c.width)
	return u
}

// line returns a row of samples.
func (c *component) line(y int) []uint8 { return c.samples[8*c.pitch*y:][:c.width] }

// at returns a row of the picture, at least as wide as the picture. It is valid until the next call.
func (u *upsampler) at(y int) []uint8 {
	near := u.line(y / u.down)
	switch {
	case !u.smooth && u.across == 1:
		return near
	case !u.smooth:
		for i, v := range near {
			pixels := u.row[i*u.across:][:u.across]
			for j := range pixels {
				pixels[j] = v
			}
		}
		return u.row
	case u.down == 1:
		widen(u.row, near)
		return u.row
	}
	lower := y % 2 // the row below is the next for odd rows, that above for even ones
	far := u.line(min(max(y/2-1+2*lower, 0), u.height-1))
	if u.across == 2 {
		widenBetween(u.row, near, far)
		return u.row
	}
	far = far[:len(near)]
	for i, v := range near {
		u.row[i] = uint8((3*uint32(v) + uint32(far[i]) + 1 + uint32(lower)) >> 2)
	}
	return u.row
}

// widen doubles a row's width.
func widen(to, row []uint8) {
	before, v := uint32(row[0]), uint32(row[0])
	for i := range row {
		after := v
		if i+1 < len(row) {
			after = uint32(row[i+1])
		}
		pair := to[2*i : 2*i+2 : 2*i+2]
		pair[0], pair[1] = uint8((3*v+before+1)>>2), uint8((3*v+after+2)>>2)
		before, v = v, after
	}
}

// widenBetween doubles the width of what lies a quarter of the way from one row to another.
func widenBetween(to, near, far []uint8) {
	far = far[:len(near)]
	v := 3*uint32(near[0]) + uint32(far[0])
	before := v
	for i := range near {
		after := v
		if i+1 < len(near) {
			after = 3*uint32(near[i+1]) + uint32(far[i+1])
		}
		pair := to[2*i : 2*i+2 : 2*i+2]
		pair[0], pair[1] = uint8((3*v+before+8)>>4), uint8((3*v+after+7)>>4)
		before, v = v, after
	}
}
