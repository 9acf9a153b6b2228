package sd

import (
	"fmt"
	"slices"
)

// UNetConfig is the architecture of a UNet2DConditionModel, as its config.json gives it.
type UNetConfig struct {
	SampleSize     int // side of the latents it was trained on, at eight pixels each
	InChannels     int
	OutChannels    int
	Channels       []int // per level, from the finest
	LayersPerBlock []int
	DownAttention  []bool // per level: CrossAttnDownBlock2D or DownBlock2D
	UpAttention    []bool // per level of the way up, from the coarsest
	Depth          []int  // transformer blocks per attention layer, per level
	Heads          []int  // attention heads per level; diffusers calls it attention_head_dim
	ContextWidth   int    // width of the text embedding
	Groups         int
	Eps            float64
	LinearProj     bool // projections of the spatial transformers: linear (SD 2.x, SDXL) or 1×1 convolutions
	SinFirst       bool
	FreqShift      float64

	// SDXL: pooled text embedding and six size and crop numbers join the time embedding.
	TextTime      bool
	TimeIDWidth   int // width of the encoding of one number
	AddedInputDim int // width of both together
}

// Bounds on what a config.json can make the program lay out. SDXL's UNet, the largest, has 2 layers, 10 blocks and 20
// heads.
const (
	maxLayers = 16
	maxDepth  = 32
	maxHeads  = 1 << 10
	maxAdded  = 1 << 16
)

// TimeWidth is the width of the time embedding: four times the first level's channels.
func (c UNetConfig) TimeWidth() int { return 4 * c.Channels[0] }

// Downscale is the factor between the latents' side and that of the coarsest level.
func (c UNetConfig) Downscale() int { return 1 << (len(c.Channels) - 1) }

// ReadUNetConfig reads a diffusers config.json. Values that this program does not implement are errors.
func ReadUNetConfig(path string) (UNetConfig, error) {
	c, err := readConfig(path)
	if err != nil {
		return UNetConfig{}, err
	}
	return unetConfig(c)
}

func unetConfig(c *jsonConfig) (UNetConfig, error) {
	var u UNetConfig
	u.SampleSize = c.positive("sample_size", 64, 4096)
	u.InChannels = c.positive("in_channels", 4, 64)
	u.OutChannels = c.positive("out_channels", 4, 64)
	u.Channels = []int{320, 640, 1280, 1280}
	c.get("block_out_channels", &u.Channels)
	levels := len(u.Channels)
	if levels < 1 || levels > 8 || slices.Min(u.Channels) < 1 || slices.Max(u.Channels) > 1<<14 {
		c.problem("block_out_channels = %v must hold 1 to 8 positive numbers", u.Channels)
		return u, c.finish()
	}
	u.LayersPerBlock = c.perLevel("layers_per_block", levels, 2, maxLayers)
	down := []string{"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"}
	up := []string{"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"}
	c.get("down_block_types", &down)
	c.get("up_block_types", &up)
	u.DownAttention = blockTypes(c, "down_block_types", down, levels, "CrossAttnDownBlock2D", "DownBlock2D")
	u.UpAttention = blockTypes(c, "up_block_types", up, levels, "CrossAttnUpBlock2D", "UpBlock2D")
	c.only("mid_block_type", `"UNetMidBlock2DCrossAttn"`)
	u.Depth = c.perLevel("transformer_layers_per_block", levels, 1, maxDepth)
	u.Heads = c.perLevel("attention_head_dim", levels, 8, maxHeads)
	if raw, ok := c.values["num_attention_heads"]; ok && string(raw) != "null" {
		u.Heads = c.perLevel("num_attention_heads", levels, 8, maxHeads)
	}
	c.ignore("num_attention_heads")
	u.ContextWidth = c.positive("cross_attention_dim", 1280, 1<<14)
	u.Groups = c.positive("norm_num_groups", 32, 1<<10)
	u.Eps = c.float("norm_eps", 1e-5)
	if u.Eps <= 0 {
		c.problem("norm_eps = %v must be positive", u.Eps)
	}
	u.LinearProj = c.bool("use_linear_projection", false)
	u.SinFirst = !c.bool("flip_sin_to_cos", true)
	u.FreqShift = c.float("freq_shift", 0)
	for i, ch := range u.Channels {
		attends := u.DownAttention[i] || u.UpAttention[levels-1-i] || i == levels-1
		if attends && ch%u.Heads[i] != 0 {
			c.problem("attention_head_dim: %d heads do not divide the %d channels of level %d", u.Heads[i], ch, i)
		}
		if ch%u.Groups != 0 {
			c.problem("norm_num_groups = %d does not divide the %d channels of level %d", u.Groups, ch, i)
		}
	}
	if u.Channels[0]%2 != 0 {
		c.problem("block_out_channels[0] = %d must be even for the time embedding", u.Channels[0])
	}
	u.readAddedConditions(c)
	c.only("act_fn", `"silu"`, `"swish"`)
	c.only("center_input_sample", "false")
	c.only("class_embed_type", "null")
	c.only("class_embeddings_concat", "false")
	c.only("conv_in_kernel", "3")
	c.only("conv_out_kernel", "3")
	c.only("cross_attention_norm", "null")
	c.only("downsample_padding", "1")
	c.only("dropout", "0")
	c.only("dual_cross_attention", "false")
	c.only("encoder_hid_dim", "null")
	c.only("encoder_hid_dim_type", "null")
	c.only("mid_block_only_cross_attention", "false")
	c.only("mid_block_scale_factor", "1")
	c.only("num_class_embeds", "null")
	c.only("only_cross_attention", "false")
	c.only("resnet_out_scale_factor", "1")
	c.only("resnet_skip_time_act", "false")
	c.only("resnet_time_scale_shift", `"default"`)
	c.only("reverse_transformer_layers_per_block", "null")
	c.only("time_cond_proj_dim", "null")
	c.only("time_embedding_act_fn", "null")
	c.only("time_embedding_dim", "null")
	c.only("time_embedding_type", `"positional"`)
	c.only("timestep_post_act", "null")
	c.only("attention_type", `"default"`)
	c.only("addition_embed_type_num_heads", "64")
	c.ignore("upcast_attention") // all arithmetic here is float32
	return u, c.finish()
}

