package sd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/weights"
)

// Save writes the pipeline with the UNet's weights replaced: everything else is copied from the model's own directory
// as it is. The UNet goes into one safetensors file with the names, shapes and data types it was read with. The folder
// dir must be new or empty, and it appears only when it is complete.
func (m *Model) Save(dir string, unet *Params) error {
	return files.WriteFolder(dir, func(partial string) error {
		if err := copyTree(m.Dir, partial, "unet"); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(partial, "unet"), 0o755); err != nil {
			return fmt.Errorf("output: %w", err)
		}
		if err := copyFile(m.path("unet", "config.json"), filepath.Join(partial, "unet", "config.json")); err != nil {
			return err
		}
		tensors, err := unet.Export()
		if err != nil {
			return err
		}
		target := filepath.Join(partial, "unet", UNetWeightsName+".safetensors")
		return weights.Write(target, tensors, map[string]string{"format": "pt"})
	})
}

// copyTree copies the regular files of a pipeline, except below the top-level folder skip. Links are followed: a hub
// cache consists of them.
func copyTree(from, to, skip string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("model: %w", err)
	}
	for _, entry := range entries {
		if entry.Name() == skip {
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
			if err := copyTree(source, target, ""); err != nil {
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
