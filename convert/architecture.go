package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// Family is a generation of Stable Diffusion, which decides where the original layout keeps the text encoders.
type Family string

// The families that are converted.
const (
	SD1  Family = "sd1"
	SD2  Family = "sd2"
	SDXL Family = "sdxl"
)

// settings is a directory that says about a model what its weights do not: configurations, tokenizers, scheduler.
type settings struct {
	where string // in messages
	files fs.FS
}

// architecture is what the configurations of a pipeline say.
type architecture struct {
	family     Family
	unet       sd.UNetConfig
	vae        sd.VAEConfig
	towers     []sd.TextConfig
	folders    []string // the folders that model_index.json names, sorted
	components []component
}

// component is a part of a pipeline that has weights of its own.
type component struct {
	folder string    // in a diffusers directory
	base   string    // name of its weights there, without extension
	prefix string    // in front of its tensors in a single file
	specs  []nn.Spec // its parameters in diffusers
	links  []link
}

// maxSettings bounds a JSON file of settings; real ones have a few kilobytes.
const maxSettings = 1 << 20

// read returns a file of the directory; path uses slashes.
func (s settings) read(path string) ([]byte, error) {
	where := filepath.Join(s.where, filepath.FromSlash(path))
	info, err := fs.Stat(s.files, path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", where, cause(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxSettings {
		return nil, fmt.Errorf("%s is not a small regular file; it cannot be a configuration", where)
	}
	f, err := s.files.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", where, cause(err))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSettings))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", where, cause(err))
	}
	return data, nil
}

// cause takes the path out of an error that will name it better.
func cause(err error) error {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Err
	}
	return err
}

// readArchitecture reads the configurations of a pipeline.
func (s settings) readArchitecture() (*architecture, error) {
	a := &architecture{}
	index, err := s.read("model_index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a diffusers directory: it holds no model_index.json", s.where)
	}
	if err != nil {
		return nil, err
	}
	class, folders, err := parseIndex(index)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name("model_index.json"), err)
	}
	a.folders = folders
	if a.unet, err = parse(s, "unet/config.json", sd.ParseUNetConfig); err != nil {
		return nil, err
	}
	if a.vae, err = parse(s, "vae/config.json", sd.ParseVAEConfig); err != nil {
		return nil, err
	}
	towers := []string{"text_encoder"}
	if class == classXL {
		towers = append(towers, "text_encoder_2")
	}
	for _, tower := range towers {
		c, err := parse(s, tower+"/config.json", sd.ParseTextConfig)
		if err != nil {
			return nil, err
		}
		a.towers = append(a.towers, c)
	}
	return a, a.lay(s)
}

func (s settings) name(path string) string { return filepath.Join(s.where, filepath.FromSlash(path)) }

func parse[C any](s settings, path string, read func(name string, data []byte) (C, error)) (C, error) {
	data, err := s.read(path)
	if err != nil {
		var none C
		return none, err
	}
	return read(s.name(path), data)
}

const (
	classSD = "StableDiffusionPipeline"
	classXL = "StableDiffusionXLPipeline"
)

// parseIndex returns a pipeline's class and the folders of its components.
func parseIndex(data []byte) (class string, folders []string, err error) {
	var index map[string]json.RawMessage
	if err := json.Unmarshal(data, &index); err != nil {
		return "", nil, fmt.Errorf("not a JSON object: %w", err)
	}
	if raw, ok := index["_class_name"]; ok && json.Unmarshal(raw, &class) != nil {
		return "", nil, errors.New("_class_name is not a text")
	}
	if class != classSD && class != classXL {
		return "", nil, fmt.Errorf("_class_name = %q is not supported (supported: %s, %s)", class, classSD, classXL)
	}
	for name, raw := range index {
		// A component is a pair of library and class; both are null where the pipeline does without it.
		var pair []*string
		if json.Unmarshal(raw, &pair) != nil || len(pair) != 2 || pair[1] == nil {
			continue
		}
		if !filepath.IsLocal(name) || filepath.Base(name) != name || name == "." {
			return "", nil, fmt.Errorf("the component %q is not the name of a folder", name)
		}
		folders = append(folders, name)
	}
	slices.Sort(folders)
	return class, folders, nil
}

