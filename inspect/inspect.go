// Package inspect finds out what a file or folder holds: weights, an adapter, a diffusers directory, one component of it,
// a run. Nothing in a file is executed, and a file that breaks its format's rules is an error that says where.
package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/weights"
)

// Found is what a path turned out to hold. Only the parts that belong to its kind are set.
type Found struct {
	Path       string      `json:"path"`
	Kind       string      `json:"kind"`
	Weights    *Weights    `json:"weights,omitempty"`
	LoRA       *LoRA       `json:"lora,omitempty"`
	Pipeline   *Pipeline   `json:"pipeline,omitempty"`
	Run        *Run        `json:"run,omitempty"`
	Components []Component `json:"components,omitempty"`
	Notes      []string    `json:"notes,omitempty"` // what this program cannot use, and why
}

// Path finds out what is at a path: a safetensors or PyTorch file, or a folder that model_index.json, run.json or
// config.json marks. With tensors, the names of all tensors are listed too. Errors name the file and what is wrong with it.
func Path(path string, tensors bool) (*Found, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s does not exist; check its name", path)
	case err != nil:
		return nil, fmt.Errorf("%s cannot be opened: %w", path, err)
	case info.Mode().IsRegular():
		return inspectFile(path, tensors)
	case !info.IsDir():
		return nil, fmt.Errorf("%s is neither a file nor a folder", path)
	}
	for _, kind := range []struct {
		mark    string
		inspect func(string, bool) (*Found, error)
	}{
		{"model_index.json", inspectPipeline},
		{"run.json", inspectRun},
		{"config.json", inspectComponent},
		{"adapter_config.json", inspectAdapter},
		{filepath.Join("unet", "adapter_config.json"), inspectAdapter},
		{filepath.Join("text_encoder", "adapter_config.json"), inspectAdapter},
	} {
		if _, err := os.Stat(filepath.Join(path, kind.mark)); err == nil {
			return kind.inspect(path, tensors)
		}
	}
	return nil, fmt.Errorf("%s is not a folder that this program knows: it holds no model_index.json (a diffusers directory), run.json (a run), config.json (a component) or adapter_config.json (a LoRA adapter)", path)
}

// Weights is what a set of tensors holds.
type Weights struct {
	Tensors    int               `json:"tensors"`
	Parameters int               `json:"parameters"`
	Bytes      int64             `json:"bytes"`
	DTypes     map[string]int    `json:"dtypes"` // number of tensors of each
	Metadata   map[string]string `json:"metadata,omitempty"`
	Ignored    []string          `json:"ignored,omitempty"` // what a PyTorch file holds beside tensors
	List       []Tensor          `json:"list,omitempty"`
}

// Tensor is the name, data type and shape of a tensor.
type Tensor struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
}

func summarize(source weights.Source, tensors bool) (*Weights, error) {
	s := &Weights{DTypes: map[string]int{}, Metadata: source.Metadata()}
	for _, name := range source.Names() {
		t, err := source.Tensor(name)
		if err != nil {
			return nil, err
		}
		s.Tensors++
		s.Parameters += t.Elements()
		s.Bytes += int64(t.Elements()) * int64(t.DType.Size())
		s.DTypes[t.DType.String()]++
		if tensors {
			s.List = append(s.List, Tensor{t.Name, t.DType.String(), append([]int{}, t.Shape...)})
		}
	}
	if torch, ok := source.(*weights.TorchFile); ok {
		s.Ignored = torch.Ignored()
	}
	return s, nil
}

// LoRA is what an adapter holds.
type LoRA struct {
	Dialect      string         `json:"dialect"` // whose names it uses: diffusers, peft or kohya
	Modules      int            `json:"modules"`
	Components   map[string]int `json:"components"`             // number of modules in the unet, text_encoder and text_encoder_2
	Convolutions int            `json:"convolutions,omitempty"` // how many of the modules are convolutions
	Ranks        []int          `json:"ranks"`
	Scales       []float64      `json:"scales"`
	Names        []string       `json:"names,omitempty"`
}

// describeLoRA sums an adapter up; with names, its modules are listed, those of text encoders with the encoder in front.
func describeLoRA(adapter *weights.LoRA, names bool) *LoRA {
	d := &LoRA{Dialect: string(adapter.Dialect), Modules: len(adapter.Layers), Components: map[string]int{}}
	ranks, scales := map[int]bool{}, map[float64]bool{}
	for _, l := range adapter.Layers {
		ranks[l.Rank], scales[l.Scale()] = true, true
		if l.Kernel != [2]int{} {
			d.Convolutions++
		}
		component, name := "unet", l.Module
		if l.Component != weights.LoRAUNet {
			component, name = l.Component, l.Component+"."+l.Module
		}
		d.Components[component]++
		if names {
			d.Names = append(d.Names, name)
		}
	}
	d.Ranks, d.Scales = slices.Sorted(maps.Keys(ranks)), slices.Sorted(maps.Keys(scales))
	return d
}

// inspectAdapter looks at a folder that PEFT wrote.
func inspectAdapter(path string, tensors bool) (*Found, error) {
	adapter, err := weights.ReadLoRA(path)
	if err != nil {
		return nil, err
	}
	return &Found{Path: path, Kind: "LoRA adapter (PEFT folder)", LoRA: describeLoRA(adapter, tensors)}, nil
}

func inspectFile(path string, tensors bool) (_ *Found, err error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	found := &Found{Path: path, Kind: "safetensors file"}
	if _, ok := source.(*weights.TorchFile); ok {
		found.Kind = "PyTorch file"
	}
	if found.Weights, err = summarize(source, tensors); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(source.Names(), looksLikeAdapter) {
		return found, nil
	}
	adapter, err := weights.ReadLoRA(path) // not from the source: a configuration may lie beside the file
	if err != nil && isPlainAdapter(source.Names()) {
		return nil, err
	}
	if err != nil {
		found.Notes = append(found.Notes, "looks like an adapter that cannot be used here: "+strings.TrimPrefix(err.Error(), path+": "))
		return found, nil
	}
	found.Kind = "LoRA adapter (" + found.Kind + ")"
	found.LoRA = describeLoRA(adapter, tensors)
	return found, nil
}

// looksLikeAdapter tells the tensors of adapters, also of kinds that cannot be used, by their names.
func looksLikeAdapter(name string) bool {
	return slices.ContainsFunc([]string{"lora", ".hada_", ".lokr_", ".dora_scale"}, func(part string) bool { return strings.Contains(name, part) })
}

// isPlainAdapter tells by names whether a file holds nothing but the factors of a LoRA adapter. Then what is wrong with it
// is a fault of the file; other kinds of adapters, and files that hold more, only cannot be used.
func isPlainAdapter(names []string) bool {
	for _, name := range names {
		if !strings.Contains(name, "lora") || strings.Contains(name, "lora_magnitude_vector") || strings.Contains(name, ".hada_") ||
			strings.Contains(name, ".lokr_") || strings.Contains(name, ".dora_scale") {
			return false
		}
	}
	return true
}

// inspectComponent looks at the folder of one component of a pipeline.
func inspectComponent(path string, tensors bool) (*Found, error) {
	class, err := configClass(filepath.Join(path, "config.json"))
	if err != nil {
		return nil, err
	}
	c, err := readComponent(path, filepath.Base(path), class, tensors)
	if err != nil {
		return nil, err
	}
	return &Found{Path: path, Kind: "component of a diffusers model", Components: []Component{c}, Notes: c.notes}, nil
}
