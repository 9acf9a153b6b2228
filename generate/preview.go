package generate

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/sd"
)

// Preview is a grid of pictures that training makes now and then.
type Preview struct {
	Every   int      `toml:"every"` // steps (of unlearning: outer steps); 0: never
	Prompts []string `toml:"prompts"`
	Options Options  `toml:"options"`
}

// previewColumns is how many pictures stand side by side.
const previewColumns = 4

// Check finds out whether a model can make the pictures, so that no run ends at its first preview.
func (p Preview) Check(ctx context.Context, m *sd.Model) error {
	if p.Every == 0 {
		return nil
	}
	net := denoise.NewNetwork(m)
	defer net.Free()
	point, err := net.Point(m.UNetParams.Tensors)
	if err != nil {
		return err
	}
	if _, err := New(ctx, net, point, p.Options, nil); err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	return nil
}

// Save draws one picture for each prompt with the weights as they are after the given number of steps, done, if previews
// are due then, and puts the grid into the folder dir.
func (p Preview) Save(ctx context.Context, dir string, net *denoise.Network, point denoise.Point, cache *data.Cache, seed uint64, done int) error {
	if p.Every == 0 || done%p.Every != 0 {
		return nil
	}
	g, err := New(ctx, net, point, p.Options, cache)
	if err != nil {
		return fmt.Errorf("preview: %w", err)
	}
	var pictures []*data.RGB
	for i, prompt := range p.Prompts {
		picture, err := g.Picture(ctx, prompt, Seed{Run: seed, Prompt: i})
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
