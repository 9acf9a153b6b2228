package sd

import (
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// smallUNet is the UNet on which speed is compared with PyTorch: 4.19 M parameters.
func smallUNet() UNetConfig {
	return UNetConfig{
		SampleSize: 32, InChannels: 4, OutChannels: 4, Channels: []int{64, 128}, LayersPerBlock: []int{1, 1},
		DownAttention: []bool{true, true}, UpAttention: []bool{true, true}, Depth: []int{1, 1}, Heads: []int{4, 4},
		ContextWidth: 64, Groups: 8, Eps: 1e-5,
	}
}

type benchCase struct {
	params *Params
	inputs []*engine.Tensor // latents, timesteps, context, noise
	u      *UNet
}

func newBenchCase(batch, side int) benchCase {
	u := NewUNet(smallUNet())
	s := random.New(1, "bench")
	t := make([]float32, batch)
	for i := range t {
		t[i] = float32(s.IntN(1000))
	}
	return benchCase{
		u: u, params: RandomParams(u.Specs(), 0),
		inputs: []*engine.Tensor{
			engine.Float32s(s.Normals(batch*4*side*side), batch, 4, side, side), engine.Float32s(t, batch),
			engine.Float32s(s.Normals(batch*77*64), batch, 77, 64), engine.Float32s(s.Normals(batch*4*side*side), batch, 4, side, side),
		},
	}
}

func (c benchCase) loss(p, in []*ad.Value) *ad.Value {
	pred := c.u.Forward(c.params.Weights(p), in[0], Conditions{Timesteps: in[1], Context: in[2]})
	return ad.MeanAll(ad.Square(ad.Sub(pred, in[3])))
}

func (c benchCase) run(b *testing.B, extra []*engine.Tensor, build func(p, v, in []*ad.Value) []*ad.Value) {
	e, err := engine.Open("go")
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	n := len(c.params.Tensors)
	fn, err := ad.Compile(e, b.Name(), func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return build(in[:n], in[n:n+len(extra)], in[n+len(extra):])
	})
	if err != nil {
		b.Fatal(err)
	}
	inputs := append(append(append([]*engine.Tensor(nil), c.params.Tensors...), extra...), c.inputs...)
	call := func() {
		out, err := fn.Call(inputs...)
		if err != nil {
			b.Fatal(err)
		}
		engine.Free(out...)
	}
	call()
	for b.Loop() {
		call()
	}
}

func BenchmarkSmallForward(b *testing.B) {
	c := newBenchCase(8, 32)
	c.run(b, nil, func(p, _, in []*ad.Value) []*ad.Value { return []*ad.Value{c.loss(p, in)} })
}

func BenchmarkSmallGradient(b *testing.B) {
	c := newBenchCase(8, 32)
	c.run(b, nil, func(p, _, in []*ad.Value) []*ad.Value { return ad.Gradient(c.loss(p, in), p...) })
}

func BenchmarkSmallHessianProduct(b *testing.B) {
	c := newBenchCase(8, 32)
	v := RandomParams(c.u.Specs(), 1)
	c.run(b, v.Tensors, func(p, v, in []*ad.Value) []*ad.Value { return ad.HessianProduct(c.loss(p, in), p, v) })
}
