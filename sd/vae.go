package sd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
)

// VAEConfig is the architecture of an AutoencoderKL, as its config.json gives it.
type VAEConfig struct {
	InChannels, OutChannels, LatentChannels int
	Channels                                []int // per level, from the finest
	LayersPerBlock                          int
	Groups                                  int
	ScalingFactor                           float64 // latents are multiplied by it for the UNet
	SampleSize                              int
	MidAttention                            bool
	Quant, PostQuant                        bool
}

// Downscale is the number of pixels, each way, that one latent stands for.
func (c VAEConfig) Downscale() int { return 1 << (len(c.Channels) - 1) }

// ReadVAEConfig reads a diffusers config.json.
func ReadVAEConfig(path string) (VAEConfig, error) {
	c, err := readConfig(path)
	if err != nil {
		return VAEConfig{}, err
	}
	return vaeConfig(c)
}

func vaeConfig(c *jsonConfig) (VAEConfig, error) {
	var v VAEConfig
	v.InChannels = c.positive("in_channels", 3, 64)
	v.OutChannels = c.positive("out_channels", 3, 64)
	v.LatentChannels = c.positive("latent_channels", 4, 64)
	v.Channels = []int{64}
	c.get("block_out_channels", &v.Channels)
	levels := len(v.Channels)
	if levels < 1 || levels > 8 || slices.Min(v.Channels) < 1 || slices.Max(v.Channels) > 1<<14 {
		c.problem("block_out_channels = %v must hold 1 to 8 positive numbers", v.Channels)
		return v, c.finish()
	}
	v.LayersPerBlock = c.positive("layers_per_block", 1, 64)
	v.Groups = c.positive("norm_num_groups", 32, 1<<10)
	v.ScalingFactor = c.float("scaling_factor", 0.18215)
	v.SampleSize = c.positive("sample_size", 32, 1<<14)
	v.MidAttention = c.bool("mid_block_add_attention", true)
	v.Quant = c.bool("use_quant_conv", true)
	v.PostQuant = c.bool("use_post_quant_conv", true)
	down, up := slices.Repeat([]string{"DownEncoderBlock2D"}, levels), slices.Repeat([]string{"UpDecoderBlock2D"}, levels)
	c.get("down_block_types", &down)
	c.get("up_block_types", &up)
	blockTypes(c, "down_block_types", down, levels, "DownEncoderBlock2D", "DownEncoderBlock2D")
	blockTypes(c, "up_block_types", up, levels, "UpDecoderBlock2D", "UpDecoderBlock2D")
	for i, ch := range v.Channels {
		if ch%v.Groups != 0 {
			c.problem("norm_num_groups = %d does not divide the %d channels of level %d", v.Groups, ch, i)
		}
	}
	if v.ScalingFactor <= 0 {
		c.problem("scaling_factor = %v must be positive", v.ScalingFactor)
	}
	c.only("act_fn", `"silu"`, `"swish"`)
	c.only("shift_factor", "null", "0")
	c.only("latents_mean", "null")
	c.only("latents_std", "null")
	c.ignore("force_upcast") // all arithmetic here is float32
	return v, c.finish()
}

// VAE is the autoencoder between pictures and latents.
type VAE struct {
	Config           VAEConfig
	specs            []nn.Spec
	quant, postQuant *nn.Conv
	encoder, decoder vaeHalf
}

// vaeHalf is an encoder or a decoder. The encoder goes down through the levels and then the middle, the decoder the
// other way.
type vaeHalf struct {
	in, out    nn.Conv
	norm       nn.GroupNorm
	levels     []level
	midResnets [2]resnet
	mid        *pixelAttention
}

const vaeEps = 1e-6 // fixed in diffusers' Encoder and Decoder

// NewVAE lays the autoencoder out. Parameter names are those of diffusers' AutoencoderKL.
func NewVAE(c VAEConfig) *VAE {
	v := &VAE{Config: c}
	b := nn.NewBuilder()
	shape := resnetConfig{groups: c.Groups, eps: vaeEps}
	top := c.Channels[len(c.Channels)-1]
	middle := func(b nn.Builder, h *vaeHalf) {
		h.midResnets = [2]resnet{newResnet(b.At("resnets.0"), top, top, shape), newResnet(b.At("resnets.1"), top, top, shape)}
		if c.MidAttention {
			a := newPixelAttention(b.At("attentions.0"), top, c.Groups)
			h.mid = &a
		}
	}

	e, eb := &v.encoder, b.At("encoder")
	e.in = nn.NewConv(eb.At("conv_in"), c.InChannels, c.Channels[0], ad.Same(3, 1))
	ch := c.Channels[0]
	for i, out := range c.Channels {
		at := eb.At("down_blocks").At(i)
		var l level
		for j := range c.LayersPerBlock {
			l.resnets = append(l.resnets, newResnet(at.At("resnets").At(j), ch, out, shape))
			ch = out
		}
		if i < len(c.Channels)-1 {
			// The encoder pads below and to the right only.
			conv := nn.NewConv(at.At("downsamplers.0.conv"), ch, ch, ad.Window{KH: 3, KW: 3, Stride: 2, Bottom: 1, Right: 1})
			l.resample = &conv
		}
		e.levels = append(e.levels, l)
	}
	middle(eb.At("mid_block"), e)
	e.norm = nn.NewGroupNorm(eb.At("conv_norm_out"), c.Groups, ch, vaeEps)
	e.out = nn.NewConv(eb.At("conv_out"), ch, 2*c.LatentChannels, ad.Same(3, 1))

	d, db := &v.decoder, b.At("decoder")
	d.in = nn.NewConv(db.At("conv_in"), c.LatentChannels, top, ad.Same(3, 1))
	middle(db.At("mid_block"), d)
	ch = top
	for i, out := range slices.Backward(c.Channels) {
		at := db.At("up_blocks").At(len(c.Channels) - 1 - i)
		var l level
		for j := range c.LayersPerBlock + 1 {
			l.resnets = append(l.resnets, newResnet(at.At("resnets").At(j), ch, out, shape))
			ch = out
		}
		if i > 0 {
			conv := nn.NewConv(at.At("upsamplers.0.conv"), ch, ch, ad.Same(3, 1))
			l.resample = &conv
		}
		d.levels = append(d.levels, l)
	}
	d.norm = nn.NewGroupNorm(db.At("conv_norm_out"), c.Groups, ch, vaeEps)
	d.out = nn.NewConv(db.At("conv_out"), ch, c.OutChannels, ad.Same(3, 1))
	if c.Quant {
		conv := nn.NewConv(b.At("quant_conv"), 2*c.LatentChannels, 2*c.LatentChannels, ad.Same(1, 1))
		v.quant = &conv
	}
	if c.PostQuant {
		conv := nn.NewConv(b.At("post_quant_conv"), c.LatentChannels, c.LatentChannels, ad.Same(1, 1))
		v.postQuant = &conv
	}
	v.specs = b.Specs()
	return v
}

