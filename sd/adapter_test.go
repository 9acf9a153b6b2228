package sd

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/tensors"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/weights"
)

// adapterProblem is the denoising loss of a UNet in float64 as a function of an adapter's factors.
type adapterProblem struct {
	t       *testing.T
	adapter *Adapter
	fixed   []*engine.Tensor // the UNet's weights, latents, timesteps, text, target
	start   []float64        // the factors in a row, in the engine's layout
}

func float64s(t *testing.T, p *Params) (values []float64, all []*engine.Tensor) {
	t.Helper()
	for i, s := range p.Specs {
		x, err := engine.Values(p.Tensors[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range x {
			values = append(values, float64(v))
		}
		all = append(all, doubles(x, s.EngineShape()...))
	}
	return values, all
}

// arrays cuts a vector into the factors.
func (p *adapterProblem) arrays(x []float64) []*engine.Tensor {
	var out []*engine.Tensor
	for _, s := range p.adapter.Specs() {
		out = append(out, engine.Float64s(x[:s.Size()], s.EngineShape()...))
		x = x[s.Size():]
	}
	return out
}

func (p *adapterProblem) call(f *engine.Function, inputs ...[]*engine.Tensor) []float64 {
	p.t.Helper()
	out, err := f.Call(slices.Concat(append(inputs, p.fixed)...)...)
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

// Adapters on layers of every kind change a prediction as the merged weights do, and can be differentiated twice.
func TestAdaptersOfEveryKind(t *testing.T) {
	e := openEngine(t)
	for name, linear := range map[string]bool{"projections as convolutions": false, "linear projections": true} {
		t.Run(name, func(t *testing.T) {
			u := NewUNet(UNetConfig{
				InChannels: 4, OutChannels: 4, Channels: []int{8, 12}, LayersPerBlock: []int{1, 2},
				DownAttention: []bool{true, false}, UpAttention: []bool{false, true},
				Depth: []int{1, 1}, Heads: []int{2, 2}, ContextWidth: 6, Groups: 4, Eps: 1e-5, LinearProj: linear,
			})
			params := RandomParams(u.Specs(), 2)
			defer params.Free()
			m := &Model{Engine: e, UNet: u, functions: map[string]*engine.Function{}}
			layers, err := m.AttentionLayers("attention", FeedForward, Convolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{"conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "resnets.0.conv1", "ff.net.2", "to_out.0", "proj_in"} {
				is := slices.ContainsFunc(layers, func(l Layer) bool { return strings.HasSuffix(l.Path, part) })
				if want := part != "proj_in" || !linear; is != want {
					t.Errorf("%s is among the layers: %v", part, is)
				}
			}
			a, err := NewAdapter(layers, 2, 0.7)
			if err != nil {
				t.Fatal(err)
			}
			factors := a.Draw(1, 0.3, 0.3)
			defer factors.Free()

			p := &adapterProblem{t: t, adapter: a}
			var base []*engine.Tensor
			p.start, _ = float64s(t, factors)
			_, base = float64s(t, params)
			s := random.New(3, "adapters")
			const batch, tokens, side = 2, 3, 4
			sample := []*engine.Tensor{
				doubles(s.Normals(batch*4*side*side), batch, 4, side, side), doubles([]float32{701, 12}, batch),
				doubles(s.Normals(batch*tokens*6), batch, tokens, 6), doubles(s.Normals(batch*4*side*side), batch, 4, side, side),
			}
			p.fixed = slices.Concat(base, sample)
			k, n := len(a.Specs()), len(base)
			loss := func(factors, rest []*ad.Value) *ad.Value {
				w := params.Weights(rest[:n])
				if factors != nil {
					w = w.WithAdapter(a.Factors(factors))
				}
				rest = rest[n:]
				return ad.MeanAll(ad.Square(ad.Sub(u.Forward(w, rest[0], Conditions{Timesteps: rest[1], Context: rest[2]}), rest[3])))
			}
			compile := func(name string, build func(in []*ad.Value) []*ad.Value) *engine.Function {
				f, err := ad.Compile(e, name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value { return build(in) })
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(f.Free)
				return f
			}
			plain := compile("plain loss", func(in []*ad.Value) []*ad.Value { return []*ad.Value{loss(nil, in)} })
			adapted := compile("adapted loss", func(in []*ad.Value) []*ad.Value { return []*ad.Value{loss(in[:k], in[k:])} })
			gradient := compile("gradient", func(in []*ad.Value) []*ad.Value {
				return ad.Gradient(loss(in[:k], in[k:]), in[:k]...)
			})
			hessian := compile("Hessian product", func(in []*ad.Value) []*ad.Value {
				return ad.HessianProduct(loss(in[:k], in[2*k:]), in[:k], in[k:2*k])
			})

			// On the device, and as an adapter file, merged by package weights.
			with := p.call(adapted, p.arrays(p.start))[0]
			without := p.call(plain)[0]
			merged, made, err := m.Merge(params, a, factors)
			if err != nil {
				t.Fatal(err)
			}
			defer engine.Free(made...)
			_, mergedWeights := float64s(t, merged)
			lora, err := a.LoRA(factors)
			if err != nil {
				t.Fatal(err)
			}
			for how, tensors := range map[string][]*engine.Tensor{"on the device": mergedWeights, "as a file": p.mergedByFile(params, lora)} {
				p.fixed = slices.Concat(tensors, sample)
				if got := p.call(plain)[0]; math.Abs(got-with) > 1e-6*with || math.Abs(with-without) < 1e-3 {
					t.Errorf("merged %s the loss is %g, with the adapter %g, without %g", how, got, with, without)
				}
			}
			p.fixed = slices.Concat(base, sample)

			v := make([]float64, len(p.start))
			for i := range v {
				v[i] = s.Normal() / math.Sqrt(float64(len(v)))
			}
			const h = 1e-4
			ahead, behind := shifted(p.start, h, v), shifted(p.start, -h, v)
			slope := (p.call(adapted, p.arrays(ahead))[0] - p.call(adapted, p.arrays(behind))[0]) / (2 * h)
			if got := dot(p.call(gradient, p.arrays(p.start)), v); math.Abs(got-slope) > 1e-6*math.Abs(slope) {
				t.Errorf("the gradient gives the slope %g, differences %g", got, slope)
			}
			central := shifted(p.call(gradient, p.arrays(ahead)), -1, p.call(gradient, p.arrays(behind)))
			for i := range central {
				central[i] /= 2 * h
			}
			hv := p.call(hessian, p.arrays(p.start), p.arrays(v))
			if e := relative(hv, central); !(e < 1e-6) {
				t.Errorf("Hv differs from the central difference of gradients by %g", e)
			}
		})
	}
}

// mergedByFile merges an exported adapter as a file would be, and puts the weights into the engine's layout.
func (p *adapterProblem) mergedByFile(params *Params, lora *weights.LoRA) []*engine.Tensor {
	p.t.Helper()
	exported, err := params.Export()
	if err != nil {
		p.t.Fatal(err)
	}
	base, err := weights.NewSource(exported, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	merged, err := weights.Merge(base, lora, 1)
	if err != nil {
		p.t.Fatal(err)
	}
	loaded, err := LoadParams(nil, merged, "merged", params.Specs, nil, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	defer loaded.Free()
	_, all := float64s(p.t, loaded)
	return all
}
