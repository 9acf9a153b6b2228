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
	} {
		if _, err := os.Stat(filepath.Join(path, kind.mark)); err == nil {
			return kind.inspect(path, tensors)
		}
	}
	return nil, fmt.Errorf("%s is not a folder that this program knows: it holds no model_index.json (a diffusers directory), run.json (a run) or config.json (a component)", path)
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
	Modules int       `json:"modules"`
	Ranks   []int     `json:"ranks"`
	Scales  []float64 `json:"scales"`
	Names   []string  `json:"names,omitempty"`
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
	if !slices.ContainsFunc(source.Names(), func(n string) bool { return strings.Contains(n, "lora") }) {
		return found, nil
	}
	adapter, err := weights.LoRAFrom(source)
	if err != nil {
		found.Notes = append(found.Notes, "looks like a LoRA adapter that cannot be used here: "+err.Error())
		return found, nil
	}
	found.Kind = "LoRA adapter (" + found.Kind + ")"
	found.LoRA = &LoRA{Modules: len(adapter.Layers)}
	ranks, scales := map[int]bool{}, map[float64]bool{}
	for _, l := range adapter.Layers {
		ranks[l.Rank], scales[l.Scale()] = true, true
		if tensors {
			found.LoRA.Names = append(found.LoRA.Names, l.Module)
		}
	}
	found.LoRA.Ranks, found.LoRA.Scales = slices.Sorted(maps.Keys(ranks)), slices.Sorted(maps.Keys(scales))
	return found, nil
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