func blockTypes(c *jsonConfig, key string, types []string, levels int, attention, plain string) []bool {
	out := make([]bool, levels)
	if len(types) != levels {
		c.problem("%s has %d entries for %d levels", key, len(types), levels)
		return out
	}
	for i, t := range types {
		switch t {
		case attention:
			out[i] = true
		case plain:
		default:
			c.problem("%s: %q is not supported (supported: %s, %s)", key, t, attention, plain)
		}
	}
	return out
}

func (u *UNetConfig) readAddedConditions(c *jsonConfig) {
	var kind string
	c.get("addition_embed_type", &kind)
	u.TimeIDWidth = c.int("addition_time_embed_dim", 0)
	u.AddedInputDim = c.int("projection_class_embeddings_input_dim", 0)
	switch kind {
	case "":
	case "text_time":
		u.TextTime = true
		if u.TimeIDWidth < 2 || u.TimeIDWidth%2 != 0 || u.TimeIDWidth > maxAdded || u.AddedInputDim > maxAdded || u.AddedInputDim <= 6*u.TimeIDWidth {
			c.problem("addition_time_embed_dim = %d and projection_class_embeddings_input_dim = %d leave no room for the pooled text embedding", u.TimeIDWidth, u.AddedInputDim)
		}
	default:
		c.problem("addition_embed_type = %q is not supported (supported: null, \"text_time\")", kind)
	}
}

// PooledWidth is the width of the pooled text embedding that SDXL's UNet expects; zero for the others.
func (c UNetConfig) PooledWidth() int {
	if !c.TextTime {
		return 0
	}
	return c.AddedInputDim - 6*c.TimeIDWidth
}

// CheckLatents tells whether the UNet can process latents of the given height and width.
func (c UNetConfig) CheckLatents(height, width int) error {
	d := c.Downscale()
	if height < d || width < d || height%d != 0 || width%d != 0 {
		return fmt.Errorf("latents of %d×%d do not fit this UNet: both sides must be multiples of %d", height, width, d)
	}
	return nil
}
