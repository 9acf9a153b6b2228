package convert

import (
	"fmt"
	"strings"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

var (
	resnetOfVAE    = map[string]string{"conv_shortcut": "nin_shortcut"}
	attentionOfVAE = map[string]string{"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
)

// vaeLinks ties the parameters of an autoencoder to CompVis's AutoencoderKL. Its decoder counts levels from the finest,
// diffusers' from the coarsest; its attention consists of 1×1 convolutions.
func vaeLinks(c sd.VAEConfig) ([]link, error) {
	r := renamings{}
	r.add("quant_conv", "quant_conv", nil)
	r.add("post_quant_conv", "post_quant_conv", nil)
	for _, half := range []string{"encoder", "decoder"} {
		r.add(half+".conv_in", half+".conv_in", nil)
		r.add(half+".conv_norm_out", half+".norm_out", nil)
		r.add(half+".conv_out", half+".conv_out", nil)
		r.add(half+".mid_block.resnets.0", half+".mid.block_1", resnetOfVAE)
		r.add(half+".mid_block.attentions.0", half+".mid.attn_1", attentionOfVAE)
		r.add(half+".mid_block.resnets.1", half+".mid.block_2", resnetOfVAE)
	}
	levels := len(c.Channels)
	for i := range levels {
		for j := range c.LayersPerBlock {
			r.add(fmt.Sprintf("encoder.down_blocks.%d.resnets.%d", i, j), fmt.Sprintf("encoder.down.%d.block.%d", i, j), resnetOfVAE)
		}
		r.add(fmt.Sprintf("encoder.down_blocks.%d.downsamplers.0", i), fmt.Sprintf("encoder.down.%d.downsample", i), nil)
		for j := range c.LayersPerBlock + 1 {
			r.add(fmt.Sprintf("decoder.up_blocks.%d.resnets.%d", i, j), fmt.Sprintf("decoder.up.%d.block.%d", levels-1-i, j), resnetOfVAE)
		}
		r.add(fmt.Sprintf("decoder.up_blocks.%d.upsamplers.0", i), fmt.Sprintf("decoder.up.%d.upsample", levels-1-i), nil)
	}
	return r.links(sd.NewVAE(c).Specs(), func(s nn.Spec) form {
		if strings.Contains(s.Name, ".attentions.") && len(s.Shape) == 2 {
			return pointwise
		}
		return same
	})
}
