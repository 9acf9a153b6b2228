package convert

import (
	"fmt"

	"github.com/resalign/resalign/sd"
)

// resnetOfUNet are the layers of a residual block as CompVis's ResBlock numbers them: in_layers is norm, SiLU,
// convolution; emb_layers SiLU, linear; out_layers norm, SiLU, dropout, convolution.
var resnetOfUNet = map[string]string{
	"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
	"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}

// unetLinks ties the parameters of a UNet to CompVis's UNetModel, which numbers its blocks through all levels: every
// residual block on the way down, with the attention behind it, and every downsampling is an input block; every residual
// block on the way up, with its attention and the upsampling that ends the level, is an output block.
func unetLinks(c sd.UNetConfig) ([]link, error) {
	r := renamings{}
	r.add("conv_in", "input_blocks.0.0", nil)
	r.add("time_embedding.linear_1", "time_embed.0", nil)
	r.add("time_embedding.linear_2", "time_embed.2", nil)
	r.add("add_embedding.linear_1", "label_emb.0.0", nil)
	r.add("add_embedding.linear_2", "label_emb.0.2", nil)

	levels := len(c.Channels)
	block := 1
	for i := range levels {
		for j := range c.LayersPerBlock[i] {
			r.add(fmt.Sprintf("down_blocks.%d.resnets.%d", i, j), fmt.Sprintf("input_blocks.%d.0", block), resnetOfUNet)
			r.add(fmt.Sprintf("down_blocks.%d.attentions.%d", i, j), fmt.Sprintf("input_blocks.%d.1", block), nil)
			block++
		}
		if i < levels-1 {
			r.add(fmt.Sprintf("down_blocks.%d.downsamplers.0.conv", i), fmt.Sprintf("input_blocks.%d.0.op", block), nil)
			block++
		}
	}

	r.add("mid_block.resnets.0", "middle_block.0", resnetOfUNet)
	r.add("mid_block.attentions.0", "middle_block.1", nil)
	r.add("mid_block.resnets.1", "middle_block.2", resnetOfUNet)

	block = 0
	for i := range levels {
		layers := c.LayersPerBlock[levels-1-i] + 1
		for j := range layers {
			r.add(fmt.Sprintf("up_blocks.%d.resnets.%d", i, j), fmt.Sprintf("output_blocks.%d.0", block), resnetOfUNet)
			r.add(fmt.Sprintf("up_blocks.%d.attentions.%d", i, j), fmt.Sprintf("output_blocks.%d.1", block), nil)
			if j == layers-1 && i < levels-1 {
				place := 1
				if c.UpAttention[i] {
					place = 2
				}
				r.add(fmt.Sprintf("up_blocks.%d.upsamplers.0.conv", i), fmt.Sprintf("output_blocks.%d.%d.conv", block, place), nil)
			}
			block++
		}
	}
	r.add("conv_norm_out", "out.0", nil)
	r.add("conv_out", "out.2", nil)
	return r.links(sd.NewUNet(c).Specs(), nil)
}
