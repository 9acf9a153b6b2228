package sd

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/diffusion"
)

// Preset is the architecture of a known model: everything about it but its weights and its tokenizer.
type Preset struct {
	Name      string
	Source    string // whose config.json files the values are from
	UNet      UNetConfig
	VAE       VAEConfig
	Text      []TextConfig // one encoder; two for SDXL
	Scheduler diffusion.Config
}

// Presets lists the known models. Those that were fine-tuned from another one have its architecture.
func Presets() []Preset {
	sd1 := Preset{UNet: SD14UNet(), VAE: publishedVAE(512), Text: []TextConfig{clipLText()}, Scheduler: diffusion.StableDiffusion()}
	base := Preset{UNet: SD2UNet(64), VAE: publishedVAE(512), Text: []TextConfig{openCLIPHText()}, Scheduler: diffusion.StableDiffusion()}
	velocity := Preset{UNet: SD2UNet(96), VAE: publishedVAE(768), Text: []TextConfig{openCLIPHText()}, Scheduler: sd2Scheduler()}
	xl := Preset{UNet: SDXLUNet(), VAE: sdxlVAE(), Text: []TextConfig{clipLText(), openCLIPGText()}, Scheduler: sdxlScheduler()}
	return []Preset{
		tinyPreset().named("tiny", "nothing published: the smallest whole pipeline, for tests"),
		smallPreset().named("small", "nothing published: the UNet that speed is compared on, with autoencoder and text encoder to match"),
		sd1.named("sd14", "CompVis/stable-diffusion-v1-4"),
		sd1.named("sd15", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
		sd1.named("dreamshaper8", "Lykon/dreamshaper-8, a fine-tuned Stable Diffusion 1.5; scheduler as there"),
		base.named("sd20-base", "stabilityai/stable-diffusion-2-base"),
		velocity.named("sd20", "stabilityai/stable-diffusion-2"),
		base.named("sd21-base", "stabilityai/stable-diffusion-2-1-base"),
		velocity.named("sd21", "stabilityai/stable-diffusion-2-1"),
		xl.named("sdxl", "stabilityai/stable-diffusion-xl-base-1.0"),
		xl.named("anything-xl", "Anything XL, a fine-tuned Stable Diffusion XL; scheduler as there"),
		xl.named("pony", "Pony Diffusion V6 XL, a fine-tuned Stable Diffusion XL; scheduler as there"),
	}
}

func (p Preset) named(name, source string) Preset {
	p.Name, p.Source = name, source
	return p
}

// PresetNames lists the names of [Presets].
func PresetNames() []string {
	var names []string
	for _, p := range Presets() {
		names = append(names, p.Name)
	}
	return names
}

// FindPreset returns the preset of a name; the error lists the names there are.
func FindPreset(name string) (Preset, error) {
	i := slices.Index(PresetNames(), name)
	if i < 0 {
		return Preset{}, fmt.Errorf("preset %q is not known; use %s", name, strings.Join(PresetNames(), ", "))
	}
	return Presets()[i], nil
}

// SmallUNet is the UNet on which this program's speed is compared with others': two levels with cross-attention in both,
// 4.19 M parameters.
func SmallUNet() UNetConfig {
	return UNetConfig{
		SampleSize: 32, InChannels: 4, OutChannels: 4, Channels: []int{64, 128}, LayersPerBlock: []int{1, 1},
		DownAttention: []bool{true, true}, UpAttention: []bool{true, true}, Depth: []int{1, 1}, Heads: []int{4, 4},
		ContextWidth: 64, Groups: 8, Eps: 1e-5,
	}
}

// SD14UNet is the UNet of Stable Diffusion 1.x: unet/config.json of CompVis/stable-diffusion-v1-4, 859.5 M parameters.
func SD14UNet() UNetConfig {
	return UNetConfig{
		SampleSize: 64, InChannels: 4, OutChannels: 4, Channels: []int{320, 640, 1280, 1280}, LayersPerBlock: []int{2, 2, 2, 2},
		DownAttention: []bool{true, true, true, false}, UpAttention: []bool{false, true, true, true},
		Depth: []int{1, 1, 1, 1}, Heads: []int{8, 8, 8, 8}, ContextWidth: 768, Groups: 32, Eps: 1e-5,
	}
}

// SD2UNet is the UNet of Stable Diffusion 2.x: unet/config.json of stabilityai/stable-diffusion-2-1 (latents of 96) and
// -2-1-base (64), 865.9 M parameters.
func SD2UNet(side int) UNetConfig {
	u := SD14UNet()
	u.SampleSize, u.Heads, u.ContextWidth, u.LinearProj = side, []int{5, 10, 20, 20}, 1024, true
	return u
}

// SDXLUNet is the UNet of Stable Diffusion XL: unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, 2.57 G
// parameters.
func SDXLUNet() UNetConfig {
	return UNetConfig{
		SampleSize: 128, InChannels: 4, OutChannels: 4, Channels: []int{320, 640, 1280}, LayersPerBlock: []int{2, 2, 2},
		DownAttention: []bool{false, true, true}, UpAttention: []bool{true, true, false},
		Depth: []int{1, 2, 10}, Heads: []int{5, 10, 20}, ContextWidth: 2048, Groups: 32, Eps: 1e-5, LinearProj: true,
		TextTime: true, TimeIDWidth: 256, AddedInputDim: 2816,
	}
}

// publishedVAE is the autoencoder of Stable Diffusion 1.x and 2.x: vae/config.json of the models above, 83.65 M parameters.
func publishedVAE(pixels int) VAEConfig {
	return VAEConfig{
		InChannels: 3, OutChannels: 3, LatentChannels: 4, Channels: []int{128, 256, 512, 512}, LayersPerBlock: 2, Groups: 32,
		ScalingFactor: 0.18215, SampleSize: pixels, MidAttention: true, Quant: true, PostQuant: true,
	}
}

// sdxlVAE is the same with other weights. Its config.json sets force_upcast, since it overflows in half precision; all
// arithmetic here is float32.
func sdxlVAE() VAEConfig {
	v := publishedVAE(1024)
	v.ScalingFactor = 0.13025
	return v
}

// clipLText is the text part of OpenAI's CLIP ViT-L/14 (text_encoder/config.json of Stable Diffusion 1.x and XL), 123.06 M
// parameters.
func clipLText() TextConfig {
	return TextConfig{Width: 768, Hidden: 3072, Layers: 12, Heads: 12, Vocabulary: 49408, Tokens: 77, Activation: "quick_gelu", Eps: 1e-5}
}

// openCLIPHText is the text part of OpenCLIP ViT-H/14 without its last layer (text_encoder/config.json of Stable Diffusion
// 2.x), 340.39 M parameters.
func openCLIPHText() TextConfig {
	return TextConfig{Width: 1024, Hidden: 4096, Layers: 23, Heads: 16, Vocabulary: 49408, Tokens: 77, Activation: "gelu", Eps: 1e-5}
}

// openCLIPGText is the text part of OpenCLIP ViT-bigG/14 with its projection (text_encoder_2/config.json of Stable Diffusion
// XL), 694.66 M parameters.
func openCLIPGText() TextConfig {
	return TextConfig{Width: 1280, Hidden: 5120, Layers: 32, Heads: 20, Vocabulary: 49408, Tokens: 77, Activation: "gelu", Eps: 1e-5, Projection: 1280}
}

// sd2Scheduler is scheduler/scheduler_config.json of stabilityai/stable-diffusion-2-1.
func sd2Scheduler() diffusion.Config {
	c := diffusion.StableDiffusion()
	c.Class, c.PredictionType = "DDIMScheduler", diffusion.VPrediction
	return c
}

// sdxlScheduler is scheduler/scheduler_config.json of stabilityai/stable-diffusion-xl-base-1.0.
func sdxlScheduler() diffusion.Config {
	c := diffusion.StableDiffusion()
	c.Class, c.TimestepSpacing = "EulerDiscreteScheduler", "leading"
	return c
}

func smallPreset() Preset {
	return Preset{
		UNet: SmallUNet(),
		VAE: VAEConfig{
			InChannels: 3, OutChannels: 3, LatentChannels: 4, Channels: []int{32, 64, 64, 64}, LayersPerBlock: 1, Groups: 8,
			ScalingFactor: 0.18215, SampleSize: 256, MidAttention: true, Quant: true, PostQuant: true,
		},
		Text:      []TextConfig{{Width: 64, Hidden: 256, Layers: 2, Heads: 4, Vocabulary: 49408, Tokens: 77, Activation: "quick_gelu", Eps: 1e-5}},
		Scheduler: diffusion.StableDiffusion(),
	}
}

func tinyPreset() Preset {
	p := smallPreset()
	p.UNet.SampleSize, p.UNet.Channels, p.UNet.ContextWidth = 8, []int{16, 32}, 16
	p.VAE.Channels, p.VAE.SampleSize = []int{8, 16}, 16
	p.Text[0].Width, p.Text[0].Hidden, p.Text[0].Layers = 16, 64, 1
	return p
}
