package jpeg

// The inverse transform is that of Loeffler, Ligtenberg and Moschytz (ICASSP 1989) in integers, once along columns and
// once along rows. Its constants have constBits binary places; what lies between the two passes has passBits. The
// factors, the places and the rounding determine the result to the bit; the order of sums does not, as they are exact.
const (
	constBits = 13
	passBits  = 2

	cos0298 = 2446  // 0.298631336 · 2¹³
	cos0390 = 3196  // 0.390180644
	cos0541 = 4433  // 0.541196100
	cos0765 = 6270  // 0.765366865
	cos0899 = 7373  // 0.899976223
	cos1175 = 9633  // 1.175875602
	cos1501 = 12299 // 1.501321110
	cos1847 = 15137 // 1.847759065
	cos1961 = 16069 // 1.961570560
	cos2053 = 16819 // 2.053119869
	cos2562 = 20995 // 2.562915447
	cos3072 = 25172 // 3.072711026
)

// dequantize keeps 16 bits, as vector implementations do; coefficients of a sound file fit.
func dequantize(c int16, step uint16) int32 { return int32(c * int16(step)) }

// butterfly transforms eight numbers and leaves constBits binary places more than they had.
func butterfly(a0, a1, a2, a3, a4, a5, a6, a7 int32) (b0, b1, b2, b3, b4, b5, b6, b7 int32) {
	z := (a2 + a6) * cos0541
	low, high := z-a6*cos1847, z+a2*cos0765
	sum, difference := (a0+a4)<<constBits, (a0-a4)<<constBits
	e0, e1, e2, e3 := sum+high, difference+low, difference-low, sum-high

	z5 := (a7 + a3 + a5 + a1) * cos1175
	z1, z2 := (a7+a1)*-cos0899, (a5+a3)*-cos2562
	z3, z4 := z5-(a7+a3)*cos1961, z5-(a5+a1)*cos0390
	o0, o1 := a7*cos0298+z1+z3, a5*cos2053+z2+z4
	o2, o3 := a3*cos3072+z2+z3, a1*cos1501+z1+z4
	return e0 + o3, e1 + o2, e2 + o1, e3 + o0, e3 - o0, e2 - o1, e1 - o2, e0 - o3
}

// inverseTransform writes the 8×8 samples of a block's coefficients, which it overwrites.
func inverseTransform(c *[64]int32, to []uint8, stride int) {
	const half = 1 << (constBits - passBits - 1)
	for i := range 8 {
		if c[8+i]|c[16+i]|c[24+i]|c[32+i]|c[40+i]|c[48+i]|c[56+i] == 0 {
			mean := c[i] << passBits
			c[i], c[8+i], c[16+i], c[24+i], c[32+i], c[40+i], c[48+i], c[56+i] = mean, mean, mean, mean, mean, mean, mean, mean
			continue
		}
		b0, b1, b2, b3, b4, b5, b6, b7 := butterfly(c[i], c[8+i], c[16+i], c[24+i], c[32+i], c[40+i], c[48+i], c[56+i])
		c[i], c[8+i] = (b0+half)>>(constBits-passBits), (b1+half)>>(constBits-passBits)
		c[16+i], c[24+i] = (b2+half)>>(constBits-passBits), (b3+half)>>(constBits-passBits)
		c[32+i], c[40+i] = (b4+half)>>(constBits-passBits), (b5+half)>>(constBits-passBits)
		c[48+i], c[56+i] = (b6+half)>>(constBits-passBits), (b7+half)>>(constBits-passBits)
	}
	for y := range 8 {
		r := c[8*y : 8*y+8 : 8*y+8]
		line := to[y*stride : y*stride+8 : y*stride+8]
		b0, b1, b2, b3, b4, b5, b6, b7 := butterfly(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7])
		line[0], line[1], line[2], line[3] = sample(b0), sample(b1), sample(b2), sample(b3)
		line[4], line[5], line[6], line[7] = sample(b4), sample(b5), sample(b6), sample(b7)
	}
}

// uniform writes a block that has only a mean.
func uniform(mean int32, to []uint8, stride int) {
	v := sample(mean << (passBits + constBits))
	for y := range 8 {
		line := to[y*stride : y*stride+8 : y*stride+8]
		for x := range line {
			line[x] = v
		}
	}
}

// sample rounds what both passes gave, an eighth of which is the sample less 128.
func sample(v int32) uint8 {
	const places = constBits + passBits + 3
	return clamp((v + 128<<places + 1<<(places-1)) >> places)
}

func clamp(v int32) uint8 {
	if uint32(v) > 255 {
		return uint8(^(v >> 31))
	}
	return uint8(v)
}
