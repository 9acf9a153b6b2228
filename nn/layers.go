package nn

import (
	"math"
	"slices"

	"github.com/resalign/resalign/ad"
)

// Linear is y = x·Wᵀ + b over the last axis, with W [out, in].
type Linear struct {
	path, weight, bias string
	in, out            int
}

// NewLinear lays out a linear layer at the builder's path.
func NewLinear(b Builder, in, out int, bias bool) Linear {
	l := Linear{path: b.Path(), in: in, out: out}
	l.weight = b.Param("weight", Spec{Shape: []int{out, in}, Fan: in})
	if bias {
		l.bias = b.Param("bias", Spec{Shape: []int{out}, Fan: in})
	}
	return l
}

// Path is the module's name in the checkpoint, the key of adapters.
func (l Linear) Path() string { return l.path }

// In and Out are the widths of the layer.
func (l Linear) In() int { return l.in }

// Out is the number of outputs.
func (l Linear) Out() int { return l.out }

// Apply maps x [..., in] to [..., out].
func (l Linear) Apply(w *Weights, x *ad.Value) *ad.Value {
	dims := x.Dims()
	y := l.outputs(w, ad.Reshape(x, x.Size()/l.in, l.in), 0, l.out)
	return ad.Reshape(y, append(slices.Clone(dims[:len(dims)-1]), l.out)...)
}

// Halves maps x [..., in] to the two halves of the outputs, each [..., out/2]. Cutting the weights in two is cheaper than
// cutting the outputs where pictures are large, if cutting means copying.
func (l Linear) Halves(w *Weights, x *ad.Value) (a, b *ad.Value) {
	half := l.out / 2
	if rows := x.Size() / l.in; x.Tape().SlicesInPlace() || rows <= l.in {
		y := l.Apply(w, x)
		return ad.Slice(y, -1, 0, half), ad.Slice(y, -1, half, l.out)
	}
	dims := x.Dims()
	flat := ad.Reshape(x, x.Size()/l.in, l.in)
	shape := append(slices.Clone(dims[:len(dims)-1]), half)
	return ad.Reshape(l.outputs(w, flat, 0, half), shape...), ad.Reshape(l.outputs(w, flat, half, l.out), shape...)
}

// outputs maps rows x [rows, in] to the outputs from start to end: [rows, end − start].
func (l Linear) outputs(w *Weights, x *ad.Value, start, end int) *ad.Value {
	p := w.precision(x, w.adapted(l.path))
	y := ad.MatMulIn(p, x, ad.Slice(w.value(l.weight), 0, start, end), false, true)
	for i, adapter := range w.adapters {
		if f, ok := adapter[l.path]; ok {
			low := ad.MatMulIn(w.precision(x, false), w.adapterInput(i, l.path, x), f.Down, false, true)
			y = ad.Add(y, ad.Scale(ad.MatMulIn(p, low, ad.Slice(f.Up, 0, start, end), false, true), f.Scale))
		}
	}
	if l.bias != "" {
		bias := ad.Slice(w.value(l.bias), 0, start, end)
		y = ad.Add(y, ad.Convert(ad.Reshape(bias, 1, end-start), y.DType()))
	}
	return w.Activation(y)
}

// Conv is a two-dimensional convolution over pictures [B, H, W, C].
type Conv struct {
	path, weight, bias string
	window             ad.Window
	out                int
}

// NewConv lays out a convolution at the builder's path.
func NewConv(b Builder, in, out int, window ad.Window) Conv {
	fan := in * window.KH * window.KW
	return Conv{
		path:   b.Path(),
		weight: b.Param("weight", Spec{Shape: []int{out, in, window.KH, window.KW}, Layout: Kernel, Fan: fan}),
		bias:   b.Param("bias", Spec{Shape: []int{out}, Fan: fan}),
		window: window, out: out,
	}
}

// Path is the module's name in the checkpoint, the key of adapters.
func (c Conv) Path() string { return c.path }

