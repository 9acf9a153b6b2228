package plan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// Architecture is everything about a model but its numbers.
type Architecture struct {
	Name string // its folder, or the preset's name
	UNet sd.UNetConfig
	VAE  sd.VAEConfig
	Text []sd.TextConfig
	XL   bool

	Scheduler diffusion.Config // which decides how many predictions a picture takes
}

// FromPreset is the architecture of a known model.
func FromPreset(name string) (*Architecture, error) {
	p, err := sd.FindPreset(name)
	if err != nil {
		return nil, err
	}
	return &Architecture{Name: "preset " + name, UNet: p.UNet, VAE: p.VAE, Text: p.Text, XL: p.UNet.TextTime, Scheduler: p.Scheduler}, nil
}

// ReadArchitecture reads the configurations of a diffusers directory, and none of its weights.
func ReadArchitecture(dir string) (*Architecture, error) {
	path := filepath.Join(dir, "model_index.json")
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("model: %s is not a diffusers directory: it holds no model_index.json; name one with --model, or a known architecture with --preset", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	var index struct {
		Class string `json:"_class_name"`
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("%s: not a JSON object: %w", path, err)
	}
	a := &Architecture{Name: dir}
	folders := towers[:1]
	switch index.Class {
	case "StableDiffusionPipeline":
	case "StableDiffusionXLPipeline":
		a.XL, folders = true, towers
	default:
		return nil, fmt.Errorf("%s: _class_name = %q is not supported (supported: StableDiffusionPipeline, StableDiffusionXLPipeline)", path, index.Class)
	}
	if a.UNet, err = sd.ReadUNetConfig(filepath.Join(dir, "unet", "config.json")); err != nil {
		return nil, err
	}
	if a.VAE, err = sd.ReadVAEConfig(filepath.Join(dir, "vae", "config.json")); err != nil {
		return nil, err
	}
	if a.Scheduler, err = diffusion.LoadConfig(filepath.Join(dir, "scheduler", "scheduler_config.json")); err != nil {
		return nil, err
	}
	for _, name := range folders {
		text, err := sd.ReadTextConfig(filepath.Join(dir, name, "config.json"))
		if err != nil {
			return nil, err
		}
		a.Text = append(a.Text, text)
	}
	return a, a.check()
}

// check compares what the components exchange.
func (a *Architecture) check() error {
	width := 0
	for _, t := range a.Text {
		width += t.Width
	}
	switch {
	case a.XL != a.UNet.TextTime:
		return fmt.Errorf("%s: addition_embed_type does not fit the pipeline class in model_index.json", filepath.Join(a.Name, "unet", "config.json"))
	case a.UNet.ContextWidth != width:
		return fmt.Errorf("%s: cross_attention_dim = %d, but the text embeddings have width %d", filepath.Join(a.Name, "unet", "config.json"), a.UNet.ContextWidth, width)
	case a.UNet.InChannels != a.VAE.LatentChannels:
		return fmt.Errorf("%s: in_channels = %d must equal the VAE's latent_channels = %d", filepath.Join(a.Name, "unet", "config.json"), a.UNet.InChannels, a.VAE.LatentChannels)
	}
	return nil
}

// skeleton is the model without its numbers: enough to lay out parameters with.
func (a *Architecture) skeleton() *sd.Model {
	m := &sd.Model{Dir: a.Name, UNet: sd.NewUNet(a.UNet), VAE: sd.NewVAE(a.VAE), XL: a.XL}
	for i, t := range a.Text {
		m.Towers = append(m.Towers, sd.TextTower{Name: towers[i], Encoder: sd.NewTextEncoder(t)})
	}
	return m
}

// checkConcepts says whether the model can take embeddings of further tokens.
func (a *Architecture) checkConcepts() error {
	if a.XL {
		return fmt.Errorf("%s has two text encoders; embeddings of one's tokens are for Stable Diffusion 1.x and 2.x", a.Name)
	}
	return nil
}

// towers are the folders of text encoders.
var towers = []string{"text_encoder", "text_encoder_2"}

func (a *Architecture) tokens() int { return a.Text[0].Tokens }

// resolution is the side of the pictures that the model was trained on.
func (a *Architecture) resolution() int { return a.UNet.SampleSize * a.VAE.Downscale() }

// latents is the shape of a batch of pictures of a size in pixels.
func (a *Architecture) latents(size, height, width int) (batch, error) {
	d := a.VAE.Downscale()
	b := batch{size: size, height: height / d, width: width / d}
	if height%d != 0 || width%d != 0 || a.UNet.CheckLatents(b.height, b.width) != nil {
		return b, fmt.Errorf("pictures of %d×%d do not fit this model: both sides must be multiples of %d", height, width, d*a.UNet.Downscale())
	}
	return b, nil
}

func (a *Architecture) textSpecs() []nn.Spec {
	var out []nn.Spec
	for _, t := range a.Text {
		out = append(out, sd.NewTextEncoder(t).Specs()...)
	}
	return out
}

func count(specs []nn.Spec) int {
	n := 0
	for _, s := range specs {
		n += s.Size()
	}
	return n
}
