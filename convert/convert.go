// Package convert carries Stable Diffusion models between the layouts in which they are passed around: diffusers
// directories, single files with the names of CompVis's and Stability AI's original code, and the state dictionary of a
// UNet alone.
//
// Names are translated by rules that are derived from a model's configuration, the same ones in both directions, so there
// and back again gives the same bits. Tensors are carried one at a time, whatever the model's size. What a target cannot
// hold is left out and listed, never silently.
package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/weights"
)

// Kind is a layout of a model on disk.
type Kind string

// The layouts.
const (
	Diffusers  Kind = "diffusers"   // a directory with model_index.json
	SingleFile Kind = "single-file" // all weights under the names of the original code
	UNetFile   Kind = "unet"        // the UNet's state dictionary under diffusers' names
)

// Options refine a conversion. The zero value converts as the names of the paths suggest.
type Options struct {
	// To is what to write; empty: a single file if the path ends in .safetensors, a diffusers directory otherwise.
	To Kind
	// Base is a diffusers directory that gives what the input does not hold: for a single file the configurations,
	// tokenizers and scheduler of its architecture, and components it lacks; for a UNet everything else. Without it a
	// single file must have the architecture of the published models.
	Base string
	// DType is the type of all floating-point tensors written; 0 keeps each one's own.
	DType weights.DType
	// EMA takes the moving average of the UNet's weights from a single file that holds it beside them.
	EMA bool
	// Prediction says what the UNet of a single file predicts where the file does not: epsilon or v_prediction.
	Prediction diffusion.PredictionType
	// Progress is called after each tensor written.
	Progress func(done, total int)
}

// Result is what a conversion did.
type Result struct {
	From       Kind                     `json:"from"`
	To         Kind                     `json:"to"`
	Family     Family                   `json:"family"`
	Prediction diffusion.PredictionType `json:"prediction"`
	Tensors    int                      `json:"tensors"` // written
	Bytes      int64                    `json:"bytes"`   // of their elements
	LeftOut    []LeftOut                `json:"left_out"`
	Notes      []string                 `json:"notes"` // what the reader of the output should know
}

// LeftOut are tensors of the input that the output does not hold.
type LeftOut struct {
	What    string `json:"what"`
	Tensors int    `json:"tensors"`
}

func (r *Result) leaveOut(what string) {
	for i := range r.LeftOut {
		if r.LeftOut[i].What == what {
			r.LeftOut[i].Tensors++
			return
		}
	}
	r.LeftOut = append(r.LeftOut, LeftOut{what, 1})
}

func (r *Result) note(format string, args ...any) {
	r.Notes = append(r.Notes, fmt.Sprintf(format, args...))
}

// Convert reads the model in, of any layout, and writes it as out, which must not exist (a folder may if it is empty) and
// which appears whole or not at all. Every missing, unknown and misshapen tensor is listed in one error.
func Convert(ctx context.Context, in, out string, o Options) (_ *Result, err error) {
	to, err := target(out, o.To)
	if err != nil {
		return nil, err
	}
	m, err := read(in, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	m.result.To = to
	if err := m.convertTypes(o.DType); err != nil {
		return nil, err
	}
	switch to {
	case SingleFile:
		err = m.writeSingle(ctx, out, o.Progress)
	case UNetFile:
		err = m.writeUNet(ctx, out, o.Progress)
	default:
		if err := apart(out, in, o.Base); err != nil {
			return nil, err
		}
		err = m.writeFolder(ctx, out, o.Progress)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%s is not written, as the conversion was interrupted: %w", out, ctx.Err())
	case err != nil:
		return nil, err
	}
	return m.result, nil
}

// target decides what to write and whether it can be written there.
func target(out string, to Kind) (Kind, error) {
	extension := strings.ToLower(filepath.Ext(out))
	if to == "" {
		to = Diffusers
		if extension == ".safetensors" {
			to = SingleFile
		}
	}
	switch {
	case to != Diffusers && to != SingleFile && to != UNetFile:
		return "", fmt.Errorf("%q is no layout; use %s, %s or %s", to, Diffusers, SingleFile, UNetFile)
	case extension == ".ckpt" || extension == ".pt" || extension == ".pth" || extension == ".bin":
		return "", fmt.Errorf("%s: PyTorch's pickled files are read but not written, as opening one executes what is in it; name a .safetensors file", out)
	case to == Diffusers && extension == ".safetensors":
		return "", fmt.Errorf("%s is the name of a file, but a diffusers model is a directory; name a folder", out)
	case to != Diffusers && extension != ".safetensors":
		return "", fmt.Errorf("%s: a %s model is a safetensors file; give it a name that ends in .safetensors", out, to)
	}
	info, err := os.Lstat(out)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return to, nil
	case err != nil:
		return "", fmt.Errorf("output: %w", err)
	case to == Diffusers && info.IsDir():
		return to, nil // files.WriteFolder refuses it unless it is empty
	}
	return "", fmt.Errorf("%s exists already and is never overwritten; name another output", out)
}

// apart returns an error if the folder out lies in one that is read: it would be copied into itself.
func apart(out string, inputs ...string) error {
	parent, err := realPath(filepath.Dir(filepath.Clean(out)))
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	for _, in := range inputs {
		if in == "" {
			continue
		}
		folder, err := realPath(in)
		if err != nil {
			return fmt.Errorf("output: %w", err)
		}
		if relative, err := filepath.Rel(folder, parent); err == nil && filepath.IsLocal(relative) {
			return fmt.Errorf("%s lies inside %s, which is read; name a folder outside of it", out, in)
		}
	}
	return nil
}

// realPath is the absolute path without links of the part of a path that exists.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	for rest := ""; ; {
		real, err := filepath.EvalSymlinks(path)
		if err == nil {
			return filepath.Join(real, rest), nil
		}
		parent := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || parent == path {
			return "", err
		}
		path, rest = parent, filepath.Join(filepath.Base(path), rest)
	}
}
