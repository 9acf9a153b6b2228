// Package sd is the Stable Diffusion family: text encoders, UNet and autoencoder, read from diffusers' configuration
// and weights, as pure functions of their parameters.
package sd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/tokenizer"
	"github.com/resalign/resalign/weights"
)

// Model is a text-to-image pipeline that was read from a diffusers directory. Its methods may be called concurrently.
type Model struct {
	Dir       string
	Engine    *engine.Engine
	UNet      *UNet
	VAE       *VAE
	Towers    []TextTower // one; two for SDXL
	Scheduler diffusion.Config
	Schedule  *diffusion.Schedule

	UNetParams, VAEParams *Params

	// XL says that the pipeline conditions as Stable Diffusion XL does; ForceZeros that its negative conditioning
	// without a negative prompt is all zeros.
	XL, ForceZeros bool

	// GradientCheckpointing makes derivatives through the UNet keep only the inputs of its blocks and compute the rest
	// again: less memory, more time, the same results to rounding. Set it before networks are made of the model.
	GradientCheckpointing bool

	// Compute is what the UNet and the VAE's decoder compute in; empty stands for float32. Set it before networks are made
	// of the model.
	Compute nn.Compute

	mu        sync.Mutex
	functions map[string]*engine.Function
	hashes    map[string]string
}

// TextTower is a text encoder with its tokenizer and numbers.
type TextTower struct {
	Name      string // the component's folder: text_encoder or text_encoder_2
	Encoder   *TextEncoder
	Params    *Params
	Tokenizer *tokenizer.Tokenizer

	changed bool // an adapter was merged into Params, so they differ from the files
}

// UNetWeightsName is the base name of the weights of UNet and VAE in their folders.
const UNetWeightsName = "diffusion_pytorch_model"

// textWeightsName is that of the text encoders.
const textWeightsName = "model"

// Load reads a pipeline directory. Errors name the file and what is wrong with it.
func Load(e *engine.Engine, dir string) (_ *Model, err error) {
	defer engine.Sparing()()
	m := &Model{Dir: dir, Engine: e, functions: map[string]*engine.Function{}, hashes: map[string]string{}}
	defer func() {
		if err != nil {
			m.Free()
		}
	}()
	if err := m.readIndex(); err != nil {
		return nil, err
	}
	unet, err := ReadUNetConfig(m.path("unet", "config.json"))
	if err != nil {
		return nil, err
	}
	m.UNet = NewUNet(unet)
	vae, err := ReadVAEConfig(m.path("vae", "config.json"))
	if err != nil {
		return nil, err
	}
	m.VAE = NewVAE(vae)
	for _, name := range m.towerNames() {
		if err := m.loadTower(name); err != nil {
			return nil, err
		}
	}
	if err := m.checkFit(); err != nil {
		return nil, err
	}
	if m.Scheduler, err = diffusion.LoadConfig(m.path("scheduler", "scheduler_config.json")); err != nil {
		return nil, err
	}
	if m.Schedule, err = diffusion.NewSchedule(m.Scheduler); err != nil {
		return nil, fmt.Errorf("%s: %w", m.path("scheduler", "scheduler_config.json"), err)
	}
	if m.VAEParams, err = m.loadComponent(m.path("vae"), UNetWeightsName, func(s weights.FileSource) (*Params, error) {
		return LoadParams(e, s, m.path("vae"), m.VAE.Specs(), vaeAlias, nil)
	}); err != nil {
		return nil, err
	}
	if m.UNetParams, err = m.loadComponent(m.path("unet"), UNetWeightsName, func(s weights.FileSource) (*Params, error) {
		return LoadParams(e, s, m.path("unet"), m.UNet.Specs(), nil, nil)
	}); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Model) path(parts ...string) string {
	return filepath.Join(append([]string{m.Dir}, parts...)...)
}

