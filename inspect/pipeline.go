package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// maxJSONBytes bounds a configuration; real ones have a few kilobytes.
const maxJSONBytes = 16 << 20

// readJSON reads a small JSON file.
func readJSON(path string, into any) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", path, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxJSONBytes {
		return fmt.Errorf("%s is not a small regular file; it cannot be a configuration", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", path, err)
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("%s is not the JSON it should be: %w", path, err)
	}
	return nil
}

// Pipeline is what a diffusers directory says about the whole model.
type Pipeline struct {
	Class      string `json:"class"`
	Scheduler  string `json:"scheduler,omitempty"`
	Prediction string `json:"prediction_type,omitempty"`
	Resolution int    `json:"resolution,omitempty"` // pixels
}

// Component is a part of a pipeline.
type Component struct {
	Name    string   `json:"name"`
	Class   string   `json:"class"`
	Weights *Weights `json:"weights,omitempty"`

	notes []string
}

// inspectPipeline looks at a diffusers directory.
func inspectPipeline(path string, tensors bool) (*Found, error) {
	var index map[string]json.RawMessage
	if err := readJSON(filepath.Join(path, "model_index.json"), &index); err != nil {
		return nil, err
	}
	found := &Found{Path: path, Kind: "diffusers model", Pipeline: &Pipeline{Class: "unknown"}}
	if raw, ok := index["_class_name"]; ok && json.Unmarshal(raw, &found.Pipeline.Class) != nil {
		return nil, fmt.Errorf("%s: _class_name is not a string", filepath.Join(path, "model_index.json"))
	}
	for _, name := range slices.Sorted(maps.Keys(index)) {
		// A component is a pair of library and class; null where the pipeline does without it.
		var pair []*string
		if json.Unmarshal(index[name], &pair) != nil || len(pair) != 2 || pair[1] == nil {
			continue
		}
		if !filepath.IsLocal(name) || filepath.Base(name) != name {
			return nil, fmt.Errorf("%s: component %q is not the name of a folder", filepath.Join(path, "model_index.json"), name)
		}
		c, err := readComponent(filepath.Join(path, name), name, *pair[1], tensors)
		if err != nil {
			return nil, err
		}
		found.Components = append(found.Components, c)
		found.Notes = append(found.Notes, c.notes...)
	}
	found.readScheduler(path)
	unet, errU := sd.ReadUNetConfig(filepath.Join(path, "unet", "config.json"))
	vae, errV := sd.ReadVAEConfig(filepath.Join(path, "vae", "config.json"))
	if errU == nil && errV == nil {
		found.Pipeline.Resolution = unet.SampleSize * vae.Downscale()
	}
	return found, nil
}

func (f *Found) readScheduler(path string) {
	config, err := diffusion.LoadConfig(filepath.Join(path, "scheduler", "scheduler_config.json"))
	if err != nil {
		f.Notes = append(f.Notes, err.Error())
		return
	}
	f.Pipeline.Scheduler, f.Pipeline.Prediction = config.Class, string(config.PredictionType)
}

// readComponent looks at a component's folder. Tokenizers, schedulers and the like have no weights.
func readComponent(dir, name, class string, tensors bool) (c Component, err error) {
	c = Component{Name: name, Class: class}
	switch _, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		c.notes = append(c.notes, fmt.Sprintf("%s is named in model_index.json, but its folder is missing", name))
		return c, nil
	case err != nil:
		return c, fmt.Errorf("%s cannot be opened: %w", dir, err)
	}
	if err := unusable(class, dir); err != nil {
		c.notes = append(c.notes, err.Error())
	}
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err != nil {
		return c, nil
	}
	var source weights.FileSource
	for _, base := range []string{sd.UNetWeightsName, "model"} {
		var failure error
		if source, failure = weights.OpenComponent(dir, base); failure == nil {
			break
		}
		if holds(dir, base) { // the file is there, and bad
			return c, failure
		}
	}
	if source == nil {
		c.notes = append(c.notes, name+" has no weights that this program reads")
		return c, nil
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	c.Weights, err = summarize(source, tensors)
	return c, err
}

// holds tells whether a folder has a weights file of the given base name.
func holds(dir, base string) bool {
	prefixes := []string{base + "."}
	if base == "model" {
		prefixes = append(prefixes, "pytorch_model.")
	}
	entries, err := os.ReadDir(dir)
	return err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(e.Name(), p) })
	})
}

// configClass is the class that a component's config.json names.
func configClass(path string) (string, error) {
	var config struct {
		Class         string   `json:"_class_name"`
		Architectures []string `json:"architectures"`
	}
	if err := readJSON(path, &config); err != nil {
		return "", err
	}
	switch {
	case config.Class != "":
		return config.Class, nil
	case len(config.Architectures) > 0:
		return config.Architectures[0], nil
	}
	return "unknown", nil
}

// unusable gives the reason why the program cannot load a component, if there is one.
func unusable(class, dir string) error {
	config := filepath.Join(dir, "config.json")
	var err error
	switch class {
	case "UNet2DConditionModel":
		_, err = sd.ReadUNetConfig(config)
	case "AutoencoderKL":
		_, err = sd.ReadVAEConfig(config)
	case "CLIPTextModel", "CLIPTextModelWithProjection":
		_, err = sd.ReadTextConfig(config)
	}
	return err
}
