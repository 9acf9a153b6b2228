package finetune

import (
	"context"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// prepareSpectrum decomposes the UNet's weights and lays out the network of one whose singular values are shifted, from
// zero on.
func (t *tuning) prepareSpectrum(ctx context.Context, start *sd.Params, d Data, h Hooks) (groups [][]*engine.Tensor, err error) {
	t.spectrum = t.model.NewSpectrum()
	progress := func(done, total int) {
		if h.OnWork != nil {
			h.OnWork("decomposing weights", done, total)
		}
	}
	if t.fixed, err = denoise.Decompose(ctx, t.model, start, t.spectrum, d.Cache, progress); err != nil {
		return nil, err
	}
	for _, s := range t.spectrum.Specs() {
		t.initial = append(t.initial, engine.Float32s(make([]float32, s.Size()), s.Shape...))
	}
	t.net = denoise.NewSpectralNetwork(t.model, t.spectrum)
	t.selected = t.net.Group(1)
	return [][]*engine.Tensor{t.initial, t.fixed}, nil
}
