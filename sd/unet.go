package sd

import (
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
)

// UNet predicts the noise (or the velocity) in latents. It holds the architecture only; numbers come with nn.Weights.
type UNet struct {
	Config UNetConfig
	specs  []nn.Spec

	timeIn, timeOut nn.Linear
	addIn, addOut   nn.Linear // SDXL
	convIn, convOut nn.Conv
	normOut         nn.GroupNorm
	down            []level
	mid             level
	up              []level
	attention       []nn.Linear
	feedForward     []nn.Linear
}

// level is one resolution on the way down, in the middle or on the way up.
type level struct {
	resnets    []resnet
	attentions []spatialTransformer // empty, or one for each resnet (in the middle: one between two)
	resample   *nn.Conv             // to the next level; nil at the ends
}

// NewUNet lays the network out. Parameter names are those of diffusers' UNet2DConditionModel.
func NewUNet(c UNetConfig) *UNet {
	u := &UNet{Config: c}
	b := nn.NewBuilder()
	levels := len(c.Channels)
	temb := c.TimeWidth()
	u.convIn = nn.NewConv(b.At("conv_in"), c.InChannels, c.Channels[0], ad.Same(3, 1))
	u.timeIn = nn.NewLinear(b.At("time_embedding.linear_1"), c.Channels[0], temb, true)
	u.timeOut = nn.NewLinear(b.At("time_embedding.linear_2"), temb, temb, true)
	if c.TextTime {
		u.addIn = nn.NewLinear(b.At("add_embedding.linear_1"), c.AddedInputDim, temb, true)
		u.addOut = nn.NewLinear(b.At("add_embedding.linear_2"), temb, temb, true)
	}
	resnetShape := resnetConfig{temb: temb, groups: c.Groups, eps: c.Eps}
	transformer := func(b nn.Builder, at int) spatialTransformer {
		t := newSpatialTransformer(b, c.Channels[at], c.Heads[at], c.Depth[at], c)
		u.attention = append(u.attention, t.linears()...)
		for _, block := range t.blocks {
			u.feedForward = append(u.feedForward, block.gate, block.out)
		}
		return t
	}

	skips := []int{c.Channels[0]}
	in := c.Channels[0]
	for i := range levels {
		at := b.At("down_blocks").At(i)
		var l level
		for j := range c.LayersPerBlock[i] {
			l.resnets = append(l.resnets, newResnet(at.At("resnets").At(j), in, c.Channels[i], resnetShape))
			in = c.Channels[i]
			if c.DownAttention[i] {
				l.attentions = append(l.attentions, transformer(at.At("attentions").At(j), i))
			}
			skips = append(skips, in)
		}
		if i < levels-1 {
			conv := nn.NewConv(at.At("downsamplers.0.conv"), in, in, ad.Same(3, 2))
			l.resample = &conv
			skips = append(skips, in)
		}
		u.down = append(u.down, l)
	}

	mid := b.At("mid_block")
	last := levels - 1
	u.mid.resnets = []resnet{newResnet(mid.At("resnets.0"), in, in, resnetShape), newResnet(mid.At("resnets.1"), in, in, resnetShape)}
	u.mid.attentions = []spatialTransformer{transformer(mid.At("attentions.0"), last)}

	for i := range levels {
		at := b.At("up_blocks").At(i)
		from := levels - 1 - i
		var l level
		for j := range c.LayersPerBlock[from] + 1 {
			skip := skips[len(skips)-1]
			skips = skips[:len(skips)-1]
			l.resnets = append(l.resnets, newResnet(at.At("resnets").At(j), in+skip, c.Channels[from], resnetShape))
			in = c.Channels[from]
			if c.UpAttention[i] {
				l.attentions = append(l.attentions, transformer(at.At("attentions").At(j), from))
			}
		}
		if i < levels-1 {
			conv := nn.NewConv(at.At("upsamplers.0.conv"), in, in, ad.Same(3, 1))
			l.resample = &conv
		}
		u.up = append(u.up, l)
	}
	u.normOut = nn.NewGroupNorm(b.At("conv_norm_out"), c.Groups, in, c.Eps)
	u.convOut = nn.NewConv(b.At("conv_out"), in, c.OutChannels, ad.Same(3, 1))
	u.specs = b.Specs()
	return u
}

// Specs lists the parameters, in the order of the layers.
func (u *UNet) Specs() []nn.Spec { return slices.Clone(u.specs) }

// AttentionLinears lists the query, key, value and output projections of every self- and cross-attention, in order:
// the layers that adapters sit on.
func (u *UNet) AttentionLinears() []nn.Linear { return slices.Clone(u.attention) }

