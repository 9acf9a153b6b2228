package sd

import (
	"math"
	"slices"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// problem64 is the denoising loss of a UNet in float64, where central differences have nine digits.
type problem64 struct {
	t          *testing.T
	params     *Params
	start      []float64 // all parameters in a row, in the engine's layout
	batch      []*engine.Tensor
	grad, hess *engine.Function
}

func doubles(values []float32, shape ...int) *engine.Tensor {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return engine.Float64s(out, shape...)
}

func newProblem64(t *testing.T, e *engine.Engine, u *UNet, params *Params, side int) *problem64 {
	t.Helper()
	p := &problem64{t: t, params: params}
	for _, x := range params.Tensors {
		values, err := engine.Values(x)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range values {
			p.start = append(p.start, float64(v))
		}
	}
	const batch, tokens = 2, 5
	s := random.New(3, "derivatives")
	draw := func(shape ...int) *engine.Tensor {
		n := 1
		for _, d := range shape {
			n *= d
		}
		return doubles(s.Normals(n), shape...)
	}
	c := u.Config
	p.batch = []*engine.Tensor{
		draw(batch, c.InChannels, side, side), doubles([]float32{701, 12}, batch), draw(batch, tokens, c.ContextWidth),
		draw(batch, c.OutChannels, side, side),
	}
	if c.TextTime {
		p.batch = append(p.batch, draw(batch, c.PooledWidth()), doubles([]float32{64, 48, 0, 8, 32, 32, 32, 32, 1, 0, 32, 32}, batch, 6))
	}
	n := len(params.Tensors)
	loss := func(in, rest []*ad.Value) *ad.Value {
		conditions := Conditions{Timesteps: rest[1], Context: rest[2]}
		if c.TextTime {
			conditions.Pooled, conditions.TimeIDs = rest[4], rest[5]
		}
		return ad.MeanAll(ad.Square(ad.Sub(u.Forward(params.Weights(in), rest[0], conditions), rest[3])))
	}
	var err error
	if p.grad, err = ad.Compile(e, "gradient", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return ad.Gradient(loss(in[:n], in[n:]), in[:n]...)
	}); err != nil {
		t.Fatal(err)
	}
	if p.hess, err = ad.Compile(e, "Hessian product", func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return ad.HessianProduct(loss(in[:n], in[2*n:]), in[:n], in[n:2*n])
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.grad.Free)
	t.Cleanup(p.hess.Free)
	return p
}

// arrays cuts a vector into one array for each parameter.
func (p *problem64) arrays(x []float64) []*engine.Tensor {
	var out []*engine.Tensor
	for _, s := range p.params.Specs {
		out = append(out, engine.Float64s(x[:s.Size()], s.EngineShape()...))
		x = x[s.Size():]
	}
	return out
}

func (p *problem64) call(f *engine.Function, inputs ...[]*engine.Tensor) []float64 {
	p.t.Helper()
	out, err := f.Call(slices.Concat(append(inputs, p.batch)...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	defer engine.Free(out...)
	var all []float64
	for _, x := range out {
		values, err := tensors.CopyFlatData[float64](x)
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, values...)
	}
	return all
}

func (p *problem64) gradient(x []float64) []float64 { return p.call(p.grad, p.arrays(x)) }
func (p *problem64) product(v []float64) []float64 {
	return p.call(p.hess, p.arrays(p.start), p.arrays(v))
}

// direction is a random vector of about unit length.
func (p *problem64) direction(name string) []float64 {
	s := random.New(4, name)
	v := make([]float64, len(p.start))
	for i := range v {
		v[i] = s.Normal() / math.Sqrt(float64(len(v)))
	}
	return v
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, x := range a {
		sum += x * b[i]
	}
	return sum
}

// shifted is x + c·v.
func shifted(x []float64, c float64, v []float64) []float64 {
	out := slices.Clone(x)
	for i := range out {
		out[i] += c * v[i]
	}
	return out
}

// The Hessian of the loss is symmetric, and its products are the derivatives of gradients, in every topology of the
// family. Values and gradients themselves are compared with the reference by package verify.
func TestHessianProducts(t *testing.T) {
	e := openEngine(t)
	tiny := load(t, tinySD)
	plain := UNetConfig{
		InChannels: 4, OutChannels: 4, Channels: []int{8, 16, 24, 24}, LayersPerBlock: []int{2, 2, 2, 2},
		DownAttention: []bool{true, true, true, false}, UpAttention: []bool{false, true, true, true},
		Depth: []int{1, 1, 1, 1}, Heads: []int{4, 4, 4, 4}, ContextWidth: 12, Groups: 4, Eps: 1e-5,
	}
	second := plain
	second.Heads, second.LinearProj = []int{1, 2, 3, 3}, true
	xl := UNetConfig{
		InChannels: 4, OutChannels: 4, Channels: []int{8, 16, 24}, LayersPerBlock: []int{2, 2, 2},
		DownAttention: []bool{false, true, true}, UpAttention: []bool{true, true, false}, Depth: []int{1, 2, 3}, Heads: []int{1, 2, 3},
		ContextWidth: 12, Groups: 4, Eps: 1e-5, LinearProj: true, TextTime: true, TimeIDWidth: 4, AddedInputDim: 6*4 + 10,
	}
	for _, test := range []struct {
		name string
		unet *UNet
		side int
	}{
		{"tiny-sd", tiny.UNet, 8},
		{"four levels of two layers, as SD 1.x", NewUNet(plain), 8},
		{"linear projections and heads per level, as SD 2.x", NewUNet(second), 8},
		{"deep transformers and added conditions, as SDXL", NewUNet(xl), 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			params := tiny.UNetParams
			if test.unet != tiny.UNet {
				params = RandomParams(test.unet.Specs(), 2)
				defer params.Free()
			}
			p := newProblem64(t, e, test.unet, params, test.side)
			v, w := p.direction("v"), p.direction("w")
			hv, hw := p.product(v), p.product(w)
			vhw, whv := dot(v, hw), dot(w, hv)
			if size := math.Sqrt(dot(hv, hv)); math.Abs(vhw-whv) > 1e-10*size || size == 0 {
				t.Errorf("⟨v, Hw⟩ = %g and ⟨w, Hv⟩ = %g, for ‖Hv‖ = %g", vhw, whv, size)
			}
			const h = 1e-4
			ahead, behind := p.gradient(shifted(p.start, h, v)), p.gradient(shifted(p.start, -h, v))
			central := shifted(ahead, -1, behind)
			for i := range central {
				central[i] /= 2 * h
			}
			if e := relative(hv, central); !(e < 1e-6) {
				t.Errorf("Hv differs from the central difference of gradients by %g", e)
			} else {
				t.Logf("central difference: %.1g; asymmetry: %.1g", e, math.Abs(vhw-whv))
			}
		})
	}
}