// Apply maps x [B, H, W, in] to [B, H', W', out].
func (c Conv) Apply(w *Weights, x *ad.Value) *ad.Value {
	p := w.precision(x, w.adapted(c.path))
	y := ad.Conv2DIn(p, x, w.value(c.weight), c.window)
	for i, adapter := range w.adapters {
		if f, ok := adapter[c.path]; ok {
			low := ad.Conv2DIn(w.precision(x, false), w.adapterInput(i, c.path, x), f.Down, c.window)
			y = ad.Add(y, ad.Scale(ad.Conv2DIn(p, low, f.Up, ad.Same(1, 1)), f.Scale))
		}
	}
	return w.Activation(ad.Add(y, ad.Convert(ad.Reshape(w.value(c.bias), 1, 1, 1, c.out), y.DType())))
}

// GroupNorm normalises groups of channels over all pixels.
type GroupNorm struct {
	weight, bias     string
	groups, channels int
	eps              float64
}

// NewGroupNorm lays out a group normalisation at the builder's path.
func NewGroupNorm(b Builder, groups, channels int, eps float64) GroupNorm {
	return GroupNorm{
		weight: b.Param("weight", Spec{Shape: []int{channels}, Init: Ones}),
		bias:   b.Param("bias", Spec{Shape: []int{channels}, Init: Zeros}),
		groups: groups, channels: channels, eps: eps,
	}
}

// Apply normalises x [B, ..., channels].
func (n GroupNorm) Apply(w *Weights, x *ad.Value) *ad.Value {
	return ad.InFloat32(n.normalise, []*ad.Value{x}, []*ad.Value{w.value(n.weight), w.value(n.bias)})
}

// Activated is SiLU of Apply, rounded once where x is of half precision.
func (n GroupNorm) Activated(w *Weights, x *ad.Value) *ad.Value {
	return ad.InFloat32(func(in, p []*ad.Value) *ad.Value { return SiLU(n.normalise(in, p)) },
		[]*ad.Value{x}, []*ad.Value{w.value(n.weight), w.value(n.bias)})
}

func (n GroupNorm) normalise(in, p []*ad.Value) *ad.Value {
	x := in[0]
	dims := x.Dims()
	batch, c := dims[0], n.channels
	pixels := x.Size() / (batch * c)
	flat := ad.Reshape(x, batch, pixels, c)
	centred := ad.Sub(flat, n.groupMean(flat))
	variance := n.groupMean(ad.Square(centred))
	gain := ad.Mul(ad.Rsqrt(ad.AddNumber(variance, n.eps)), ad.Reshape(p[0], 1, 1, c))
	y := ad.Add(ad.Mul(centred, gain), ad.Reshape(p[1], 1, 1, c))
	return ad.Reshape(y, dims...)
}

// groupMean averages [B, pixels, C] over pixels and the channels of each group: [B, 1, C], equal within a group.
func (n GroupNorm) groupMean(x *ad.Value) *ad.Value {
	batch, pixels, c := x.Dim(0), x.Dim(1), x.Dim(2)
	inGroup := c / n.groups
	perChannel := ad.Reshape(ad.SumTo(x, batch, 1, c), batch, n.groups, inGroup)
	perGroup := ad.Scale(ad.SumTo(perChannel, batch, n.groups, 1), 1/float64(pixels*inGroup))
	return ad.Reshape(ad.BroadcastTo(perGroup, batch, n.groups, inGroup), batch, 1, c)
}

// LayerNorm normalises the last axis.
type LayerNorm struct {
	weight, bias string
	width        int
	eps          float64
}

// NewLayerNorm lays out a layer normalisation at the builder's path.
func NewLayerNorm(b Builder, width int, eps float64) LayerNorm {
	return LayerNorm{
		weight: b.Param("weight", Spec{Shape: []int{width}, Init: Ones}),
		bias:   b.Param("bias", Spec{Shape: []int{width}, Init: Zeros}),
		width:  width, eps: eps,
	}
}

