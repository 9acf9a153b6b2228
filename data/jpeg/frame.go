package jpeg

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// blockCoefficients are the coefficients of a block of 8×8 samples in rows, as the inverse transform takes them.
type blockCoefficients [64]int16

// component is one of the channels that a picture is coded in.
type component struct {
	id            byte
	h, v          int // samples across and down for every maxH × maxV pixels
	width, height int // samples that the picture needs
	across, down  int // blocks that hold them
	pitch         int // blocks in a stored row: whole MCUs
	lines         int // stored rows of blocks

	from      byte                // where its quantizer is defined
	quantizer *[64]uint16         // the one in force when its first scan began
	samples   []uint8             // 8·lines rows of 8·pitch
	blocks    []blockCoefficients // of progressive pictures, lines × pitch, until the last scan is read
	missing   [64]int8            // by coefficient in zigzag order: low bits still to come, or neverSent
	coded     bool                // a scan of a sequential picture has coded it
}

// neverSent marks a coefficient that no scan has coded.
const neverSent = -1

// startFrame reads the frame header (T.81, B.2.2).
func (d *decoder) startFrame(body []byte, progressive bool) error {
	if d.components != nil {
		return errors.New("the file is damaged: it has two frame headers")
	}
	if len(body) < 6 || len(body) != 6+3*int(body[5]) {
		return errors.New("the file is damaged: its frame header has a wrong length")
	}
	if body[0] != 8 {
		return fmt.Errorf("the file has %d bits per sample; only 8 are supported", body[0])
	}
	d.Height, d.Width = int(binary.BigEndian.Uint16(body[1:])), int(binary.BigEndian.Uint16(body[3:]))
	d.Components, d.Progressive = int(body[5]), progressive
	if d.Height == 0 {
		return errors.New("the picture's height is left to a DNL segment, which is not supported")
	}
	if d.Width == 0 {
		return errors.New("the picture is 0 pixels wide")
	}
	if n := d.Components; n != 1 && n != 3 && n != 4 {
		return fmt.Errorf("the picture has %d components; only 1, 3 and 4 are supported", n)
	}
	var components []*component
	for spec := body[6:]; len(spec) > 0; spec = spec[3:] {
		c := &component{id: spec[0], h: int(spec[1] >> 4), v: int(spec[1] & 15), from: spec[2]}
		if c.h < 1 || c.h > 4 || c.v < 1 || c.v > 4 || c.from > 3 {
			return errors.New("the file is damaged: its frame header has impossible sampling factors or tables")
		}
		for _, other := range components {
			if other.id == c.id {
				return errors.New("the file is damaged: two components have the same number")
			}
		}
		d.maxH, d.maxV = max(d.maxH, c.h), max(d.maxV, c.v)
		components = append(components, c)
	}
	blocks := 0
	for _, c := range components {
		if d.maxH%c.h != 0 || d.maxV%c.v != 0 {
			return fmt.Errorf("the picture samples a component %d×%d of %d×%d times; only whole ratios are supported", c.h, c.v, d.maxH, d.maxV)
		}
		c.layOut(d)
		blocks += c.across * c.down
	}
	// Each block's mean takes at least one bit, however uniform the picture.
	if blocks > 8*len(d.file) {
		return fmt.Errorf("%d bytes are too few for %d×%d", len(d.file), d.Width, d.Height)
	}
	d.components = components
	return nil
}

// layOut finds the sizes of a component (T.81, A.1.1 and A.2.4).
func (c *component) layOut(d *decoder) {
	up := func(n, by int) int { return (n + by - 1) / by }
	c.width, c.height = up(d.Width*c.h, d.maxH), up(d.Height*c.v, d.maxV)
	c.across, c.down = up(c.width, 8), up(c.height, 8)
	c.pitch, c.lines = up(d.Width, 8*d.maxH)*c.h, up(d.Height, 8*d.maxV)*c.v
	for k := range c.missing {
		c.missing[k] = neverSent
	}
}

// complete checks that the scans coded the whole picture.
func (d *decoder) complete() error {
	for _, c := range d.components {
		if !d.Progressive {
			if !c.coded {
				return errors.New("the file is incomplete: a component of the picture was never coded")
			}
			continue
		}
		// libjpeg guesses at the lowest frequencies where they lack, so that the picture can be shown early.
		for _, bits := range c.missing[:10] {
			if bits != 0 {
				return errors.New("the file is incomplete: scans of its progressive picture are missing")
			}
		}
	}
	return nil
}