// readIndex checks model_index.json.
func (m *Model) readIndex() error {
	if info, err := os.Stat(m.Dir); err != nil {
		return fmt.Errorf("model: cannot open the folder %s: %w", m.Dir, errors.Unwrap(err))
	} else if !info.IsDir() {
		return fmt.Errorf("model: %s is a file, not a diffusers directory; run `resalign convert %s DIR` and give DIR", m.Dir, m.Dir)
	}
	c, err := readConfig(m.path("model_index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("model: %s is not a diffusers directory: it holds no model_index.json", m.Dir)
	}
	if err != nil {
		return err
	}
	switch class := c.string("_class_name", ""); class {
	case "StableDiffusionPipeline":
	case "StableDiffusionXLPipeline":
		m.XL = true
		m.ForceZeros = c.bool("force_zeros_for_empty_prompt", true)
	default:
		return fmt.Errorf("%s: _class_name = %q is not supported (supported: StableDiffusionPipeline, StableDiffusionXLPipeline)", c.path, class)
	}
	if len(c.problems) > 0 {
		return fmt.Errorf("%s: %s", c.path, strings.Join(c.problems, "; "))
	}
	return nil
}

func (m *Model) loadTower(name string) error {
	config, err := ReadTextConfig(m.path(name, "config.json"))
	if err != nil {
		return err
	}
	t := TextTower{Name: name, Encoder: NewTextEncoder(config)}
	folder := strings.Replace(name, "text_encoder", "tokenizer", 1)
	if t.Tokenizer, err = tokenizer.Load(m.path(folder)); err != nil {
		return err
	}
	if t.Tokenizer.VocabSize() > config.Vocabulary {
		return fmt.Errorf("%s has %d tokens, but the text encoder in %s only knows %d", m.path(folder), t.Tokenizer.VocabSize(), m.path(name), config.Vocabulary)
	}
	if t.Tokenizer.Length() != config.Tokens {
		return fmt.Errorf("%s makes prompts of %d tokens, but the text encoder in %s takes %d", m.path(folder), t.Tokenizer.Length(), m.path(name), config.Tokens)
	}
	t.Params, err = m.loadComponent(m.path(name), textWeightsName, func(s weights.FileSource) (*Params, error) {
		return loadText(m.Engine, s, m.path(name), t.Encoder)
	})
	if err != nil {
		return err
	}
	m.Towers = append(m.Towers, t)
	return nil
}

// towerNames lists the folders of the pipeline's text encoders.
func (m *Model) towerNames() []string {
	if m.XL {
		return []string{"text_encoder", "text_encoder_2"}
	}
	return []string{"text_encoder"}
}

// loadText reads the parameters of a text encoder whose folder is dir.
func loadText(e *engine.Engine, s weights.FileSource, dir string, t *TextEncoder) (*Params, error) {
	return LoadParams(e, s, dir, t.Specs(), textAlias, func(n string) bool {
		return strings.HasSuffix(n, "embeddings.position_ids") // a buffer: 0 … 76
	})
}

// checkFit compares the widths at which the components meet.
func (m *Model) checkFit() error {
	width := 0
	for _, t := range m.Towers {
		width += t.Encoder.Config.Width
	}
	u, v := m.UNet.Config, m.VAE.Config
	switch {
	case m.XL != u.TextTime:
		return fmt.Errorf("%s: addition_embed_type does not fit the pipeline class in model_index.json", m.path("unet", "config.json"))
	case u.ContextWidth != width:
		return fmt.Errorf("%s: cross_attention_dim = %d, but the text embeddings have width %d", m.path("unet", "config.json"), u.ContextWidth, width)
	case u.InChannels != v.LatentChannels || u.OutChannels != v.LatentChannels:
		return fmt.Errorf("%s: in_channels = %d and out_channels = %d must both equal the VAE's latent_channels = %d (inpainting and other conditioned UNets are not supported)",
			m.path("unet", "config.json"), u.InChannels, u.OutChannels, v.LatentChannels)
	case m.XL && m.Towers[1].Encoder.Config.Projection != u.PooledWidth():
		return fmt.Errorf("%s: the UNet expects a pooled text embedding of width %d, but text_encoder_2 makes %d",
			m.path("unet", "config.json"), u.PooledWidth(), m.Towers[1].Encoder.Config.Projection)
	}
	return nil
}

func (m *Model) loadComponent(dir, base string, load func(weights.FileSource) (*Params, error)) (*Params, error) {
	source, err := weights.OpenComponent(dir, base)
	if err != nil {
		return nil, err
	}
	params, err := load(source)
	if err = errors.Join(err, source.Close()); err != nil {
		return params, err
	}
	return params, m.Engine.Place(params.Tensors...)
}

// Free releases the model's tensors and compiled functions.
func (m *Model) Free() {
	for _, p := range []*Params{m.UNetParams, m.VAEParams} {
		if p != nil {
			p.Free()
		}
	}
	for _, t := range m.Towers {
		t.Params.Free()
	}
	for _, f := range m.functions {
		f.Free()
	}
}

// function returns the compiled function called name, preparing it on first use.
func (m *Model) function(name string, build func(t *ad.Tape, in []*ad.Value) []*ad.Value) (*engine.Function, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.functions[name]; ok {
		return f, nil
	}
	f, err := ad.Shared(m.Engine, m.architecture(name)+name, name, build)
	if err == nil {
		m.functions[name] = f
	}
	return f, err
}

// architecture is what a function of the model depends on: the configuration of the component it belongs to.
func (m *Model) architecture(name string) string {
	for _, t := range m.Towers {
		if t.Name == name {
			return fmt.Sprintf("%t %+v\n", m.XL, t.Encoder.Config)
		}
	}
	if m.VAE == nil {
		return ""
	}
	return fmt.Sprintf("%+v\n", m.VAE.Config)
}

// LatentSize is the height and width of the latents of a picture of the given size in pixels.
func (m *Model) LatentSize(height, width int) (h, w int, err error) {
	d := m.VAE.Config.Downscale()
	if height < d || width < d || height%d != 0 || width%d != 0 {
		return 0, 0, fmt.Errorf("pictures of %d×%d do not fit this model: both sides must be multiples of %d", height, width, d*m.UNet.Config.Downscale())
	}
	if err := m.UNet.Config.CheckLatents(height/d, width/d); err != nil {
		return 0, 0, fmt.Errorf("pictures of %d×%d do not fit this model: both sides must be multiples of %d", height, width, d*m.UNet.Config.Downscale())
	}
	return height / d, width / d, nil
}

// Resolution is the side in pixels of the pictures that the model was trained on.
func (m *Model) Resolution() int { return m.UNet.Config.SampleSize * m.VAE.Config.Downscale() }

// Targets that stand for a kind of layers.
const (
	FeedForward = "feed-forward" // both linear layers of every transformer block's feed-forward network
	Convolution = "convolution"  // the convolutions of the UNet's blocks: resnets, samplers, projections around transformers
)

// AttentionLayers lists the layers of the UNet that an adapter shall sit on: the linear layers of attentions whose path
// contains one of the targets, and all layers of the kinds [FeedForward] and [Convolution] where these are among them. No
// targets stand for all attention layers, as does "attention". A target that matches nothing is an error.
func (m *Model) AttentionLayers(targets ...string) ([]Layer, error) {
	targets = slices.Clone(targets)
	for i, t := range targets {
		if t == Convolution+"s" {
			targets[i] = Convolution
		}
	}
	var out []Layer
	matched := map[string]bool{}
	for _, l := range m.UNet.AttentionLinears() {
		take := len(targets) == 0
		for _, t := range targets {
			if strings.Contains(l.Path(), t) {
				take, matched[t] = true, true
			}
		}
		if take {
			out = append(out, Layer{Path: l.Path(), In: l.In(), Out: l.Out()})
		}
	}
	if slices.Contains(targets, FeedForward) {
		for _, l := range m.UNet.FeedForwardLinears() {
			out, matched[FeedForward] = append(out, Layer{Path: l.Path(), In: l.In(), Out: l.Out()}), true
		}
	}
	if slices.Contains(targets, Convolution) {
		for _, s := range m.UNet.Specs() {
			if s.Layout == nn.Kernel && strings.Contains(s.Name, "_block") {
				path := strings.TrimSuffix(s.Name, ".weight")
				out, matched[Convolution] = append(out, Layer{Path: path, In: s.Shape[1], Out: s.Shape[0], Kernel: [2]int{s.Shape[2], s.Shape[3]}}), true
			}
		}
	}
	for _, t := range targets {
		if !matched[t] {
			return nil, fmt.Errorf("target %q matches no attention layer of this UNet; layers are called like %s, and %q and %q stand for layers of other kinds",
				t, m.UNet.AttentionLinears()[0].Path(), FeedForward, Convolution)
		}
	}
	return out, nil
}

// Layer is a layer that an adapter can sit on.
type Layer struct {
	Path    string
	In, Out int
	Kernel  [2]int // height and width of a convolution's; zeros for a linear layer
}

func (l Layer) convolution() bool { return l.Kernel != [2]int{} }

// fields is the number of inputs of one output.
func (l Layer) fields() int {
	if l.convolution() {
		return l.In * l.Kernel[0] * l.Kernel[1]
	}
	return l.In
}
