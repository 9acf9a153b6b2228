package ad

import (
	"testing"

	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// measure times a function of float32 arrays. bytes is what it must at least read and write, flops what it computes.
func measure(b *testing.B, l lowering, bytes, flops float64, shapes [][]int, f func(in []*Value) *Value) {
	e := open(b)
	defer e.Close()
	fn, err := compile(e, b.Name(), l, func(_ *Tape, in []*Value) []*Value { return []*Value{f(in)} })
	if err != nil {
		b.Fatal(err)
	}
	s := random.New(5, "bench")
	var in []*engine.Tensor
	for _, dims := range shapes {
		in = append(in, engine.Float32s(s.Normals(size(dims)), dims...))
	}
	call := func() {
		out, err := fn.Call(in...)
		if err != nil {
			b.Fatal(err)
		}
		engine.Free(out...)
	}
	call()
	for b.Loop() {
		call()
	}
	seconds := b.Elapsed().Seconds() / float64(b.N)
	if flops > 0 {
		b.ReportMetric(flops/seconds/1e9, "GFLOP/s")
	} else {
		b.ReportMetric(bytes/seconds/1e9, "GB/s")
	}
}

// BenchmarkLowerings times operations as they are lowered for the Go backend ("ours") and by the backend's own means
// ("its own"). docs/engine.md has the results.
func BenchmarkLowerings(b *testing.B) {
	own := func(f func(t *Tape, n *graph.Node) *graph.Node) func(in []*Value) *Value {
		return func(in []*Value) *Value { return in[0].tape.Input(f(in[0].tape, in[0].node)) }
	}
	transpose := own(func(t *Tape, n *graph.Node) *graph.Node { return t.swapLast(n) })
	repeat := func(in []*Value) *Value { return BroadcastTo(in[0], 8, 1024, 128) }
	conv := func(in []*Value) *Value { return Conv2D(in[0], in[1], Same(3, 1)) }
	product := func(in []*Value) *Value { return MatMul(in[0], in[1], false, false) }
	const tall, picture = 1 << 15, 32
	cases := []struct {
		name         string
		bytes, flops float64
		shapes       [][]int
		f            func(in []*Value) *Value
	}{
		{"matmul 2048³", 0, 2 * 2048 * 2048 * 2048, [][]int{{2048, 2048}, {2048, 2048}}, product},
		{"transpose 32768×64", 2 * 4 * tall * 64, 0, [][]int{{tall, 64}}, transpose},
		{"transpose 32768×128", 2 * 4 * tall * 128, 0, [][]int{{tall, 128}}, transpose},
		{"repeat middle axis 8×1→1024×128", 4 * 8 * 1024 * 128, 0, [][]int{{8, 1, 128}}, repeat},
		{"convolve 3×3 8×32×32×64", 0, 2 * 9 * 64 * 64 * 8 * picture * picture, [][]int{{8, picture, picture, 64}, {64, 3, 3, 64}}, conv},
	}
	for _, c := range cases {
		for _, l := range lowerings[:2] {
			name := "ours"
			if l.native {
				name = "its own"
			}
			b.Run(c.name+"/"+name, func(b *testing.B) { measure(b, l, c.bytes, c.flops, c.shapes, c.f) })
		}
	}
}
