package jpeg

import (
	"errors"
	"fmt"
)

// maxScans bounds the time that a small file can take: encoders make a dozen.
const maxScans = 500

// zigzag leads from the order in which coefficients are coded to rows (T.81, figure A.6).
var zigzag = [64]uint8{
	0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5,
	12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28,
	35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
	58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
}

// scan is a pass over the picture, for some components and, in progressive pictures, for some of their detail.
type scan struct {
	bitReader
	parts       []part
	first, last int // coefficients, in zigzag order
	shift       int // progressive: low bits that later scans add
	run         int // progressive: blocks that end before they begin
}

// part is a component in a scan.
type part struct {
	*component
	dc, ac *huffman
	mean   int // of the block before
}

// decodeBlock decodes what a scan holds of the block at a column and row.
type decodeBlock func(p *part, column, row int)

// scan reads a scan header (T.81, B.2.3) and the scan.
func (d *decoder) scan(body []byte) error {
	if d.components == nil {
		return errors.New("the file is damaged: a scan comes before the frame header")
	}
	if len(body) < 1 || body[0] < 1 || body[0] > 4 || len(body) != 4+2*int(body[0]) {
		return errors.New("the file is damaged: a scan header has a wrong length")
	}
	if d.scans++; d.scans > maxScans {
		return fmt.Errorf("the file has more than %d scans", maxScans)
	}
	end := body[len(body)-3:]
	s := &scan{bitReader: bitReader{file: d.file, at: d.at}, first: int(end[0]), last: int(end[1]), shift: int(end[2] & 15)}
	for selector := body[1 : len(body)-3]; len(selector) > 0; selector = selector[2:] {
		if err := d.addPart(s, selector[0], selector[1]); err != nil {
			return err
		}
	}
	decode, err := d.method(s, int(end[2]>>4))
	if err != nil {
		return err
	}
	err = d.blocks(s, decode)
	d.at = s.at
	return err
}

// addPart adds a component to a scan.
func (d *decoder) addPart(s *scan, id, tables byte) error {
	for _, p := range s.parts {
		if p.id == id {
			return errors.New("the file is damaged: a scan names a component twice")
		}
	}
	for _, c := range d.components {
		if c.id != id {
			continue
		}
		if tables>>4 > 3 || tables&15 > 3 {
			return errors.New("the file is damaged: a scan names impossible Huffman tables")
		}
		if c.quantizer == nil {
			if c.quantizer = d.quantizers[c.from]; c.quantizer == nil {
				return errors.New("the file is damaged: a quantization table is missing")
			}
		}
		s.parts = append(s.parts, part{component: c, dc: d.huffman[0][tables>>4], ac: d.huffman[1][tables&15]})
		return nil
	}
	return errors.New("the file is damaged: a scan names a component that the picture does not have")
}

// method checks that a scan follows what was coded before and returns how its blocks are read; already is the number of
// low bits that were left to this scan and later ones.
func (d *decoder) method(s *scan, already int) (decodeBlock, error) {
	needDC, needAC := true, true
	decode := s.sequential
	if d.Progressive {
		var err error
		if decode, err = s.progressive(already); err != nil {
			return nil, err
		}
		needDC, needAC = s.first == 0 && already == 0, s.first > 0
	}
	for i := range s.parts {
		p := &s.parts[i]
		if needDC && p.dc == nil || needAC && p.ac == nil {
			return nil, errors.New("the file is damaged: a Huffman table is missing")
		}
		if needDC && !p.dc.forDC() {
			return nil, errors.New("the file is damaged: a Huffman table has impossible symbols")
		}
		switch {
		case d.Progressive && p.blocks == nil:
			p.blocks = make([]blockCoefficients, p.pitch*p.lines)
		case !d.Progressive && p.coded:
			return nil, errors.New("the file is damaged: two scans code the same component")
		case !d.Progressive:
			p.coded = true
			p.samples = make([]uint8, 64*p.pitch*p.lines)
		}
	}
	return decode, nil
}

// forDC says whether symbols are magnitude classes of differences.
func (t *huffman) forDC() bool {
	for _, s := range t.symbols {
		if s > 15 {
			return false
		}
	}
	return true
}

// blocks reads the blocks of a scan. A scan of several components interleaves them in units (MCUs) of as many blocks of
// each as its sampling factors say, which may lie beyond the picture; one of a single component has only the blocks that
// it needs (T.81, A.2).
func (d *decoder) blocks(s *scan, decode decodeBlock) error {
	across, down := d.components[0].pitch/d.components[0].h, d.components[0].lines/d.components[0].v
	alone := len(s.parts) == 1
	if alone {
		across, down = s.parts[0].across, s.parts[0].down
	}
	size := 0
	for _, p := range s.parts {
		size += p.h * p.v
	}
	if !alone && size > 10 {
		return errors.New("the file is damaged: a scan interleaves more than 10 blocks")
	}
	for unit := range across * down {
		if d.interval > 0 && unit > 0 && unit%d.interval == 0 {
			if err := s.restart(unit/d.interval - 1); err != nil {
				return err
			}
		}
		x, y := unit%across, unit/across
		for i := range s.parts {
			p := &s.parts[i]
			if alone {
				decode(p, x, y)
				continue
			}
			for row := range p.v {
				for column := range p.h {
					decode(p, x*p.h+column, y*p.v+row)
				}
			}
		}
		if s.bad || s.short() {
			return s.broken()
		}
	}
	return nil
}

// broken says why picture data cannot be read on.
func (s *scan) broken() error {
	switch {
	case s.bad && !s.short():
		return errors.New("the file is damaged: its picture data has codes without meaning")
	case s.at+1 >= len(s.file):
		return ErrTruncated
	}
	return errors.New("the file is damaged: its picture data ends early")
}

// restart reads a restart marker: coding begins anew, so that damage does not spread.
func (s *scan) restart(number int) error {
	marker, at, err := nextMarker(s.file, s.at)
	if err != nil {
		return err
	}
	if marker != markerRST0+byte(number%8) {
		return errors.New("the file is damaged: a restart marker is missing")
	}
	s.bitReader = bitReader{file: s.file, at: at}
	s.run = 0
	for i := range s.parts {
		s.parts[i].mean = 0
	}
	return nil
}

// sequential decodes and transforms a block of a sequential picture (T.81, F.2.2).
func (s *scan) sequential(p *part, column, row int) {
	var coefficients [64]int32
	q := p.quantizer
	p.mean += s.signed(s.symbol(p.dc))
	coefficients[0] = dequantize(int16(p.mean), q[0])
	detail := false
	for k := 1; k < 64; k++ {
		symbol := s.symbol(p.ac)
		zeros, class := symbol>>4, symbol&15
		if class == 0 {
			if zeros != 15 { // end of block
				break
			}
			k += zeros
			continue
		}
		if k += zeros; k > 63 {
			s.bad = true
			return
		}
		coefficients[zigzag[k]] = dequantize(int16(s.signed(class)), q[k])
		detail = true
	}
	stride := 8 * p.pitch
	to := p.samples[8*row*stride+8*column:]
	if detail {
		inverseTransform(&coefficients, to, stride)
	} else {
		uniform(coefficients[0], to, stride)
	}
}
