package sd

import (
	"strings"
	"testing"

	"github.com/resalign/resalign/nn"
)

// Architectures of published checkpoints: the fields of their config.json that are not the default of diffusers.
const (
	sd1UNet = `{"_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
		"center_input_sample": false, "cross_attention_dim": 768, "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
		"in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4,
		"sample_size": 64, "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
		"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}`
	sd2UNet = `{"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "sample_size": 96, "use_linear_projection": true,
		"dual_cross_attention": false, "only_cross_attention": false, "num_class_embeds": null, "upcast_attention": true}`
	sdxlUNet = `{"attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "sample_size": 128, "use_linear_projection": true,
		"block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
		"addition_embed_type_num_heads": 64, "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
		"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "conv_in_kernel": 3, "conv_out_kernel": 3,
		"up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "time_embedding_type": "positional"}`
	sdVAE = `{"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 512,
		"down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
		"up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]}`
	clipL = `{"architectures": ["CLIPTextModel"], "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}`
	clipH = `{"architectures": ["CLIPTextModel"], "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
		"num_attention_heads": 16, "hidden_act": "gelu"}`
	clipG = `{"architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
		"num_attention_heads": 20, "hidden_act": "gelu", "projection_dim": 1280}`
)

// specsOf parses a configuration and lays its model out.
func specsOf(kind, text string) ([]nn.Spec, error) {
	c, err := parseConfig("config.json", []byte(text))
	if err != nil {
		return nil, err
	}
	switch kind {
	case "unet":
		u, err := unetConfig(c)
		if err != nil {
			return nil, err
		}
		return NewUNet(u).Specs(), nil
	case "vae":
		v, err := vaeConfig(c)
		if err != nil {
			return nil, err
		}
		return NewVAE(v).Specs(), nil
	default:
		x, err := textConfig(c)
		if err != nil {
			return nil, err
		}
		return NewTextEncoder(x).Specs(), nil
	}
}

// The published models have these numbers of parameters.
func TestPublishedArchitectures(t *testing.T) {
	for _, test := range []struct {
		name, kind, config string
		count              int
	}{
		{"SD 1.x UNet", "unet", sd1UNet, 859_520_964},
		{"SD 2.x UNet", "unet", sd2UNet, 865_910_724},
		{"SDXL UNet", "unet", sdxlUNet, 2_567_463_684},
		{"VAE", "vae", sdVAE, 83_653_863},
		{"CLIP ViT-L/14", "text", clipL, 123_060_480},
		{"OpenCLIP ViT-H/14 without its last layer", "text", clipH, 340_387_840},
		{"OpenCLIP ViT-bigG/14", "text", clipG, 694_659_840},
	} {
		specs, err := specsOf(test.kind, test.config)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if n := (&Params{Specs: specs}).Count(); n != test.count {
			t.Errorf("%s has %d parameters, want %d", test.name, n, test.count)
		}
	}
}

func TestConfigRefusals(t *testing.T) {
	for _, test := range []struct {
		kind, config string
		want         []string
	}{
		{"unet", `{"surprise": 3}`, []string{"config.json", "surprise = 3 is not known"}},
		{"unet", `[1]`, []string{"config.json", "not a JSON object"}},
		{"unet", `null`, []string{"not a JSON object"}},
		{"unet", `{"in_channels": "four"}`, []string{`in_channels = "four"`, "wrong type"}},
		{"unet", `{"in_channels": 0}`, []string{"in_channels = 0", "1 … 64"}},
		{"unet", `{"block_out_channels": []}`, []string{"block_out_channels = []"}},
		{"unet", `{"block_out_channels": [33, 64, 64, 64]}`, []string{"norm_num_groups = 32", "33"}},
		{"unet", `{"block_out_channels": [32, -1, 64, 64]}`, []string{"block_out_channels"}},
		{"unet", `{"layers_per_block": [2, 2]}`, []string{"layers_per_block has 2 entries for 4 levels"}},
		{"unet", `{"layers_per_block": 100000}`, []string{"layers_per_block = 100000", "1 … 16"}},
		{"unet", `{"transformer_layers_per_block": [1, 1, 1, 99]}`, []string{"transformer_layers_per_block", "1 … 32"}},
		{"unet", `{"norm_eps": -1}`, []string{"norm_eps = -1"}},
		{"unet", `{"attention_head_dim": 7}`, []string{"attention_head_dim: 7 heads"}},
		{"unet", `{"down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"]}`, []string{"down_block_types", `"AttnDownBlock2D"`, "CrossAttnDownBlock2D"}},
		{"unet", `{"up_block_types": ["UpBlock2D"]}`, []string{"up_block_types has 1 entries for 4 levels"}},
		{"unet", `{"class_embed_type": "timestep"}`, []string{`class_embed_type = "timestep" is not supported`}},
		{"unet", `{"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu"}`, []string{"resnet_time_scale_shift", "act_fn", `"silu"`}},
		{"unet", `{"addition_embed_type": "image"}`, []string{`addition_embed_type = "image"`}},
		{"unet", `{"addition_embed_type": "text_time", "addition_time_embed_dim": 256}`, []string{"projection_class_embeddings_input_dim = 0"}},
		{"unet", `{"time_embedding_type": "fourier"}`, []string{`time_embedding_type = "fourier"`}},
		{"vae", `{"latent_channels": 1000}`, []string{"latent_channels = 1000"}},
		{"vae", `{"scaling_factor": 0}`, []string{"scaling_factor = 0"}},
		{"vae", `{"shift_factor": 0.1159}`, []string{"shift_factor = 0.1159 is not supported"}},
		{"vae", `{"down_block_types": ["AttnDownEncoderBlock2D"]}`, []string{"AttnDownEncoderBlock2D"}},
		{"vae", `{"double_z": false}`, []string{"double_z = false is not known"}},
		{"text", `{"hidden_act": "relu"}`, []string{`hidden_act = "relu"`, "quick_gelu"}},
		{"text", `{"hidden_size": 100, "num_attention_heads": 8}`, []string{"num_attention_heads = 8", "hidden_size = 100"}},
		{"text", `{"architectures": ["T5EncoderModel"]}`, []string{"T5EncoderModel"}},
		{"text", `{"architectures": ["CLIPTextModelWithProjection"], "projection_dim": -4}`, []string{"projection_dim = -4"}},
		{"text", `{"model_type": "bert"}`, []string{`model_type = "bert"`}},
	} {
		_, err := specsOf(test.kind, test.config)
		if err == nil {
			t.Errorf("%s %s: no error", test.kind, test.config)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s %s: error %q does not say %q", test.kind, test.config, err, part)
			}
		}
	}
}

// No configuration makes the program fail otherwise than with an error, or lay out a model without bounds.
func FuzzConfigs(f *testing.F) {
	for _, text := range []string{sd2UNet, sdxlUNet, sdVAE, clipG, `{"block_out_channels": [32, 64], "layers_per_block": 65000}`} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, kind := range []string{"unet", "vae", "text"} {
			specs, err := specsOf(kind, text)
			if err != nil && !strings.Contains(err.Error(), "config.json") {
				t.Errorf("error %q does not name the file", err)
			}
			if len(specs) > 1<<18 {
				t.Errorf("%d parameters", len(specs))
			}
		}
	})
}
