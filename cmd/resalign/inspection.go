package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// inspection is what a path turned out to hold. Only the parts that belong to its kind are set.
type inspection struct {
	Path       string           `json:"path"`
	Kind       string           `json:"kind"`
	Weights    *weightsSummary  `json:"weights,omitempty"`
	LoRA       *loraSummary     `json:"lora,omitempty"`
	Pipeline   *pipelineSummary `json:"pipeline,omitempty"`
	Run        *runSummary      `json:"run,omitempty"`
	Components []component      `json:"components,omitempty"`
	Notes      []string         `json:"notes,omitempty"` // what this program cannot use, and why
}

// inspect finds out what is at a path.
func inspect(path string, tensors bool) (*inspection, error) {
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
		inspect func(string, bool) (*inspection, error)
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

// weightsSummary is what a set of tensors holds.
type weightsSummary struct {
	Tensors    int               `json:"tensors"`
	Parameters int               `json:"parameters"`
	Bytes      int64             `json:"bytes"`
	DTypes     map[string]int    `json:"dtypes"` // number of tensors of each
	Metadata   map[string]string `json:"metadata,omitempty"`
	Ignored    []string          `json:"ignored,omitempty"` // what a PyTorch file holds beside tensors
	List       []tensorLine      `json:"list,omitempty"`
}

type tensorLine struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
}

func summarize(source weights.Source, tensors bool) (*weightsSummary, error) {
	s := &weightsSummary{DTypes: map[string]int{}, Metadata: source.Metadata()}
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
			s.List = append(s.List, tensorLine{t.Name, t.DType.String(), append([]int{}, t.Shape...)})
		}
	}
	if torch, ok := source.(*weights.TorchFile); ok {
		s.Ignored = torch.Ignored()
	}
	return s, nil
}

// loraSummary is what an adapter holds.
type loraSummary struct {
	Modules int       `json:"modules"`
	Ranks   []int     `json:"ranks"`
	Scales  []float64 `json:"scales"`
	Names   []string  `json:"names,omitempty"`
}

func inspectFile(path string, tensors bool) (_ *inspection, err error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	found := &inspection{Path: path, Kind: "safetensors file"}
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
	found.LoRA = &loraSummary{Modules: len(adapter.Layers)}
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
func inspectComponent(path string, tensors bool) (*inspection, error) {
	class, err := configClass(filepath.Join(path, "config.json"))
	if err != nil {
		return nil, err
	}
	c, err := readComponent(path, filepath.Base(path), class, tensors)
	if err != nil {
		return nil, err
	}
	return &inspection{Path: path, Kind: "component of a diffusers model", Components: []component{c}, Notes: c.notes}, nil
}

// runSummary is the state of a run.
type runSummary struct {
	Started     string   `json:"started"`
	Finished    string   `json:"finished,omitempty"`
	Program     string   `json:"program"`
	Engine      string   `json:"engine"`
	Sessions    int      `json:"sessions"`
	Steps       int      `json:"steps"` // the last one in the log
	Checkpoints []string `json:"checkpoints"`
	Model       string   `json:"model,omitempty"`
	LoRA        string   `json:"lora,omitempty"`
}

func inspectRun(path string, _ bool) (*inspection, error) {
	var info train.RunInfo
	if err := readJSON(filepath.Join(path, "run.json"), &info); err != nil {
		return nil, err
	}
	if len(info.Sessions) == 0 {
		return nil, fmt.Errorf("%s: sessions is empty; the file is damaged", filepath.Join(path, "run.json"))
	}
	last := info.Sessions[len(info.Sessions)-1]
	r := &runSummary{
		Started: info.Sessions[0].Started.Format("2006-01-02 15:04:05 MST"), Program: last.Program, Engine: last.Engine,
		Sessions: len(info.Sessions), Checkpoints: []string{},
	}
	if info.Finished != nil {
		r.Finished = info.Finished.Format("2006-01-02 15:04:05 MST")
	}
	events, err := train.ReadEvents(filepath.Join(path, "events.jsonl"))
	if err != nil {
		return nil, err
	}
	if len(events) > 0 {
		r.Steps = events[len(events)-1].Step
	}
	entries, err := os.ReadDir(filepath.Join(path, "checkpoints"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("run: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), "step-") {
			r.Checkpoints = append(r.Checkpoints, e.Name())
		}
	}
	for name, target := range map[string]*string{"model": &r.Model, "lora.safetensors": &r.LoRA} {
		if _, err := os.Stat(filepath.Join(path, name)); err == nil {
			*target = filepath.Join(path, name)
		}
	}
	return &inspection{Path: path, Kind: "run folder", Run: r}, nil
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

// write shows the inspection as text.
func (f *inspection) write(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n", printable(f.Path), f.Kind)
	if f.Pipeline != nil {
		f.Pipeline.write(w)
	}
	for _, c := range f.Components {
		c.write(w)
	}
	if f.LoRA != nil {
		fmt.Fprintf(w, "  %s, rank %s, scale %s\n", count(f.LoRA.Modules, "module"), join(f.LoRA.Ranks), join(f.LoRA.Scales))
		for _, name := range f.LoRA.Names {
			fmt.Fprintf(w, "    %s\n", printable(name))
		}
	}
	if f.Weights != nil {
		f.Weights.write(w, "  ")
	}
	if f.Run != nil {
		f.Run.write(w)
	}
	for _, note := range f.Notes {
		fmt.Fprintf(w, "  note: %s\n", cut(note, 2000))
	}
}

func (s *weightsSummary) write(w io.Writer, indent string) {
	fmt.Fprintf(w, "%s%s, %s parameters, %s, %s\n", indent, count(s.Tensors, "tensor"), grouped(int64(s.Parameters)), train.FormatBytes(s.Bytes), s.types())
	for _, key := range slices.Sorted(maps.Keys(s.Metadata)) {
		fmt.Fprintf(w, "%smetadata %s = %s\n", indent, cut(key, 100), cut(s.Metadata[key], 200))
	}
	if len(s.Ignored) > 0 {
		fmt.Fprintf(w, "%sbeside tensors: %s\n", indent, cut(strings.Join(s.Ignored, ", "), 500))
	}
	for _, t := range s.List {
		fmt.Fprintf(w, "%s  %s %s %v\n", indent, printable(t.Name), t.DType, t.Shape)
	}
}

// types writes the data types with the number of tensors of each: "F16 (680), F32 (6)".
func (s *weightsSummary) types() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(s.DTypes)) {
		parts = append(parts, fmt.Sprintf("%s (%d)", name, s.DTypes[name]))
	}
	if len(parts) == 0 {
		return "empty"
	}
	return strings.Join(parts, ", ")
}

func (r *runSummary) write(w io.Writer) {
	state := "not finished"
	if r.Finished != "" {
		state = "finished " + r.Finished
	}
	fmt.Fprintf(w, "  started %s, %s, %s\n", r.Started, state, count(r.Sessions, "session"))
	fmt.Fprintf(w, "  step %d, checkpoints: %s\n", r.Steps, cut(strings.Join(r.Checkpoints, ", "), 200))
	fmt.Fprintf(w, "  program %s on %s\n", cut(r.Program, 100), cut(r.Engine, 200))
	if r.Model != "" {
		fmt.Fprintf(w, "  model %s\n", printable(r.Model))
	}
	if r.LoRA != "" {
		fmt.Fprintf(w, "  LoRA %s\n", printable(r.LoRA))
	}
}

func join[T any](values []T) string {
	var parts []string
	for _, v := range values {
		parts = append(parts, fmt.Sprint(v))
	}
	return strings.Join(parts, ", ")
}
