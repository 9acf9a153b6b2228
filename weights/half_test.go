package weights

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/random"
)

func TestHalfAndBfloatSurviveWidening(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		if h&0x7c00 != 0x7c00 { // finite: (−1)^s · 2^(e−25) · (1024 + f), or 2^−24 · f
			want := math.Ldexp(float64(h&0x3ff), -24)
			if e := int(h >> 10 & 31); e > 0 {
				want = math.Ldexp(float64(1024+int(h&0x3ff)), e-25)
			}
			if h>>15 == 1 {
				want = -want
			}
			if got := float64(float32FromHalf(h)); got != want || math.Signbit(got) != math.Signbit(want) {
				t.Fatalf("half %#04x is %g, not %g", h, got, want)
			}
		}
		quiet := h
		if h&0x7c00 == 0x7c00 && h&0x3ff != 0 {
			quiet |= 0x200
		}
		if got := halfFromFloat32(float32FromHalf(h)); got != quiet {
			t.Fatalf("half %#04x comes back as %#04x", h, got)
		}
		quiet = h
		if h&0x7f80 == 0x7f80 && h&0x7f != 0 {
			quiet |= 0x40
		}
		if got := bfloatFromFloat32(float32FromBfloat(h)); got != quiet {
			t.Fatalf("bfloat %#04x comes back as %#04x", h, got)
		}
	}
}

// Between two neighbours every value must go to the nearer one, and the midpoint to the even one.
func TestNarrowingRoundsToNearestEven(t *testing.T) {
	type format struct {
		name   string
		last   uint16 // the largest finite value
		widen  func(uint16) float32
		narrow func(float32) uint16
	}
	for _, f := range []format{
		{"half", 0x7bff, float32FromHalf, halfFromFloat32},
		{"bfloat", 0x7f7f, float32FromBfloat, bfloatFromFloat32},
	} {
		for low := uint16(0); low < f.last; low++ {
			a, b := f.widen(low), f.widen(low+1)
			middle := float32((float64(a) + float64(b)) / 2) // exact: one more bit than the format has
			even := low + low&1
			for _, c := range []struct {
				v    float32
				want uint16
			}{
				{middle, even},
				{math.Nextafter32(middle, a), low},
				{math.Nextafter32(middle, b), low + 1},
			} {
				if middle == a || middle == b { // bfloat subnormals of half a unit fall below float32
					continue
				}
				if got := f.narrow(c.v); got != c.want {
					t.Fatalf("%s: %g becomes %#04x, not %#04x", f.name, c.v, got, c.want)
				}
				if got := f.narrow(-c.v); got != c.want|0x8000 {
					t.Fatalf("%s: %g becomes %#04x, not %#04x", f.name, -c.v, got, c.want|0x8000)
				}
			}
		}
		if got := f.widen(f.narrow(math.MaxFloat32)); !math.IsInf(float64(got), 1) {
			t.Errorf("%s: the largest float32 becomes %g, not infinite", f.name, got)
		}
	}
	if halfFromFloat32(65519.996) != 0x7bff || halfFromFloat32(65520) != 0x7c00 {
		t.Error("half: the border to infinity is not at 65520")
	}
}

func TestFromFloat32RefusesOverflowAndIntegers(t *testing.T) {
	if _, err := FromFloat32("w", F16, []int{2}, []float32{1, 70000}); err == nil {
		t.Error("70000 was stored as F16")
	}
	if _, err := FromFloat32("w", F16, []int{1}, []float32{float32(math.Inf(1))}); err != nil {
		t.Errorf("infinity is a value of F16: %v", err)
	}
	if _, err := FromFloat32("w", I32, []int{1}, []float32{1}); err == nil {
		t.Error("a float was stored as I32")
	}
	if _, err := FromFloat32("w", F32, []int{3}, []float32{1}); err == nil {
		t.Error("one value was stored as three")
	}
	if _, err := NewFloat32("w", []int{-1}, nil).Float32(); err == nil {
		t.Error("a negative dimension was read")
	}
	if _, err := (&Tensor{Name: "w"}).Float32(); err == nil {
		t.Error("a tensor without dtype was read")
	}
}

func BenchmarkFloat32FromHalf(b *testing.B) {
	values := make([]float32, 1<<20)
	for i, v := range random.New(1, "half").Normals(len(values)) {
		values[i] = float32(v)
	}
	tensor, err := FromFloat32("w", F16, []int{len(values)}, values)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(4 * len(values)))
	for b.Loop() {
		if _, err := tensor.Float32(); err != nil {
			b.Fatal(err)
		}
	}
}

// Reading into an array gives what reading into a new one does, for every type, and nothing where it does not fit.
func TestFloat32Into(t *testing.T) {
	want := []float32{0, -1.5, 2, 65504}
	for _, dtype := range []DType{F64, F32, F16, BF16} {
		x, err := FromFloat32("w", dtype, []int{2, 2}, want)
		if err != nil {
			t.Fatal(err)
		}
		fresh, err := x.Float32()
		if err != nil {
			t.Fatal(err)
		}
		got := []float32{9, 9, 9, 9}
		if err := x.Float32Into(got); err != nil || !slices.Equal(got, fresh) {
			t.Errorf("%s: %v instead of %v (%v)", dtype, got, fresh, err)
		}
		for _, n := range []int{3, 5} {
			if err := x.Float32Into(make([]float32, n)); err == nil || !strings.Contains(err.Error(), `"w"`) {
				t.Errorf("%s into %d: %v", dtype, n, err)
			}
		}
	}
	whole, err := New("n", I32, []int{1}, []byte{1, 0, 0, 0})
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Float32Into(make([]float32, 1)); err == nil {
		t.Error("integers were read as floating-point numbers")
	}
}
