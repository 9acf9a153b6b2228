// Package random draws every random number of the program from one seed.
//
// There is no generator state to keep: a stream is a pure function of (seed, keys), so the noise of step 40 is the
// same whether steps 0…39 ran in this process, in another one, or not at all. Resume, shards and batch sizes can
// therefore never change a result. Nothing here depends on an engine: numbers are drawn on the host and passed in.
package random

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
)

// Stream is a deterministic source of random numbers. It is not safe for concurrent use; derive one per goroutine.
type Stream struct {
	state   uint64 // SplitMix64 counter
	spare   float64
	hasPair bool
}

// New returns the stream that belongs to seed and keys. Keys are strings or integers that say what the numbers are
// for, e.g. New(seed, "noise", step, "harmful"); different keys give independent streams. Any other type of key is a
// programming error and panics.
func New(seed uint64, keys ...any) *Stream {
	h := fnv.New128a()
	var b [9]byte
	put := func(tag byte, v uint64) {
		b[0] = tag
		binary.LittleEndian.PutUint64(b[1:], v)
		h.Write(b[:])
	}
	put('S', seed)
	for _, k := range keys {
		switch k := k.(type) {
		case string:
			put('s', uint64(len(k)))
			h.Write([]byte(k))
		case int:
			put('i', uint64(int64(k)))
		case int64:
			put('i', uint64(k))
		case uint64:
			put('u', k)
		default:
			panic(fmt.Sprintf("random: key %v has type %T; use string, int, int64 or uint64", k, k))
		}
	}
	sum := h.Sum(nil)
	// FNV alone leaves low avalanche in its last bytes; two rounds of the mixer spread them.
	return &Stream{state: mix(binary.LittleEndian.Uint64(sum[:8]) ^ mix(binary.LittleEndian.Uint64(sum[8:])))}
}

// mix is the output function of SplitMix64 (Steele, Lea and Flood 2014).
func mix(z uint64) uint64 {
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb
	return z ^ (z >> 31)
}

// Uint64 returns 64 random bits.
func (s *Stream) Uint64() uint64 {
	s.state += 0x9e3779b97f4a7c15
	return mix(s.state)
}

// Float64 returns a number in [0, 1).
func (s *Stream) Float64() float64 { return float64(s.Uint64()>>11) / (1 << 53) }

// IntN returns an integer in [0, n), without bias; n must be positive.
func (s *Stream) IntN(n int) int {
	if n <= 0 {
		panic(fmt.Sprintf("random: IntN(%d) needs a positive bound", n))
	}
	bound := uint64(n)
	limit := math.MaxUint64 - math.MaxUint64%bound
	for {
		if v := s.Uint64(); v < limit {
			return int(v % bound)
		}
	}
}

// Normal returns a standard normal number (Box and Muller).
func (s *Stream) Normal() float64 {
	if s.hasPair {
		s.hasPair = false
		return s.spare
	}
	u := 1 - s.Float64() // in (0, 1]: the logarithm is finite
	radius := math.Sqrt(-2 * math.Log(u))
	sin, cos := math.Sincos(2 * math.Pi * s.Float64())
	s.spare, s.hasPair = radius*sin, true
	return radius * cos
}

// Normals returns n standard normal numbers in float32.
func (s *Stream) Normals(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(s.Normal())
	}
	return out
}

// Perm returns a random permutation of 0 … n−1.
func (s *Stream) Perm(n int) []int {
	p := make([]int, n)
	for i := range p {
		j := s.IntN(i + 1)
		p[i] = p[j]
		p[j] = i
	}
	return p
}