// lay derives the family, and for each component the parameters and their place in the original layout.
func (a *architecture) lay(s settings) error {
	width := 0
	for _, t := range a.towers {
		width += t.Width
	}
	switch {
	case a.unet.InChannels != a.vae.LatentChannels || a.unet.OutChannels != a.vae.LatentChannels:
		return fmt.Errorf("%s: in_channels = %d and out_channels = %d must both equal the VAE's latent_channels = %d (inpainting and other conditioned UNets are not supported)",
			s.name("unet/config.json"), a.unet.InChannels, a.unet.OutChannels, a.vae.LatentChannels)
	case a.unet.ContextWidth != width:
		return fmt.Errorf("%s: cross_attention_dim = %d, but the text embeddings have width %d", s.name("unet/config.json"), a.unet.ContextWidth, width)
	case a.unet.TextTime != (len(a.towers) == 2):
		return fmt.Errorf("%s: addition_embed_type does not fit the pipeline class in model_index.json", s.name("unet/config.json"))
	}
	// CompVis's code takes quick GELU for OpenAI's text encoder and exact GELU for OpenCLIP's, and no file can say otherwise.
	const openAI, openCLIP = "quick_gelu", "gelu"
	type tower struct{ activation, prefix string }
	var places []tower
	switch {
	case len(a.towers) == 2:
		a.family = SDXL
		places = []tower{{openAI, "conditioner.embedders.0.transformer."}, {openCLIP, "conditioner.embedders.1.model."}}
	case a.towers[0].Activation == openAI:
		a.family = SD1
		places = []tower{{openAI, "cond_stage_model.transformer."}}
	default:
		a.family = SD2
		places = []tower{{openCLIP, "cond_stage_model.model."}}
	}
	unet, err := unetLinks(a.unet)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name("unet/config.json"), err)
	}
	vae, err := vaeLinks(a.vae)
	if err != nil {
		return fmt.Errorf("%s: %w", s.name("vae/config.json"), err)
	}
	a.components = []component{
		{"unet", sd.UNetWeightsName, "model.diffusion_model.", sd.NewUNet(a.unet).Specs(), unet},
		{"vae", sd.UNetWeightsName, "first_stage_model.", sd.NewVAE(a.vae).Specs(), vae},
	}
	for i, t := range a.towers {
		folder := []string{"text_encoder", "text_encoder_2"}[i]
		config := s.name(folder + "/config.json")
		if t.Activation != places[i].activation {
			return fmt.Errorf("%s: hidden_act = %q has no place in the original layout of SDXL, where this text encoder has %q",
				config, t.Activation, places[i].activation)
		}
		links := clipLinks
		if t.Activation == openCLIP {
			links = openCLIPLinks
		}
		l, err := links(t)
		if err != nil {
			return fmt.Errorf("%s: %w", config, err)
		}
		a.components = append(a.components, component{folder, "model", places[i].prefix, sd.NewTextEncoder(t).Specs(), l})
	}
	return nil
}

// component returns the component of a folder, nil if the pipeline has none.
func (a *architecture) component(folder string) *component {
	for i := range a.components {
		if a.components[i].folder == folder {
			return &a.components[i]
		}
	}
	return nil
}

// prediction reads what the UNet of a directory predicts.
func (s settings) prediction() (diffusion.PredictionType, error) {
	const path = "scheduler/scheduler_config.json"
	data, err := s.read(path)
	if err != nil {
		return "", err
	}
	var c struct {
		Prediction *diffusion.PredictionType `json:"prediction_type"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return "", fmt.Errorf("%s: not the JSON of a scheduler: %w", s.name(path), err)
	}
	if c.Prediction == nil {
		return diffusion.Epsilon, nil // diffusers' default
	}
	return *c.Prediction, nil
}
