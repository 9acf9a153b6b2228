package sd

import (
	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
)

// resnet is diffusers' ResnetBlock2D: two normalised convolutions around a time embedding, plus the input.
type resnet struct {
	path         []string
	norm1, norm2 nn.GroupNorm
	conv1, conv2 nn.Conv
	time         *nn.Linear // nil in autoencoders
	shortcut     *nn.Conv   // where the number of channels changes
}

type resnetConfig struct {
	temb   int // width of the time embedding; 0 in autoencoders
	groups int
	eps    float64
}

func newResnet(b nn.Builder, in, out int, c resnetConfig) resnet {
	r := resnet{
		path:  []string{b.Path()},
		norm1: nn.NewGroupNorm(b.At("norm1"), c.groups, in, c.eps),
		conv1: nn.NewConv(b.At("conv1"), in, out, ad.Same(3, 1)),
	}
	if c.temb > 0 {
		time := nn.NewLinear(b.At("time_emb_proj"), c.temb, out, true)
		r.time = &time
	}
	r.norm2 = nn.NewGroupNorm(b.At("norm2"), c.groups, out, c.eps)
	r.conv2 = nn.NewConv(b.At("conv2"), out, out, ad.Same(3, 1))
	if in != out {
		shortcut := nn.NewConv(b.At("conv_shortcut"), in, out, ad.Same(1, 1))
		r.shortcut = &shortcut
	}
	return r
}

// apply maps x [B, H, W, in] and the activated time embedding temb [B, T] to [B, H, W, out]. x may come in parts, which
// are joined by channels; temb is nil in autoencoders.
func (r resnet) apply(w *nn.Weights, temb *ad.Value, x ...*ad.Value) *ad.Value {
	in := x
	if temb != nil {
		in = append([]*ad.Value{temb}, x...)
	}
	return w.Block(r.path, func(w *nn.Weights, in []*ad.Value) *ad.Value {
		if temb == nil {
			return r.forward(w, nil, join(in))
		}
		return r.forward(w, in[0], join(in[1:]))
	}, in...)
}

func join(parts []*ad.Value) *ad.Value {
	if len(parts) == 1 {
		return parts[0]
	}
	return ad.Concat(-1, parts...)
}

func (r resnet) forward(w *nn.Weights, temb, x *ad.Value) *ad.Value {
	h := r.conv1.Apply(w, r.norm1.Activated(w, x))
	if r.time != nil {
		t := r.time.Apply(w.ComputeIn(nn.Float32), temb)
		h = ad.Add(h, w.Activation(ad.Reshape(t, t.Dim(0), 1, 1, t.Dim(1))))
	}
	h = r.conv2.Apply(w, r.norm2.Activated(w, h))
	if r.shortcut != nil {
		x = r.shortcut.Apply(w, x)
	}
	return ad.Add(x, h)
}

// spatialTransformer is diffusers' Transformer2DModel: pixels as a sequence that attends to itself and to the text.
type spatialTransformer struct {
	enter           []string // paths of the norm and the first projection
	norm            nn.GroupNorm
	linear          bool
	projIn, projOut nn.Linear
	convIn, convOut nn.Conv
	blocks          []transformerBlock
}

func newSpatialTransformer(b nn.Builder, channels, heads, depth int, c UNetConfig) spatialTransformer {
	t := spatialTransformer{linear: c.LinearProj, enter: []string{b.At("norm").Path(), b.At("proj_in").Path()}}
	t.norm = nn.NewGroupNorm(b.At("norm"), c.Groups, channels, 1e-6) // Transformer2DModel fixes this epsilon
	if t.linear {
		t.projIn = nn.NewLinear(b.At("proj_in"), channels, channels, true)
	} else {
		t.convIn = nn.NewConv(b.At("proj_in"), channels, channels, ad.Same(1, 1))
	}
	for i := range depth {
		t.blocks = append(t.blocks, newTransformerBlock(b.At("transformer_blocks").At(i), channels, heads, c.ContextWidth))
	}
	if t.linear {
		t.projOut = nn.NewLinear(b.At("proj_out"), channels, channels, true)
	} else {
		t.convOut = nn.NewConv(b.At("proj_out"), channels, channels, ad.Same(1, 1))
	}
	return t
}

