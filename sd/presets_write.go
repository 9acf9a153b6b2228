package sd

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/tokenizer"
	"github.com/resalign/resalign/weights"
)

// Write writes the preset as a diffusers directory into the new or empty folder dir: the configurations, the tokenizer
// of CLIP, and random weights (F32) drawn from the seed as PyTorch's layers draw them. Such a model can draw nothing; it
// has the size and the speed of the real one. With configOnly there are no weights.
func (p Preset) Write(dir string, seed uint64, configOnly bool) error {
	return files.WriteFolder(dir, func(partial string) error {
		type component struct {
			folder, file string
			config       object
			specs        []nn.Spec
		}
		components := []component{
			{"unet", UNetWeightsName, p.UNet.json(), NewUNet(p.UNet).Specs()},
			{"vae", UNetWeightsName, p.VAE.json(), NewVAE(p.VAE).Specs()},
		}
		for i, text := range p.Text {
			suffix := towerSuffix(i)
			components = append(components, component{"text_encoder" + suffix, "model", text.json(), NewTextEncoder(text).Specs()})
			folder := filepath.Join(partial, "tokenizer"+suffix)
			if err := os.Mkdir(folder, 0o755); err != nil {
				return fmt.Errorf("output: %w", err)
			}
			if err := tokenizer.WriteCLIP(folder, text.padding()); err != nil {
				return err
			}
		}
		for _, c := range components {
			if err := writeJSON(filepath.Join(partial, c.folder, "config.json"), c.config); err != nil {
				return err
			}
			if configOnly {
				continue
			}
			if err := writeRandom(filepath.Join(partial, c.folder, c.file+".safetensors"), c.specs, seed); err != nil {
				return err
			}
		}
		if err := writeJSON(filepath.Join(partial, "scheduler", "scheduler_config.json"), p.schedulerJSON()); err != nil {
			return err
		}
		return writeJSON(filepath.Join(partial, "model_index.json"), p.indexJSON())
	})
}

func towerSuffix(i int) string {
	if i == 0 {
		return ""
	}
	return fmt.Sprintf("_%d", i+1)
}

// writeRandom draws one tensor at a time, when its turn comes: SDXL's together take ten gigabytes.
func writeRandom(path string, specs []nn.Spec, seed uint64) error {
	all := make([]weights.Deferred, len(specs))
	for i, s := range specs {
		all[i] = weights.Deferred{Name: s.Name, DType: weights.F32, Shape: s.Shape, Read: func() (*weights.Tensor, error) {
			params := RandomParams(specs[i:i+1], seed)
			defer params.Free()
			tensors, err := params.Export()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
			return tensors[0], nil
		}}
	}
	return weights.WriteDeferred(path, all, map[string]string{"format": "pt"})
}

// object is a JSON object. Its keys are written in the order of the alphabet.
type object map[string]any

func writeJSON(path string, content object) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	return nil
}

// writtenVersion is the oldest release of diffusers whose readers know every key that is written here.
const writtenVersion = "0.21.0"

// json is the UNet's config.json. attention_head_dim is the number of heads, as in the published files.
func (c UNetConfig) json() object {
	types := func(attention []bool, with, without string) []string {
		var out []string
		for _, a := range attention {
			if a {
				out = append(out, with)
			} else {
				out = append(out, without)
			}
		}
		return out
	}
	o := object{
		"_class_name": "UNet2DConditionModel", "_diffusers_version": writtenVersion, "sample_size": c.SampleSize,
		"in_channels": c.InChannels, "out_channels": c.OutChannels, "block_out_channels": c.Channels, "layers_per_block": c.LayersPerBlock,
		"down_block_types":             types(c.DownAttention, "CrossAttnDownBlock2D", "DownBlock2D"),
		"up_block_types":               types(c.UpAttention, "CrossAttnUpBlock2D", "UpBlock2D"),
		"transformer_layers_per_block": c.Depth, "attention_head_dim": c.Heads, "cross_attention_dim": c.ContextWidth,
		"norm_num_groups": c.Groups, "norm_eps": c.Eps, "act_fn": "silu", "use_linear_projection": c.LinearProj,
		"flip_sin_to_cos": !c.SinFirst, "freq_shift": c.FreqShift,
	}
	if c.TextTime {
		o["addition_embed_type"], o["addition_time_embed_dim"] = "text_time", c.TimeIDWidth
		o["projection_class_embeddings_input_dim"] = c.AddedInputDim
	}
	return o
}

