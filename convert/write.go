package convert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/tokenizer"
	"github.com/resalign/resalign/weights"
)

// convertTypes makes all floating-point tensors those of one type when they are read.
func (m *model) convertTypes(dtype weights.DType) error {
	if dtype == 0 {
		return nil
	}
	if !dtype.IsFloat() {
		return fmt.Errorf("%s holds whole numbers; choose a floating-point type", dtype)
	}
	for _, tensors := range m.tensors {
		for i, d := range tensors {
			if !d.DType.IsFloat() || d.DType == dtype {
				continue
			}
			tensors[i].DType = dtype
			tensors[i].Read = func() (*weights.Tensor, error) {
				t, err := d.Read()
				if err != nil {
					return nil, err
				}
				if t, err = t.As(dtype); err != nil {
					return nil, fmt.Errorf("%s: %w", m.in, err)
				}
				return t, nil
			}
		}
	}
	return nil
}

// watched counts tensors as they are written and ends the writing once the context does.
func (m *model) watched(ctx context.Context, tensors []weights.Deferred, total int, progress func(done, total int)) []weights.Deferred {
	out := slices.Clone(tensors)
	for i, d := range out {
		out[i].Read = func() (*weights.Tensor, error) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			t, err := d.Read()
			if err != nil {
				return nil, err
			}
			m.result.Tensors++
			m.result.Bytes += d.Bytes()
			if progress != nil {
				progress(m.result.Tensors, total)
			}
			return t, nil
		}
	}
	return out
}

// writeUNet writes the UNet's state dictionary.
func (m *model) writeUNet(ctx context.Context, out string, progress func(done, total int)) error {
	m.result.note("the file holds the UNet alone; its configuration and the rest of the model stay in the model it came from")
	unet := m.tensors["unet"]
	return weights.WriteDeferred(out, m.watched(ctx, unet, len(unet), progress), map[string]string{"format": "pt"})
}

// writeSingle writes all components under their original names.
func (m *model) writeSingle(ctx context.Context, out string, progress func(done, total int)) error {
	var all []weights.Deferred
	for _, c := range m.arch.components {
		parameters := map[string]weights.Deferred{}
		for _, d := range m.tensors[c.folder] {
			parameters[d.Name] = d
		}
		for _, l := range c.links {
			var parts []weights.Deferred
			for _, name := range l.names {
				parts = append(parts, parameters[name])
			}
			d, err := l.join(c.prefix, parts)
			if err != nil {
				return err
			}
			all = append(all, d)
		}
	}
	if err := m.noteWhatASingleFileLacks(); err != nil {
		return err
	}
	return weights.WriteDeferred(out, m.watched(ctx, all, len(all), progress), m.metadata())
}

// metadata describes the model in the words of the public model specification (Stability AI, modelspec), by which the
// prediction is found again.
func (m *model) metadata() map[string]string {
	architecture := map[Family]string{SD1: "stable-diffusion-v1", SD2: "stable-diffusion-v2-512", SDXL: "stable-diffusion-xl-v1-base"}[m.arch.family]
	metadata := map[string]string{"format": "pt", "modelspec.sai_model_spec": "1.0.0"}
	switch m.prediction {
	case diffusion.Epsilon:
		metadata["modelspec.prediction_type"] = "epsilon"
	case diffusion.VPrediction:
		metadata["modelspec.prediction_type"] = "v"
		if m.arch.family == SD2 {
			architecture = "stable-diffusion-v2-768-v"
		}
	}
	side := m.arch.unet.SampleSize * m.arch.vae.Downscale()
	metadata["modelspec.resolution"] = fmt.Sprintf("%dx%d", side, side)
	metadata["modelspec.architecture"] = architecture
	return metadata
}

// noteWhatASingleFileLacks says what is needed beside the file.
func (m *model) noteWhatASingleFileLacks() error {
	files, err := presetOf(m.arch.family, m.prediction)
	if err != nil {
		return err
	}
	published, err := settings{"preset " + string(m.arch.family), files}.readArchitecture()
	if err != nil {
		return err
	}
	published.unet.SampleSize, published.vae.SampleSize = m.arch.unet.SampleSize, m.arch.vae.SampleSize
	same := reflect.DeepEqual(published.unet, m.arch.unet) && reflect.DeepEqual(published.vae, m.arch.vae) && slices.Equal(published.towers, m.arch.towers)
	if !same {
		m.result.note("the file does not hold the configurations, which are not those of the published models: reading it again needs --base with this model's directory")
	} else if !m.preset {
		m.result.note("the file holds neither scheduler nor tokenizer: read again, they are those of the published models, unless --base names this model's directory")
	}
	if m.arch.family == SD2 {
		m.result.note("the last layer of OpenCLIP's text encoder, which Stable Diffusion 2 does not use, is not in the file; programs that build it must accept that it is missing")
	}
	return nil
}