// Specs lists the parameters, in the order of the layers.
func (v *VAE) Specs() []nn.Spec { return slices.Clone(v.specs) }

// Encode maps pictures [B, 3, H, W] in [−1, 1] to the moments of their latents, unscaled: mean and logarithm of the
// variance, each [B, latent channels, H/8, W/8] for three downsamplings. It is computed in float32 whatever the weights say.
func (v *VAE) Encode(w *nn.Weights, pictures *ad.Value) (mean, logVariance *ad.Value) {
	if d := v.Config.Downscale(); pictures.Dim(2)%d != 0 || pictures.Dim(3)%d != 0 {
		panic(fmt.Errorf("pictures of %d×%d do not fit this VAE: both sides must be multiples of %d", pictures.Dim(2), pictures.Dim(3), d))
	}
	w = w.ComputeIn(nn.Float32) // moments are kept for all who ask for them later
	e := v.encoder
	x := e.in.Apply(w, ad.Transpose(pictures, 0, 2, 3, 1))
	for _, l := range e.levels {
		for _, r := range l.resnets {
			x = r.apply(w, nil, x)
		}
		if l.resample != nil {
			x = l.resample.Apply(w, x)
		}
	}
	x = e.middle(w, x)
	x = e.out.Apply(w, e.norm.Activated(w, x))
	if v.quant != nil {
		x = v.quant.Apply(w, x)
	}
	n := v.Config.LatentChannels
	mean = ad.Transpose(ad.Slice(x, 3, 0, n), 0, 3, 1, 2)
	logVariance = ad.Transpose(ad.Slice(x, 3, n, 2*n), 0, 3, 1, 2)
	return mean, logVariance
}

// Decode maps latents [B, latent channels, h, w], already divided by the scaling factor, to pictures [B, 3, 8h, 8w] in
// about [−1, 1]. The first and the last convolution are float32 in any case.
func (v *VAE) Decode(w *nn.Weights, latents *ad.Value) *ad.Value {
	wide := w.ComputeIn(nn.Float32)
	x := ad.Transpose(latents, 0, 2, 3, 1)
	if v.postQuant != nil {
		x = v.postQuant.Apply(wide, x)
	}
	d := v.decoder
	x = d.middle(w, w.Activation(d.in.Apply(wide, x)))
	for _, l := range d.levels {
		for _, r := range l.resnets {
			x = r.apply(w, nil, x)
		}
		if l.resample != nil {
			x = l.resample.Apply(w, ad.Upsample2(x))
		}
	}
	return ad.Transpose(d.out.Apply(wide, d.norm.Activated(wide, nn.ToFloat32(x))), 0, 3, 1, 2)
}

func (h vaeHalf) middle(w *nn.Weights, x *ad.Value) *ad.Value {
	x = h.midResnets[0].apply(w, nil, x)
	if h.mid != nil {
		x = h.mid.apply(w, x)
	}
	return h.midResnets[1].apply(w, nil, x)
}

// pixelAttention is the single-head self-attention in the middle of the autoencoder.
type pixelAttention struct {
	norm         nn.GroupNorm
	q, k, v, out nn.Linear
}

func newPixelAttention(b nn.Builder, channels, groups int) pixelAttention {
	linear := func(name string) nn.Linear { return nn.NewLinear(b.At(name), channels, channels, true) }
	return pixelAttention{
		norm: nn.NewGroupNorm(b.At("group_norm"), groups, channels, vaeEps),
		q:    linear("to_q"), k: linear("to_k"), v: linear("to_v"), out: linear("to_out.0"),
	}
}

func (a pixelAttention) apply(w *nn.Weights, x *ad.Value) *ad.Value {
	d := x.Dims()
	h := ad.Reshape(a.norm.Apply(w, x), d[0], d[1]*d[2], d[3])
	h = a.out.Apply(w, nn.Attention(a.q.Apply(w, h), a.k.Apply(w, h), a.v.Apply(w, h), 1, nil))
	return ad.Add(x, ad.Reshape(h, d...))
}

// vaeAlias gives the name under which checkpoints made before diffusers 0.18 store a parameter of the autoencoder's
// attention; "" where the name never changed.
func vaeAlias(name string) string {
	if !strings.Contains(name, "mid_block.attentions.0.") {
		return ""
	}
	for now, before := range map[string]string{".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."} {
		if strings.Contains(name, now) {
			return strings.Replace(name, now, before, 1)
		}
	}
	return ""
}
