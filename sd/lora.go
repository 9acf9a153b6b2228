package sd

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/weights"
)

// LoadWithLoRA is [Load] for a model that wears an adapter: the LoRA file, if its name is not empty, is merged into the
// weights of the UNet and of the text encoders at strength one, in the data type of the model's files.
func LoadWithLoRA(e *engine.Engine, dir, lora string) (*Model, error) {
	if lora == "" {
		return Load(e, dir)
	}
	defer engine.Sparing()()
	adapter, err := weights.ReadLoRA(lora) // first: a wrong file shows before the model is read
	if err != nil {
		return nil, err
	}
	m, err := Load(e, dir)
	if err != nil {
		return nil, err
	}
	if err := m.wear(adapter); err != nil {
		m.Free()
		return nil, fmt.Errorf("%s: %w", lora, err)
	}
	return m, nil
}

// wear reads the weights of every component that the adapter changes again, with the adapter merged into them.
func (m *Model) wear(adapter *weights.LoRA) error {
	layers := weights.LoRAModel{weights.LoRAUNet: adaptable(m.UNet.Specs())}
	for _, t := range m.Towers {
		layers[t.Name] = adaptable(t.Encoder.Specs())
	}
	adapter, err := adapter.Resolve(layers)
	if err != nil {
		return err
	}
	for _, component := range adapter.Components() {
		if err := m.wearOn(component, adapter.Of(component)); err != nil {
			return err
		}
	}
	return nil
}

func (m *Model) wearOn(component string, part *weights.LoRA) (err error) {
	if component == weights.LoRAUNet {
		merged, err := openMerged(m.path("unet"), UNetWeightsName, part, 1)
		if err != nil {
			return err
		}
		m.UNetParams.Free() // not both at once
		params, err := LoadParams(m.Engine, merged, m.path("unet"), m.UNet.Specs(), nil, nil)
		if err := errors.Join(err, merged.Close()); err != nil {
			return err
		}
		m.UNetParams = params
		return nil
	}
	i := slices.IndexFunc(m.Towers, func(t TextTower) bool { return t.Name == component })
	tower := &m.Towers[i] // Resolve has found its layers
	// Caches of embeddings are keyed by what they were computed with.
	hash, err := m.ComponentHash(component)
	if err != nil {
		return err
	}
	merged, err := openMerged(m.path(component), textWeightsName, part, 1)
	if err != nil {
		return err
	}
	tower.Params.Free()
	params, err := loadText(m.Engine, merged, m.path(component), tower.Encoder)
	if err := errors.Join(err, merged.Close()); err != nil {
		return err
	}
	tower.Params, tower.changed = params, true
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hashes[component] = hashWith(hash, part)
	return nil
}

// hashWith identifies a component of the given hash that wears an adapter.
func hashWith(component string, part *weights.LoRA) string {
	h := sha256.New()
	w := bufio.NewWriter(h)
	fmt.Fprintln(w, component)
	for _, l := range part.Layers {
		fmt.Fprintf(w, "%q %d %d %d %v %x\n", l.Module, l.Rank, l.In, l.Out, l.Kernel, l.Alpha)
		for _, factor := range [][]float32{l.Down, l.Up} {
			// Neither a buffer nor a hash fails to take bytes.
			_ = binary.Write(w, binary.LittleEndian, factor)
		}
	}
	_ = w.Flush()
	return hex.EncodeToString(h.Sum(nil))
}

// openMerged opens the weights of a component with an adapter's layers merged into them.
func openMerged(dir, base string, part *weights.LoRA, strength float64) (weights.FileSource, error) {
	source, err := weights.OpenComponent(dir, base)
	if err != nil {
		return nil, err
	}
	names := source.Names()
	part = part.Of(part.Components()[0]) // a copy, whose modules can be renamed
	for i := range part.Layers {
		l := &part.Layers[i]
		if _, ok := slices.BinarySearch(names, l.Module+".weight"); !ok && base == textWeightsName {
			l.Module = textAlias(l.Module)
		}
	}
	merged, err := weights.Merge(source, part, strength)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), source.Close())
	}
	return merged, nil
}

