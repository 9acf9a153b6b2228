package vision

import (
	"math"
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// Every window is looked at one by one.
func TestPooling(t *testing.T) {
	e := openEngine(t)
	const batch, height, width, channels = 2, 8, 7, 3
	x := random.New(1, "pooling").Normals(batch * height * width * channels)
	for i := range x {
		x[i] -= 3 // where padding counted as zeros, zeros would win
	}
	for _, c := range []struct {
		name                  string
		pool                  func(x *ad.Value) *ad.Value
		size, stride, padding int
		join                  func(values []float64) float64
	}{
		{"maximum, stride 2", func(x *ad.Value) *ad.Value { return maxPool(x, 3, 2, 0) }, 3, 2, 0, largest},
		{"maximum of 2×2", func(x *ad.Value) *ad.Value { return maxPool(x, 2, 2, 0) }, 2, 2, 0, largest},
		{"maximum, padded", func(x *ad.Value) *ad.Value { return maxPool(x, 3, 1, 1) }, 3, 1, 1, largest},
		{"average", averagePool3, 3, 1, 1, mean},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := ad.Compile(e, c.name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value { return []*ad.Value{c.pool(in[0])} })
			if err != nil {
				t.Fatal(err)
			}
			out, err := f.Call(engine.Float32s(x, batch, height, width, channels))
			if err != nil {
				t.Fatal(err)
			}
			got, err := engine.Values(out[0])
			if err != nil {
				t.Fatal(err)
			}
			side := func(n int) int { return (n+2*c.padding-c.size)/c.stride + 1 }
			i := 0
			for b := range batch {
				for y := range side(height) {
					for z := range side(width) {
						for ch := range channels {
							var window []float64
							for dy := range c.size {
								for dx := range c.size {
									row, column := y*c.stride+dy-c.padding, z*c.stride+dx-c.padding
									if row >= 0 && row < height && column >= 0 && column < width {
										window = append(window, float64(x[((b*height+row)*width+column)*channels+ch]))
									}
								}
							}
							if want := c.join(window); math.Abs(float64(got[i])-want) > 1e-6 {
								t.Fatalf("place %d: %v instead of %v", i, got[i], want)
							}
							i++
						}
					}
				}
			}
			if i != len(got) {
				t.Errorf("%d values instead of %d", len(got), i)
			}
		})
	}
}

func largest(values []float64) float64 {
	out := values[0]
	for _, v := range values {
		out = max(out, v)
	}
	return out
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