// Apply normalises x [..., width].
func (n LayerNorm) Apply(w *Weights, x *ad.Value) *ad.Value {
	return ad.InFloat32(n.normalise, []*ad.Value{x}, []*ad.Value{w.value(n.weight), w.value(n.bias)})
}

func (n LayerNorm) normalise(in, p []*ad.Value) *ad.Value {
	x := in[0]
	dims := x.Dims()
	rows := x.Size() / n.width
	flat := ad.Reshape(x, rows, n.width)
	mean := func(v *ad.Value) *ad.Value { return ad.Scale(ad.SumTo(v, rows, 1), 1/float64(n.width)) }
	centred := ad.Sub(flat, mean(flat))
	normal := ad.Mul(centred, ad.Rsqrt(ad.AddNumber(mean(ad.Square(centred)), n.eps)))
	y := ad.Add(ad.Mul(normal, ad.Reshape(p[0], 1, n.width)), ad.Reshape(p[1], 1, n.width))
	return ad.Reshape(y, dims...)
}

// EmbeddingTable maps indices to rows.
type EmbeddingTable struct {
	weight string
	width  int
}

// NewEmbedding lays out a table of count rows at the builder's path.
func NewEmbedding(b Builder, count, width int) EmbeddingTable {
	return EmbeddingTable{weight: b.Param("weight", Spec{Shape: []int{count, width}, Init: Embedding}), width: width}
}

// Apply looks up int32 indices [...]: the result is [..., width].
func (e EmbeddingTable) Apply(w *Weights, indices *ad.Value) *ad.Value {
	return ad.GatherRows(w.value(e.weight), indices)
}

// Table is the whole table [count, width].
func (e EmbeddingTable) Table(w *Weights) *ad.Value { return w.value(e.weight) }

// SiLU is x·σ(x).
func SiLU(x *ad.Value) *ad.Value {
	return elementwise(x, func(x *ad.Value) *ad.Value { return ad.Mul(x, ad.Sigmoid(x)) })
}

// GELU is x·Φ(x), exact.
func GELU(x *ad.Value) *ad.Value {
	return elementwise(x, func(x *ad.Value) *ad.Value {
		return ad.Mul(x, ad.Scale(ad.AddNumber(ad.Erf(ad.Scale(x, 1/math.Sqrt2)), 1), 0.5))
	})
}

// QuickGELU is x·σ(1.702x), as in OpenAI's CLIP.
func QuickGELU(x *ad.Value) *ad.Value {
	return elementwise(x, func(x *ad.Value) *ad.Value { return ad.Mul(x, ad.Sigmoid(ad.Scale(x, 1.702))) })
}

// GEGLU is a·GELU(b) (Shazeer 2020, arXiv:2002.05202).
func GEGLU(a, b *ad.Value) *ad.Value {
	return ad.InFloat32(func(in, _ []*ad.Value) *ad.Value { return ad.Mul(in[0], GELU(in[1])) }, []*ad.Value{a, b}, nil)
}

// TimestepEmbedding encodes timesteps [B] as [cos, sin] of width/2 frequencies, from 1 down to 1/10000 (diffusers with
// flip_sin_to_cos true and freq_shift 0). No derivative is taken with respect to the timesteps.
func TimestepEmbedding(timesteps *ad.Value, width int, sinFirst bool, shift float64) *ad.Value {
	half := width / 2
	frequencies := make([]float32, half)
	for i := range frequencies {
		frequencies[i] = float32(math.Exp(-math.Log(10000) * float64(i) / (float64(half) - shift)))
	}
	tape := timesteps.Tape()
	row := tape.Constant(timesteps, frequencies, 1, half)
	angles := ad.Mul(ad.Reshape(timesteps, timesteps.Size(), 1), row)
	sin, cos := ad.ConstantSinCos(angles)
	if sinFirst {
		return ad.Concat(1, sin, cos)
	}
	return ad.Concat(1, cos, sin)
}
