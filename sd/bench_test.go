package sd

import (
	"testing"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
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

// miniatureUNet is the UNet of the built-in experiment: 0.55 M parameters.
func miniatureUNet() UNetConfig {
	c := smallUNet()
	c.SampleSize, c.InChannels, c.OutChannels, c.Channels = 8, 12, 12, []int{24, 48}
	return c
}

type benchCase struct {
	params *Params
	inputs []*engine.Tensor // latents, timesteps, context, noise
	u      *UNet
}

func newBenchCase(config UNetConfig, batch, side, tokens int) benchCase {
	u := NewUNet(config)
	c := config.InChannels
	s := random.New(1, "bench")
	t := make([]float32, batch)
	for i := range t {
		t[i] = float32(s.IntN(1000))
	}
	return benchCase{
		u: u, params: RandomParams(u.Specs(), 0),
		inputs: []*engine.Tensor{
			engine.Float32s(s.Normals(batch*c*side*side), batch, c, side, side), engine.Float32s(t, batch),
			engine.Float32s(s.Normals(batch*tokens*64), batch, tokens, 64), engine.Float32s(s.Normals(batch*c*side*side), batch, c, side, side),
		},
	}
}

func (c benchCase) loss(p, in []*ad.Value) *ad.Value {
	pred := c.u.Forward(c.params.Weights(p), in[0], Conditions{Timesteps: in[1], Context: in[2]})
	return ad.MeanAll(ad.Square(ad.Sub(pred, in[3])))
}

func (c benchCase) run(b *testing.B, extra []*engine.Tensor, build func(p, v, in []*ad.Value) []*ad.Value) {
	e, err := engine.Open(enginetest.Spec())
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
	c := newBenchCase(smallUNet(), 8, 32, 77)
	c.run(b, nil, func(p, _, in []*ad.Value) []*ad.Value { return []*ad.Value{c.loss(p, in)} })
}

func BenchmarkSmallGradient(b *testing.B) {
	c := newBenchCase(smallUNet(), 8, 32, 77)
	c.run(b, nil, func(p, _, in []*ad.Value) []*ad.Value { return ad.Gradient(c.loss(p, in), p...) })
}

func BenchmarkSmallHessianProduct(b *testing.B) {
	c := newBenchCase(smallUNet(), 8, 32, 77)
	v := RandomParams(c.u.Specs(), 1)
	c.run(b, v.Tensors, func(p, v, in []*ad.Value) []*ad.Value { return ad.HessianProduct(c.loss(p, in), p, v) })
}

func BenchmarkMiniatureGradient(b *testing.B) {
	c := newBenchCase(miniatureUNet(), 16, 8, 10)
	c.run(b, nil, func(p, _, in []*ad.Value) []*ad.Value { return ad.Gradient(c.loss(p, in), p...) })
}

func BenchmarkMiniatureForward(b *testing.B) {
	c := newBenchCase(miniatureUNet(), 2, 8, 10)
	c.run(b, nil, func(p, _, in []*ad.Value) []*ad.Value { return []*ad.Value{c.loss(p, in)} })
}
