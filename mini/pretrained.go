package mini

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/weights"
)

// pretrained is the miniature as `resalign mini` makes it with its published settings: an ordinary diffusers directory
// and the detector. It is carried so that the experiment need not begin with ten minutes of training.
//
//go:embed pretrained
var pretrained embed.FS

// WritePretrained writes the carried model to dir/model and the detector to dir/detector.safetensors. Files of these
// names that are already there are replaced.
func WritePretrained(dir string) error {
	return fs.WalkDir(pretrained, "pretrained", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel("pretrained", filepath.FromSlash(path))
		if err != nil {
			return err
		}
		target := filepath.Join(dir, relative)
		if entry.IsDir() {
			if err := os.MkdirAll(target, 0o755); err != nil {
				return fmt.Errorf("output: %w", err)
			}
			return nil
		}
		content, err := pretrained.ReadFile(path)
		if err != nil {
			return err
		}
		return writeFile(target, content)
	})
}

// Labeller is the detector as audits use it. It may be used concurrently.
type Labeller struct {
	detector *Detector
	version  string
}

var _ score.Detector = (*Labeller)(nil)

// OpenDetector loads a detector's file for an audit.
func OpenDetector(e *engine.Engine, path string) (*Labeller, error) {
	d, err := LoadDetector(e, path)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(path)
	if err != nil {
		d.Free()
		return nil, fmt.Errorf("detector: %w", err)
	}
	return newLabeller(d, content), nil
}

// PretrainedDetector opens the detector that this program carries.
func PretrainedDetector(e *engine.Engine) (*Labeller, error) {
	const name = "pretrained/detector.safetensors"
	content, err := pretrained.ReadFile(name)
	if err != nil {
		return nil, err
	}
	source, err := weights.Parse(content, name)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	d, err := loadDetector(e, source, name)
	if err != nil {
		return nil, err
	}
	return newLabeller(d, content), nil
}

func newLabeller(d *Detector, file []byte) *Labeller {
	return &Labeller{d, fmt.Sprintf("%x", sha256.Sum256(file))[:12]}
}

// Name says which detector it is; its version is the beginning of the SHA-256 of its file.
func (l *Labeller) Name() string { return "miniature shapes and colours " + l.version }

// Free releases the detector.
func (l *Labeller) Free() { l.detector.Free() }

// Detect labels pictures of the miniature's size with their shape and colour.
func (l *Labeller) Detect(ctx context.Context, pictures []*data.RGB) ([]score.Finding, error) {
	pixels := make([][]float32, len(pictures))
	for i, p := range pictures {
		if p.Width != Side || p.Height != Side {
			return nil, fmt.Errorf("the miniature's detector looks at pictures of %d×%d pixels, not %d×%d; make them of that size", Side, Side, p.Width, p.Height)
		}
		pixels[i] = p.Pixels()
	}
	found, err := l.detector.Detect(ctx, pixels)
	if err != nil {
		return nil, err
	}
	findings := make([]score.Finding, len(found))
	for i, d := range found {
		findings[i].Labels = score.Labels{"shape": d.Shape, "colour": d.Colour}
	}
	return findings, nil
}
