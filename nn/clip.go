package nn

import "github.com/resalign/resalign/ad"

// CLIPLayer is one layer of CLIP's transformers, of text and of pictures: attention and a feed-forward network, each
// behind its normalisation. Parameter names are those of transformers' CLIPEncoderLayer.
type CLIPLayer struct {
	norm1, norm2 LayerNorm
	q, k, v, out Linear
	up, down     Linear
	heads        int
	activation   func(*ad.Value) *ad.Value
}

// NewCLIPLayer lays a layer out at the builder's path. The activation is "gelu" or "quick_gelu".
func NewCLIPLayer(b Builder, width, hidden, heads int, eps float64, activation string) CLIPLayer {
	linear := func(name string, in, out int) Linear { return NewLinear(b.At(name), in, out, true) }
	l := CLIPLayer{
		k: linear("self_attn.k_proj", width, width), v: linear("self_attn.v_proj", width, width),
		q: linear("self_attn.q_proj", width, width), out: linear("self_attn.out_proj", width, width),
		norm1: NewLayerNorm(b.At("layer_norm1"), width, eps),
		up:    linear("mlp.fc1", width, hidden), down: linear("mlp.fc2", hidden, width),
		norm2: NewLayerNorm(b.At("layer_norm2"), width, eps),
		heads: heads, activation: QuickGELU,
	}
	if activation == "gelu" {
		l.activation = GELU
	}
	return l
}

// Apply maps x [B, N, width]; a mask [N, N], if given, is added to the scores.
func (l CLIPLayer) Apply(w *Weights, x, mask *ad.Value) *ad.Value {
	h := l.norm1.Apply(w, x)
	return l.rest(w, x, h, h, mask)
}

// ApplyToFirst is Apply for its first position only: [B, 1, width].
func (l CLIPLayer) ApplyToFirst(w *Weights, x *ad.Value) *ad.Value {
	h := l.norm1.Apply(w, x)
	return l.rest(w, ad.Slice(x, 1, 0, 1), ad.Slice(h, 1, 0, 1), h, nil)
}

func (l CLIPLayer) rest(w *Weights, x, asking, asked, mask *ad.Value) *ad.Value {
	h := Attention(l.q.Apply(w, asking), l.k.Apply(w, asked), l.v.Apply(w, asked), l.heads, mask)
	x = ad.Add(x, l.out.Apply(w, h))
	h = l.up.Apply(w, l.norm2.Apply(w, x))
	return ad.Add(x, l.down.Apply(w, l.activation(h)))
}
