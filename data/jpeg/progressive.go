package jpeg

import "errors"

// progressive returns how a scan of a progressive picture is read (T.81, annex G): it codes coefficients first … last of
// its components for the first time, without their lowest bits, or one more of those.
func (s *scan) progressive(already int) (decodeBlock, error) {
	means := s.first == 0
	if s.last > 63 || s.last < s.first || means && s.last != 0 || !means && len(s.parts) != 1 || s.shift > 13 || already > 0 && s.shift != already-1 {
		return nil, errors.New("the file is damaged: a scan header has impossible parameters")
	}
	for _, p := range s.parts {
		if !means && p.missing[0] == neverSent {
			return nil, errors.New("the file is damaged: a scan refines blocks that no scan has begun")
		}
		for k := s.first; k <= s.last; k++ {
			if expected := max(int(p.missing[k]), 0); already != expected || already == 0 && p.missing[k] == 0 {
				return nil, errors.New("the file is damaged: its scans do not follow each other")
			}
			p.missing[k] = int8(s.shift)
		}
	}
	switch {
	case means && already == 0:
		return s.firstMean, nil
	case means:
		return s.refineMean, nil
	case already == 0:
		return s.firstDetail, nil
	}
	return s.refineDetail, nil
}

// block returns the stored coefficients at a column and row.
func (c *component) block(column, row int) *blockCoefficients { return &c.blocks[row*c.pitch+column] }

func (s *scan) firstMean(p *part, column, row int) {
	p.mean += s.signed(s.symbol(p.dc))
	p.block(column, row)[0] = int16(p.mean << s.shift)
}

func (s *scan) refineMean(p *part, column, row int) {
	p.block(column, row)[0] |= int16(s.number(1) << s.shift)
}

func (s *scan) firstDetail(p *part, column, row int) {
	if s.run > 0 {
		s.run--
		return
	}
	block := p.block(column, row)
	for k := s.first; k <= s.last; k++ {
		symbol := s.symbol(p.ac)
		zeros, class := symbol>>4, symbol&15
		if class == 0 {
			if zeros != 15 {
				s.run = 1<<zeros + s.number(zeros) - 1
				return
			}
			k += zeros
			continue
		}
		if k += zeros; k > s.last {
			s.bad = true
			return
		}
		block[zigzag[k]] = int16(s.signed(class) << s.shift)
	}
}

// refineDetail adds a bit to the coefficients that are not zero, and codes those that this bit makes so, ±1. A run of
// zeros counts only coefficients that stay zero.
func (s *scan) refineDetail(p *part, column, row int) {
	block := p.block(column, row)
	k := s.first
	for s.run == 0 && k <= s.last {
		symbol := s.symbol(p.ac)
		zeros, class := symbol>>4, symbol&15
		var value int16
		switch {
		case class > 1:
			s.bad = true
			return
		case class == 1:
			value = -1 << s.shift
			if s.number(1) == 1 {
				value = 1 << s.shift
			}
		case zeros != 15:
			s.run = 1<<zeros + s.number(zeros)
			continue
		}
		for ; k <= s.last; k++ {
			c := &block[zigzag[k]]
			if *c != 0 {
				s.refine(c)
				continue
			}
			if zeros == 0 {
				*c = value // zero after the longest run, which codes no coefficient
				break
			}
			zeros--
		}
		k++
	}
	if s.run > 0 {
		for ; k <= s.last; k++ {
			if c := &block[zigzag[k]]; *c != 0 {
				s.refine(c)
			}
		}
		s.run--
	}
}

// refine reads the next bit of a coefficient that is not zero.
func (s *scan) refine(c *int16) {
	bit := int16(1) << s.shift
	switch {
	case s.number(1) == 0 || *c&bit != 0:
	case *c > 0:
		*c += bit
	default:
		*c -= bit
	}
}

// transformAll computes the samples of a component of a progressive picture and lets its coefficients go.
func (c *component) transformAll() {
	c.samples = make([]uint8, 64*c.pitch*c.lines)
	stride := 8 * c.pitch
	for row := range c.down {
		for column := range c.across {
			block := c.block(column, row)
			var coefficients [64]int32
			for k, at := range zigzag {
				coefficients[at] = dequantize(block[at], c.quantizer[k])
			}
			inverseTransform(&coefficients, c.samples[8*row*stride+8*column:], stride)
		}
	}
	c.blocks = nil
}