func (t spatialTransformer) linears() []nn.Linear {
	var all []nn.Linear
	for _, b := range t.blocks {
		all = append(all, b.attn1.linears()...)
		all = append(all, b.attn2.linears()...)
	}
	return all
}

func (t spatialTransformer) apply(w *nn.Weights, x, context *ad.Value) *ad.Value {
	d := x.Dims()
	h := w.Block(t.enter, func(w *nn.Weights, in []*ad.Value) *ad.Value {
		h := t.norm.Apply(w, in[0])
		if t.linear {
			return t.projIn.Apply(w, h)
		}
		return t.convIn.Apply(w, h)
	}, x)
	h = ad.Reshape(h, d[0], d[1]*d[2], d[3])
	for _, b := range t.blocks {
		h = w.Block(b.path, func(w *nn.Weights, in []*ad.Value) *ad.Value { return b.apply(w, in[0], in[1]) }, h, context)
	}
	h = ad.Reshape(h, d...)
	if t.linear {
		h = t.projOut.Apply(w, h)
	} else {
		h = t.convOut.Apply(w, h)
	}
	return ad.Add(x, h)
}

// transformerBlock is diffusers' BasicTransformerBlock.
type transformerBlock struct {
	path                []string
	norm1, norm2, norm3 nn.LayerNorm
	attn1, attn2        attention
	gate, out           nn.Linear // feed-forward with a gated GELU
}

func newTransformerBlock(b nn.Builder, width, heads, context int) transformerBlock {
	const eps = 1e-5
	const expansion = 4 // FeedForward's mult
	return transformerBlock{
		path:  []string{b.Path()},
		norm1: nn.NewLayerNorm(b.At("norm1"), width, eps),
		attn1: newAttention(b.At("attn1"), width, width, heads),
		norm2: nn.NewLayerNorm(b.At("norm2"), width, eps),
		attn2: newAttention(b.At("attn2"), width, context, heads),
		norm3: nn.NewLayerNorm(b.At("norm3"), width, eps),
		gate:  nn.NewLinear(b.At("ff.net.0.proj"), width, 2*expansion*width, true),
		out:   nn.NewLinear(b.At("ff.net.2"), expansion*width, width, true),
	}
}

// apply maps a sequence x [B, N, width] under the text embeddings context [B, tokens, C].
func (t transformerBlock) apply(w *nn.Weights, x, context *ad.Value) *ad.Value {
	h := t.norm1.Apply(w, x)
	x = ad.Add(x, t.attn1.apply(w, h, h))
	x = ad.Add(x, t.attn2.apply(w, t.norm2.Apply(w, x), context))
	value, gate := t.gate.Halves(w, t.norm3.Apply(w, x))
	return ad.Add(x, t.out.Apply(w, nn.GEGLU(value, gate)))
}

// attention is diffusers' Attention without biases on queries, keys and values.
type attention struct {
	q, k, v, out nn.Linear
	heads        int
}

func newAttention(b nn.Builder, width, context, heads int) attention {
	return attention{
		q:     nn.NewLinear(b.At("to_q"), width, width, false),
		k:     nn.NewLinear(b.At("to_k"), context, width, false),
		v:     nn.NewLinear(b.At("to_v"), context, width, false),
		out:   nn.NewLinear(b.At("to_out.0"), width, width, true),
		heads: heads,
	}
}

func (a attention) linears() []nn.Linear { return []nn.Linear{a.q, a.k, a.v, a.out} }

func (a attention) apply(w *nn.Weights, x, context *ad.Value) *ad.Value {
	mixed := nn.Attention(a.q.Apply(w, x), a.k.Apply(w, context), a.v.Apply(w, context), a.heads, nil)
	return a.out.Apply(w, mixed)
}
