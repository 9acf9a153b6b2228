package sd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/weights"
)

// Save writes the pipeline with the UNet's weights replaced, and with the text encoders' where an adapter was merged into
// them or where texts gives others, in the order of Towers: everything else is copied from the model's own directory as it is. Each such component goes into one safetensors
// file with the names, shapes and data types it was read with. The folder dir must be new or empty, and it appears only
// when it is complete.
func (m *Model) Save(dir string, unet *Params, texts ...*Params) error {
	return m.save(dir, unet.Deferred(), texts)
}

// SaveMerged is Save with an adapter merged into the UNet's weights, as Merge does it, each when it is written.
func (m *Model) SaveMerged(dir string, unet *Params, a *Adapter, factors *Params, texts ...*Params) error {
	deferred, err := m.merging(unet, a, factors)
	if err != nil {
		return err
	}
	return m.save(dir, deferred, texts)
}

func (m *Model) save(dir string, unet []weights.Deferred, texts []*Params) error {
	defer engine.Sparing()()
	towers := slices.Clone(m.Towers)
	for i, p := range texts {
		towers[i].Params, towers[i].changed = p, true
	}
	changed := map[string]bool{"unet": true}
	for _, t := range towers {
		changed[t.Name] = t.changed
	}
	return files.WriteFolder(dir, func(partial string) error {
		if err := copyTree(m.Dir, partial, func(name string) bool { return changed[name] }); err != nil {
			return err
		}
		if err := m.saveComponent(partial, "unet", UNetWeightsName, unet); err != nil {
			return err
		}
		for _, t := range towers {
			if !t.changed {
				continue
			}
			if err := m.saveComponent(partial, t.Name, textWeightsName, t.Params.Deferred()); err != nil {
				return err
			}
		}
		return dropAbsentComponents(partial)
	})
}

func (m *Model) saveComponent(partial, name, base string, tensors []weights.Deferred) error {
	return writeComponent(m.path(name), filepath.Join(partial, name), func(folder string) error {
		return weights.WriteDeferred(filepath.Join(folder, base+".safetensors"), tensors, map[string]string{"format": "pt"})
	})
}

// copyTree copies the regular files of a pipeline, except below the top-level folders that skip names. Links are followed: a hub
// cache consists of them.
func copyTree(from, to string, skip func(name string) bool) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	for _, entry := range entries {
		if skip(entry.Name()) {
			continue
		}
		source, target := filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())
		info, err := os.Stat(source)
		if err != nil {
			return fmt.Errorf("model: %w", err)
		}
		switch {
		case info.IsDir():
			if err := os.Mkdir(target, 0o755); err != nil {
				return fmt.Errorf("output: %w", err)
			}
			if err := copyTree(source, target, func(string) bool { return false }); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			if err := copyFile(source, target); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	return nil
}
