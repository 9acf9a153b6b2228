package mini

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// The architecture of the miniature. One latent stands for 2×2 pixels; its twelve channels can hold all of them.
const latentSide = Side / 2

func unetConfig() sd.UNetConfig {
	return sd.UNetConfig{
		SampleSize: latentSide, InChannels: 12, OutChannels: 12, Channels: []int{24, 48}, LayersPerBlock: []int{1, 1},
		DownAttention: []bool{true, true}, UpAttention: []bool{true, true}, Depth: []int{1, 1}, Heads: []int{4, 4},
		ContextWidth: 64, Groups: 8, Eps: 1e-5,
	}
}

// vaeConfig leaves the scaling factor at 1, as it is known after training only.
func vaeConfig() sd.VAEConfig {
	return sd.VAEConfig{
		InChannels: 3, OutChannels: 3, LatentChannels: 12, Channels: []int{16, 24}, LayersPerBlock: 1, Groups: 2,
		ScalingFactor: 1, SampleSize: Side, MidAttention: true, Quant: true, PostQuant: true,
	}
}

func textConfig(vocabulary int) sd.TextConfig {
	return sd.TextConfig{
		Width: 64, Hidden: 256, Layers: 1, Heads: 4, Vocabulary: vocabulary, Tokens: promptTokens, Activation: "quick_gelu", Eps: 1e-5,
	}
}

// NewModelDir writes a Stable Diffusion pipeline in diffusers' layout into the new or empty folder dir: the trained
// autoencoder, a UNet of 0.62 M parameters and a CLIP text encoder of one layer with random weights drawn from the seed,
// a tokenizer that knows each word of [Vocabulary] as one token, and the noise schedule of Stable Diffusion. Prompts
// have ten tokens (model_max_length). The model can draw nothing until it is trained.
func NewModelDir(dir string, vae *Autoencoder, seed uint64) error {
	return files.WriteFolder(dir, func(partial string) error {
		at := func(parts ...string) string { return filepath.Join(append([]string{partial}, parts...)...) }
		vocabulary := newBytePairs(Vocabulary())
		if err := vocabulary.write(at("tokenizer")); err != nil {
			return err
		}
		text := sd.NewTextEncoder(textConfig(len(vocabulary.tokens)))
		unet := sd.NewUNet(unetConfig())
		for _, c := range []struct {
			folder, file string
			config       any
			params       *sd.Params
		}{
			{"text_encoder", "model", textJSON(text.Config), textParams(text, seed)},
			{"unet", sd.UNetWeightsName, unetJSON(unet.Config), sd.RandomParams(unet.Specs(), seed)},
			{"vae", sd.UNetWeightsName, vaeJSON(vae.VAE.Config), vae.Params},
		} {
			if err := writeJSON(at(c.folder, "config.json"), c.config); err != nil {
				return err
			}
			if err := writeParams(at(c.folder, c.file+".safetensors"), c.params, map[string]string{"format": "pt"}); err != nil {
				return err
			}
		}
		if err := writeJSON(at("scheduler", "scheduler_config.json"), schedulerJSON()); err != nil {
			return err
		}
		return writeJSON(at("model_index.json"), indexJSON())
	})
}

// textParams are random, and stay so: only the UNet is trained. A word must then mean the same wherever it stands, so
// what would mix words and places into each other is drawn twenty times smaller than usual: positions, and the outputs
// of attention and feed-forward. What is left is close to one random direction for each word.
func textParams(text *sd.TextEncoder, seed uint64) *sd.Params {
	p := sd.RandomParams(text.Specs(), seed)
	for i, s := range p.Specs {
		for _, mixing := range []string{"position_embedding", "out_proj", "mlp.fc2"} {
			if !strings.Contains(s.Name, mixing) {
				continue
			}
			p.Tensors[i].MustMutableFlatData(func(flat any) {
				for k := range flat.([]float32) {
					flat.([]float32)[k] /= 20
				}
			})
		}
	}
	return p
}

func writeParams(path string, params *sd.Params, metadata map[string]string) error {
	tensors, err := params.Export()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return weights.Write(path, tensors, metadata)
}

type object map[string]any

// diffusersVersion is the oldest release whose readers know every key that is written here.
const diffusersVersion = "0.21.0"

func indexJSON() object {
	return object{
		"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusersVersion, "requires_safety_checker": false,
		"feature_extractor": [2]any{nil, nil}, "safety_checker": [2]any{nil, nil},
		"scheduler": [2]string{"diffusers", "DDIMScheduler"}, "text_encoder": [2]string{"transformers", "CLIPTextModel"},
		"tokenizer": [2]string{"transformers", "CLIPTokenizer"}, "unet": [2]string{"diffusers", "UNet2DConditionModel"},
		"vae": [2]string{"diffusers", "AutoencoderKL"},
	}
}

// schedulerJSON is the noise schedule of Stable Diffusion 1.5 with the deterministic sampler.
func schedulerJSON() object {
	return object{
		"_class_name": "DDIMScheduler", "_diffusers_version": diffusersVersion, "num_train_timesteps": 1000, "beta_schedule": "scaled_linear",
		"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": false, "set_alpha_to_one": false, "steps_offset": 1,
		"prediction_type": "epsilon", "timestep_spacing": "leading", "trained_betas": nil,
	}
}

func textJSON(c sd.TextConfig) object {
	return object{
		"architectures": []string{"CLIPTextModel"}, "model_type": "clip_text_model", "hidden_act": c.Activation, "hidden_size": c.Width,
		"intermediate_size": c.Hidden, "num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "vocab_size": c.Vocabulary,
		"max_position_embeddings": c.Tokens, "layer_norm_eps": c.Eps, "projection_dim": c.Width, "torch_dtype": "float32",
		"bos_token_id": c.Vocabulary - 2, "eos_token_id": c.Vocabulary - 1, "pad_token_id": c.Vocabulary - 1,
	}
}

func unetJSON(c sd.UNetConfig) object {
	return object{
		"_class_name": "UNet2DConditionModel", "_diffusers_version": diffusersVersion, "sample_size": c.SampleSize,
		"in_channels": c.InChannels, "out_channels": c.OutChannels, "block_out_channels": c.Channels, "layers_per_block": c.LayersPerBlock[0],
		"down_block_types":    []string{"CrossAttnDownBlock2D", "CrossAttnDownBlock2D"},
		"up_block_types":      []string{"CrossAttnUpBlock2D", "CrossAttnUpBlock2D"},
		"cross_attention_dim": c.ContextWidth, "attention_head_dim": c.Heads[0], "norm_num_groups": c.Groups, "norm_eps": c.Eps,
	}
}

func vaeJSON(c sd.VAEConfig) object {
	return object{
		"_class_name": "AutoencoderKL", "_diffusers_version": diffusersVersion, "sample_size": c.SampleSize, "in_channels": c.InChannels,
		"out_channels": c.OutChannels, "latent_channels": c.LatentChannels, "block_out_channels": c.Channels, "layers_per_block": c.LayersPerBlock,
		"down_block_types": []string{"DownEncoderBlock2D", "DownEncoderBlock2D"},
		"up_block_types":   []string{"UpDecoderBlock2D", "UpDecoderBlock2D"},
		"norm_num_groups":  c.Groups, "act_fn": "silu", "scaling_factor": c.ScalingFactor,
	}
}
