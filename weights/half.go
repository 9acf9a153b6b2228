package weights

import "math"

// float32FromHalf widens an IEEE binary16; every value, NaN payloads included, is exact.
func float32FromHalf(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	exponent, fraction := uint32(h>>10&0x1f), uint32(h&0x3ff)
	switch exponent {
	case 0: // zero and subnormals count in units of 2⁻²⁴
		return math.Float32frombits(sign | math.Float32bits(float32(fraction)*0x1p-24))
	case 0x1f:
		return math.Float32frombits(sign | 0x7f800000 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+127-15)<<23 | fraction<<13)
}

// halfFromFloat32 narrows to an IEEE binary16, rounding to nearest, ties to even. Values from 65520 on become infinite.
func halfFromFloat32(v float32) uint16 {
	bits := math.Float32bits(v)
	sign, abs := uint16(bits>>16&0x8000), bits&0x7fffffff
	switch {
	case abs > 0x7f800000: // NaN: keep the payload's upper bits, make it quiet so that it cannot turn into an infinity
		return sign | 0x7e00 | uint16(abs>>13&0x3ff)
	case abs >= 0x477ff000: // 65520, halfway between the largest half and the next power of two
		return sign | 0x7c00
	case abs < 0x38800000: // below 2⁻¹⁴ halves are multiples of 2⁻²⁴; 1024 of them is the smallest normal, as it should
		return sign | uint16(math.RoundToEven(float64(math.Float32frombits(abs))*0x1p24))
	}
	abs += 0xfff + abs>>13&1
	return sign | uint16(abs>>13-(127-15)<<10)
}

// float32FromBfloat widens a bfloat16; every value is exact.
func float32FromBfloat(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// bfloatFromFloat32 narrows to a bfloat16, rounding to nearest, ties to even.
func bfloatFromFloat32(v float32) uint16 {
	bits := math.Float32bits(v)
	if bits&0x7fffffff > 0x7f800000 { // NaN
		return uint16(bits>>16) | 0x40
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// oddFloat32 narrows to float32 for rounding further: a value that float32 cannot hold gets an odd last bit instead of the
// nearest value, so that what is rounded next is never mistaken for lying halfway (round to odd; Boldo and Melquiond 2008).
func oddFloat32(v float64) float32 {
	f := float32(v)
	wide := float64(f)
	if wide == v || v != v || math.IsInf(wide, 0) {
		return f
	}
	if math.Abs(wide) > math.Abs(v) {
		f = math.Nextafter32(f, 0)
	}
	return math.Float32frombits(math.Float32bits(f) | 1)
}