// adaptable lists the layers that an adapter can change: those with a matrix or a kernel, except tables of embeddings.
func adaptable(specs []nn.Spec) map[string][]int {
	layers := map[string][]int{}
	for _, s := range specs {
		if module, ok := strings.CutSuffix(s.Name, ".weight"); ok && len(s.Shape) >= 2 && s.Init != nn.Embedding {
			layers[module] = s.Shape
		}
	}
	return layers
}

// AdaptableLayers lists the layers of the pipeline in the directory dir that a LoRA can change, as its configuration files
// tell; no weights are read.
func AdaptableLayers(dir string) (weights.LoRAModel, error) {
	m := &Model{Dir: dir}
	if err := m.readIndex(); err != nil {
		return nil, err
	}
	unet, err := ReadUNetConfig(m.path("unet", "config.json"))
	if err != nil {
		return nil, err
	}
	layers := weights.LoRAModel{weights.LoRAUNet: adaptable(NewUNet(unet).Specs())}
	for _, name := range m.towerNames() {
		config, err := ReadTextConfig(m.path(name, "config.json"))
		if err != nil {
			return nil, err
		}
		layers[name] = adaptable(NewTextEncoder(config).Specs())
	}
	return layers, nil
}

// MergeLoRA writes the pipeline in the directory dir to the new or empty folder out, with an adapter merged into its UNet
// and text encoders: W + strength·(alpha/rank)·Up·Down, computed in float64 and rounded to the weight's own data type.
// Names and types stay as they are, a component that the adapter changes becomes one safetensors file, and everything else
// is copied. It returns the number of layers that changed in each component, by the component's folder.
func MergeLoRA(dir string, adapter *weights.LoRA, strength float64, out string) (map[string]int, error) {
	model, err := AdaptableLayers(dir)
	if err != nil {
		return nil, err
	}
	if adapter, err = adapter.Resolve(model); err != nil {
		return nil, err
	}
	changed := map[string]int{}
	for _, component := range adapter.Components() {
		changed[componentDir(component)] = len(adapter.Of(component).Layers)
	}
	return changed, files.WriteFolder(out, func(partial string) error {
		if err := copyTree(dir, partial, func(name string) bool { return changed[name] > 0 }); err != nil {
			return err
		}
		for _, component := range adapter.Components() {
			name := componentDir(component)
			base := textWeightsName
			if component == weights.LoRAUNet {
				base = UNetWeightsName
			}
			merged, err := openMerged(filepath.Join(dir, name), base, adapter.Of(component), strength)
			if err != nil {
				return err
			}
			err = writeComponent(filepath.Join(dir, name), filepath.Join(partial, name), func(folder string) error {
				return writeMerged(filepath.Join(folder, base+".safetensors"), merged)
			})
			if err := errors.Join(err, merged.Close()); err != nil {
				return err
			}
		}
		return dropAbsentComponents(partial)
	})
}

// componentDir is the folder of a component that an adapter names.
func componentDir(component string) string {
	if component == weights.LoRAUNet {
		return "unet"
	}
	return component
}

// writeComponent makes the folder to with the configuration of the component in the folder from; write puts the weights
// into it.
func writeComponent(from, to string, write func(folder string) error) error {
	if err := os.Mkdir(to, 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	if err := copyFile(filepath.Join(from, "config.json"), filepath.Join(to, "config.json")); err != nil {
		return err
	}
	return write(to)
}

// writeMerged writes all tensors of a source, one in memory at a time.
func writeMerged(path string, merged weights.Source) error {
	var tensors []weights.Deferred
	for _, name := range merged.Names() {
		t, err := weights.Defer(merged, name)
		if err != nil {
			return err
		}
		tensors = append(tensors, t)
	}
	return weights.WriteDeferred(path, tensors, map[string]string{"format": "pt"})
}
