package finetune

import (
	"context"
	"slices"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// Result is an adapted model. Free it when it is not needed any more.
type Result struct {
	UNet    *sd.Params  // the model's weights; with an adapter the unchanged ones
	Adapter *sd.Adapter // LoRA only
	Factors *sd.Params  // LoRA only
	Text    *sd.Params  // the text encoder's weights where it was trained as well; nil elsewhere
	Text2   *sd.Params  // SDXL: those of the second one
	Concept *sd.Concept // the word that was learnt; nil elsewhere

	Spectrum *sd.Spectrum     // SVDiff only: what the shifts below, which UNet contains, are of
	Shifts   []*engine.Tensor // SVDiff only

	owned []*engine.Tensor
}

// Free releases what the fine-tuning made.
func (r *Result) Free() { engine.Free(r.owned...) }

// Save writes the adapted model m as a diffusers directory, with an adapter merged into it. A new word is not part of it: see
// [sd.Concept.Write].
func (r *Result) Save(m *sd.Model, dir string) error {
	var texts []*sd.Params
	for _, text := range []*sd.Params{r.Text, r.Text2} {
		if text != nil {
			texts = append(texts, text)
		}
	}
	if r.Adapter != nil {
		return m.SaveMerged(dir, r.UNet, r.Adapter, r.Factors, texts...)
	}
	return m.Save(dir, r.UNet, texts...)
}

// result hands the parameters over: the average where one was kept, the last ones otherwise.
func (t *tuning) result(start *sd.Params) (*Result, error) {
	point, owned := t.descent.Release()
	final := t.selected.Of(point)
	var parts []*engine.Tensor
	if owned {
		parts = append(parts, final...)
	}
	if t.average != nil {
		final = t.average
		parts = append(parts, final...)
	}
	r := &Result{}
	if err := t.describe(r, start, point, final); err != nil {
		r.Free()
		return nil, err
	}
	r.owned = slices.Concat(r.owned, parts, t.initial)
	return r, nil
}

// describe fills a result for parameters, final, in place of those of a point.
func (t *tuning) describe(r *Result, start *sd.Params, point denoise.Point, final denoise.Vector) (err error) {
	r.UNet, r.Adapter = start, t.adapter
	whole := t.selected.Put(point, final)
	unet := len(start.Tensors)
	switch {
	case t.adapter != nil:
		r.Factors = t.adapter.Params(final)
	case t.config.learns():
		r.Concept, err = t.concept(final[len(final)-1])
		if t.config.Method == Custom {
			r.UNet = start.WithTensors(whole[:unet:unet])
		}
	case t.config.TrainTextEncoder:
		r.UNet = start.WithTensors(whole[:unet:unet])
		rest := whole[unet:]
		for i, tower := range t.model.Towers {
			n := len(tower.Params.Tensors)
			text := tower.Params.WithTensors(rest[:n:n])
			if rest = rest[n:]; i == 0 {
				r.Text = text
			} else {
				r.Text2 = text
			}
		}
	case t.spectrum != nil:
		var made []*engine.Tensor
		r.UNet, made, err = t.model.MergeSpectrum(start, t.spectrum, final, t.fixed)
		r.owned = append(r.owned, made...)
		r.Spectrum, r.Shifts = t.spectrum, final
	default:
		r.UNet = start.WithTensors(whole)
	}
	return err
}

// adapted calls the hook with the model as it stands.
func (t *tuning) adapted(ctx context.Context, start *sd.Params, h Hooks, done int) error {
	if h.Adapted == nil || !slices.Contains(h.AdaptedAt, done) {
		return nil
	}
	r := &Result{}
	defer r.Free()
	if err := t.describe(r, start, t.descent.Point(), t.descent.Selected()); err != nil {
		return err
	}
	return h.Adapted(ctx, done, r)
}
