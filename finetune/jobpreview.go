package finetune

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/sd"
)

// Preview makes a grid of pictures now and then.
type Preview struct {
	Every   int              `toml:"every"` // steps; 0: never
	Prompts []string         `toml:"prompts"`
	Options generate.Options `toml:"options"`
}

// previewColumns is how many pictures stand side by side.
const previewColumns = 4

// check finds out whether a model can make the pictures, so that no run ends at its first preview.
func (p Preview) check(ctx context.Context, m *sd.Model) error {
	if p.Every == 0 {
		return nil
	}
	net := denoise.NewNetwork(m)
	defer net.Free()
	point, err := net.Point(m.UNetParams.Tensors)
	if err != nil {
		return err
	}
	if _, err := generate.New(ctx, net, point, p.Options, nil); err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	return nil
}

// save draws one picture for each prompt with the weights as they are after the given number of steps.
func (p Preview) save(ctx context.Context, dir string, net *denoise.Network, point denoise.Point, cache *data.Cache, seed uint64, done int) error {
	if done%p.Every != 0 {
		return nil
	}
	g, err := generate.New(ctx, net, point, p.Options, cache)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	var pictures []*data.RGB
	for i, prompt := range p.Prompts {
		picture, err := g.Picture(ctx, prompt, generate.Seed{Run: seed, Prompt: i})
		if err != nil {
			return fmt.Errorf("preview: %w", err)
		}
		pictures = append(pictures, picture.Image)
	}
	grid, err := data.Grid(pictures, previewColumns, p.Prompts)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	return data.SavePNG(filepath.Join(dir, fmt.Sprintf("step-%08d.png", done)), grid)
}