// FeedForwardLinears lists the two layers of the feed-forward network of every transformer block, in order.
func (u *UNet) FeedForwardLinears() []nn.Linear { return slices.Clone(u.feedForward) }

// Conditions are what a prediction depends on beside the latents.
type Conditions struct {
	Timesteps *ad.Value // [B], float
	Context   *ad.Value // [B, tokens, ContextWidth]: text embeddings
	Pooled    *ad.Value // SDXL only: [B, PooledWidth]
	TimeIDs   *ad.Value // SDXL only: [B, 6]: original height, width, crop top, left, target height, width, in pixels
}

// Forward predicts noise or velocity [B, C, H, W] from noisy latents of that shape. Its blocks, resnets, transformer
// blocks and what lies between them, are what weights WithCheckpoints compute again. The first and the last convolution and
// all that the timestep goes through are float32 in any case.
func (u *UNet) Forward(w *nn.Weights, latents *ad.Value, c Conditions) *ad.Value {
	if err := u.Config.CheckLatents(latents.Dim(2), latents.Dim(3)); err != nil {
		panic(err)
	}
	if c.Context.Dim(2) != u.Config.ContextWidth {
		panic(fmt.Errorf("text embeddings of width %d do not fit this UNet, which expects %d", c.Context.Dim(2), u.Config.ContextWidth))
	}
	wide := w.ComputeIn(nn.Float32)
	temb := u.timeEmbedding(wide, c)
	x := w.Activation(u.convIn.Apply(wide, ad.Transpose(latents, 0, 2, 3, 1)))
	skips := []*ad.Value{x}
	for _, l := range u.down {
		for j, r := range l.resnets {
			x = r.apply(w, temb, x)
			if len(l.attentions) > 0 {
				x = l.attentions[j].apply(w, x, c.Context)
			}
			skips = append(skips, x)
		}
		if l.resample != nil {
			x = resample(w, l.resample, x, false)
			skips = append(skips, x)
		}
	}
	x = u.mid.resnets[0].apply(w, temb, x)
	x = u.mid.attentions[0].apply(w, x, c.Context)
	x = u.mid.resnets[1].apply(w, temb, x)
	for _, l := range u.up {
		for j, r := range l.resnets {
			x = r.apply(w, temb, x, skips[len(skips)-1])
			skips = skips[:len(skips)-1]
			if len(l.attentions) > 0 {
				x = l.attentions[j].apply(w, x, c.Context)
			}
		}
		if l.resample != nil {
			x = resample(w, l.resample, x, true)
		}
	}
	x = w.Block([]string{"conv_norm_out", "conv_out"}, func(w *nn.Weights, in []*ad.Value) *ad.Value {
		return u.convOut.Apply(w.ComputeIn(nn.Float32), u.normOut.Activated(w, nn.ToFloat32(in[0])))
	}, x)
	return ad.Transpose(x, 0, 3, 1, 2)
}

// resample goes to the next level, up or down.
func resample(w *nn.Weights, conv *nn.Conv, x *ad.Value, up bool) *ad.Value {
	return w.Block([]string{conv.Path()}, func(w *nn.Weights, in []*ad.Value) *ad.Value {
		if up {
			return conv.Apply(w, ad.Upsample2(in[0]))
		}
		return conv.Apply(w, in[0])
	}, x)
}

// timeEmbedding is [B, TimeWidth], with SiLU already applied: every resnet begins with it.
func (u *UNet) timeEmbedding(w *nn.Weights, c Conditions) *ad.Value {
	cfg := u.Config
	t := nn.TimestepEmbedding(c.Timesteps, cfg.Channels[0], cfg.SinFirst, cfg.FreqShift)
	t = u.timeOut.Apply(w, nn.SiLU(u.timeIn.Apply(w, t)))
	if cfg.TextTime {
		if c.Pooled == nil || c.TimeIDs == nil {
			panic(fmt.Errorf("this UNet needs the pooled text embedding and the size and crop numbers (SDXL)"))
		}
		batch := c.Pooled.Dim(0)
		ids := nn.TimestepEmbedding(ad.Reshape(c.TimeIDs, c.TimeIDs.Size()), cfg.TimeIDWidth, cfg.SinFirst, cfg.FreqShift)
		added := ad.Concat(1, c.Pooled, ad.Reshape(ids, batch, ids.Size()/batch))
		t = ad.Add(t, u.addOut.Apply(w, nn.SiLU(u.addIn.Apply(w, added))))
	}
	return nn.SiLU(t)
}
