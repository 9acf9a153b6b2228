package sd

import (
	"errors"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

// LoadWithLoRA is [Load] for a model that wears an adapter: the LoRA file, if its name is not empty, is merged into the
// weights of the UNet at strength one, in the data type of the model's files.
func LoadWithLoRA(e *engine.Engine, dir, lora string) (*Model, error) {
	if lora == "" {
		return Load(e, dir)
	}
	adapter, err := weights.ReadLoRA(lora) // first: a wrong file shows before the model is read
	if err != nil {
		return nil, err
	}
	m, err := Load(e, dir)
	if err != nil {
		return nil, err
	}
	if err := m.mergeFile(adapter); err != nil {
		m.Free()
		return nil, err
	}
	return m, nil
}

// mergeFile reads the UNet's weights again with an adapter merged into them.
func (m *Model) mergeFile(adapter *weights.LoRA) (err error) {
	base, err := weights.OpenComponent(m.path("unet"), UNetWeightsName)
	if err != nil {
		return err
	}
	merged, err := weights.Merge(base, adapter, 1)
	if err != nil {
		return errors.Join(err, base.Close())
	}
	defer func() { err = errors.Join(err, merged.Close()) }() // closes base too
	params, err := LoadParams(merged, m.path("unet"), m.UNet.Specs(), nil, nil)
	if err != nil {
		return err
	}
	m.UNetParams.Free()
	m.UNetParams = params
	return nil
}
