package jpeg

import "errors"

// quickBits is the length of codes that are looked up at once.
const quickBits = 9

// huffman is a table of codes of 1 … 16 bits (T.81, annexes C and F.2.2.3).
type huffman struct {
	quick   [1 << quickBits]uint16 // by the next bits: code length << 8 | symbol, or 0 for longer codes
	limit   [17]uint32             // by length: one more than the largest code
	offset  [17]int32              // by length: what a code's index in symbols is beyond the code
	symbols []uint8
}

// newHuffman assigns codes to symbols: in order of length, counting up.
func newHuffman(counts [16]uint8, symbols []uint8) (*huffman, error) {
	t := &huffman{symbols: append([]uint8(nil), symbols...)}
	code, index := uint32(0), int32(0)
	for i, n := range counts {
		length := i + 1
		code <<= 1
		t.offset[length] = index - int32(code)
		for range n {
			if code >= 1<<length {
				return nil, errors.New("the file is damaged: a Huffman table has more codes than fit")
			}
			if length <= quickBits {
				first := code << (quickBits - length)
				for j := range uint32(1) << (quickBits - length) {
					t.quick[first+j] = uint16(length)<<8 | uint16(symbols[index])
				}
			}
			code++
			index++
		}
		t.limit[length] = code
	}
	return t, nil
}

// bitReader reads the entropy-coded data of a scan, up to a marker. Past the data's end it gives zeros and short is true.
type bitReader struct {
	file []byte
	at   int    // of the next byte to take in
	bits uint64 // from the highest: the next bits, then zeros
	n    int    // how many of bits there are; below zero once more were read than there are
	bad  bool   // a code was in no table
}

// short says that more bits were read than there are.
func (b *bitReader) short() bool { return b.n < 0 }

// fill takes in bytes: as many as fit, or to the next marker. A byte of 255 is followed by a zero to tell it from a marker.
func (b *bitReader) fill() {
	if b.n < 0 {
		return
	}
	if b.n <= 32 && b.at+4 <= len(b.file) {
		f := b.file[b.at : b.at+4]
		if f[0] != 0xff && f[1] != 0xff && f[2] != 0xff && f[3] != 0xff {
			word := uint64(f[0])<<24 | uint64(f[1])<<16 | uint64(f[2])<<8 | uint64(f[3])
			b.bits |= word << (32 - b.n)
			b.n += 32
			b.at += 4
			return
		}
	}
	for b.n <= 56 && b.at < len(b.file) {
		value := b.file[b.at]
		next := b.at + 1
		if value == 0xff {
			for next < len(b.file) && b.file[next] == 0xff {
				next++
			}
			if next == len(b.file) || b.file[next] != 0 {
				return
			}
			next++
		}
		b.bits |= uint64(value) << (56 - b.n)
		b.n += 8
		b.at = next
	}
}

// skip drops bits that were looked at.
func (b *bitReader) skip(count int) {
	b.bits <<= count
	b.n -= count
}

// symbol reads a Huffman code.
func (b *bitReader) symbol(t *huffman) int {
	if b.n < 16 {
		b.fill()
	}
	if quick := t.quick[b.bits>>(64-quickBits)]; quick != 0 {
		b.skip(int(quick >> 8))
		return int(quick & 0xff)
	}
	for length := quickBits + 1; length <= 16; length++ {
		if code := uint32(b.bits >> (64 - length)); code < t.limit[length] {
			b.skip(length)
			return int(t.symbols[int32(code)+t.offset[length]])
		}
	}
	b.bad = true
	return 0
}

// number reads count bits, at most 16.
func (b *bitReader) number(count int) int {
	if b.n < count {
		b.fill()
	}
	v := int(b.bits >> (64 - count))
	b.skip(count)
	return v
}

// signed reads a number of a magnitude class: the lower half of its codes stands for negative numbers (T.81, F.2.2.1).
func (b *bitReader) signed(class int) int {
	if class == 0 {
		return 0
	}
	v := b.number(class)
	if v < 1<<(class-1) {
		v += -1<<class + 1
	}
	return v
}