func (c VAEConfig) json() object {
	repeat := func(block string) []string {
		return strings.Split(strings.TrimSuffix(strings.Repeat(block+" ", len(c.Channels)), " "), " ")
	}
	return object{
		"_class_name": "AutoencoderKL", "_diffusers_version": writtenVersion, "sample_size": c.SampleSize, "in_channels": c.InChannels,
		"out_channels": c.OutChannels, "latent_channels": c.LatentChannels, "block_out_channels": c.Channels, "layers_per_block": c.LayersPerBlock,
		"down_block_types": repeat("DownEncoderBlock2D"), "up_block_types": repeat("UpDecoderBlock2D"),
		"norm_num_groups": c.Groups, "act_fn": "silu", "scaling_factor": c.ScalingFactor, "force_upcast": true,
	}
}

// CLIP's tokens for the beginning and the end of a prompt.
const (
	clipStart = 49406
	clipEnd   = 49407
)

func (c TextConfig) json() object {
	o := object{
		"architectures": []string{"CLIPTextModel"}, "model_type": "clip_text_model", "hidden_act": c.Activation, "hidden_size": c.Width,
		"intermediate_size": c.Hidden, "num_hidden_layers": c.Layers, "num_attention_heads": c.Heads, "vocab_size": c.Vocabulary,
		"max_position_embeddings": c.Tokens, "layer_norm_eps": c.Eps, "projection_dim": c.Width, "torch_dtype": "float32",
		"bos_token_id": clipStart, "eos_token_id": clipEnd, "pad_token_id": clipEnd,
	}
	if c.Projection > 0 {
		o["architectures"], o["projection_dim"] = []string{"CLIPTextModelWithProjection"}, c.Projection
	}
	return o
}

// padding is the token that prompts are filled up with: OpenCLIP's encoders, which have the exact GELU, take "!".
func (c TextConfig) padding() string {
	if c.Activation == "gelu" {
		return "!"
	}
	return "<|endoftext|>"
}

func (p Preset) schedulerJSON() object {
	c := p.Scheduler
	o := object{
		"_class_name": c.Class, "_diffusers_version": writtenVersion, "num_train_timesteps": c.NumTrainTimesteps, "beta_schedule": c.BetaSchedule,
		"beta_start": c.BetaStart, "beta_end": c.BetaEnd, "prediction_type": c.PredictionType, "steps_offset": c.StepsOffset,
		"clip_sample": false, "trained_betas": nil, "timestep_spacing": "leading",
	}
	if c.SetAlphaToOne != nil {
		o["set_alpha_to_one"] = *c.SetAlphaToOne
	}
	if c.SkipPRKSteps != nil {
		o["skip_prk_steps"] = *c.SkipPRKSteps
	}
	return o
}

func (p Preset) indexJSON() object {
	o := object{
		"_class_name": "StableDiffusionPipeline", "_diffusers_version": writtenVersion,
		"scheduler": [2]string{"diffusers", p.Scheduler.Class}, "text_encoder": [2]string{"transformers", "CLIPTextModel"},
		"tokenizer": [2]string{"transformers", "CLIPTokenizer"}, "unet": [2]string{"diffusers", "UNet2DConditionModel"},
		"vae": [2]string{"diffusers", "AutoencoderKL"}, "feature_extractor": [2]any{nil, nil},
	}
	if !p.UNet.TextTime {
		o["safety_checker"], o["requires_safety_checker"] = [2]any{nil, nil}, false
		return o
	}
	o["_class_name"], o["force_zeros_for_empty_prompt"] = "StableDiffusionXLPipeline", true
	o["text_encoder_2"], o["tokenizer_2"] = [2]string{"transformers", "CLIPTextModelWithProjection"}, [2]string{"transformers", "CLIPTokenizer"}
	return o
}