// weightsOf is the name of a component's weights file.
func (c *component) weightsOf() string { return c.base + ".safetensors" }

// writeFolder writes a diffusers directory.
func (m *model) writeFolder(ctx context.Context, out string, progress func(done, total int)) error {
	return files.WriteFolder(out, func(partial string) error {
		if err := m.writeSettings(ctx, partial); err != nil {
			return err
		}
		total := 0
		for _, tensors := range m.tensors {
			total += len(tensors)
		}
		for _, c := range m.arch.components {
			path := filepath.Join(partial, c.folder, c.weightsOf())
			tensors := m.watched(ctx, m.tensors[c.folder], total, progress)
			if err := weights.WriteDeferred(path, tensors, map[string]string{"format": "pt"}); err != nil {
				return err
			}
		}
		return nil
	})
}

// writeSettings puts everything but the weights into the folder: the folders that model_index.json names are copied as
// they are, and of a component with weights its config.json.
func (m *model) writeSettings(ctx context.Context, folder string) error {
	if err := copyFile(m.settings, "model_index.json", folder); err != nil {
		return err
	}
	folders := slices.Clone(m.arch.folders)
	for _, c := range m.arch.components { // which are there whether or not the index names them
		folders = append(folders, c.folder)
	}
	slices.Sort(folders)
	for _, name := range slices.Compact(folders) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var err error
		switch {
		case m.arch.component(name) != nil:
			err = copyFile(m.settings, name+"/config.json", folder)
		case m.preset:
			err = m.writePreset(name, folder)
		default:
			err = copyTree(ctx, m.settings, name, folder, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writePreset writes a folder that a preset describes.
func (m *model) writePreset(name, folder string) error {
	target := filepath.Join(folder, name)
	if err := os.Mkdir(target, 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	switch name {
	case "scheduler":
		content, err := scheduler(m.settings.files, m.prediction, m.zeroSNR)
		if err != nil {
			return err
		}
		return writeFile(filepath.Join(target, "scheduler_config.json"), content)
	case "tokenizer", "tokenizer_2":
		// OpenAI's text encoder was trained on prompts that are filled up with the end token, OpenCLIP's with token 0.
		padding := "<|endoftext|>"
		if m.arch.family == SD2 || name == "tokenizer_2" {
			padding = "!"
		}
		return tokenizer.WriteCLIP(target, padding)
	}
	return fmt.Errorf("preset: there is no folder %q", name)
}

func writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	return nil
}

// copyFile copies a small file of the settings; name uses slashes.
func copyFile(from settings, name, folder string) error {
	content, err := from.read(name)
	if err != nil {
		return err
	}
	target := filepath.Join(folder, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	return writeFile(target, content)
}

// copyTree copies a folder of the settings. Links are followed: a hub cache consists of them.
func copyTree(ctx context.Context, from settings, name, folder string, depth int) error {
	const deepest = 8
	if depth > deepest {
		return fmt.Errorf("%s: folders are nested more than %d deep; check for links that lead in circles", from.name(name), deepest)
	}
	entries, err := fs.ReadDir(from.files, name)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", from.name(name), cause(err))
	}
	target := filepath.Join(folder, filepath.FromSlash(name))
	if err := os.Mkdir(target, 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	for _, entry := range entries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		inside := path.Join(name, entry.Name())
		info, err := fs.Stat(from.files, inside)
		if err != nil {
			return fmt.Errorf("%s cannot be read: %w", from.name(inside), cause(err))
		}
		switch {
		case info.IsDir():
			err = copyTree(ctx, from, inside, folder, depth+1)
		case info.Mode().IsRegular():
			err = copyContent(from, inside, filepath.Join(folder, filepath.FromSlash(inside)))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// copyContent copies a file of any size.
func copyContent(from settings, name, target string) (err error) {
	in, err := from.files.Open(name)
	if err != nil {
		return fmt.Errorf("%s cannot be read: %w", from.name(name), cause(err))
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := os.Create(target)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("%s cannot be copied: %w; make sure that the disk has room", from.name(name), err)
	}
	return nil
}
