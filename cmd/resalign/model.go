package main

import (
	"errors"
	"path/filepath"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// loadModel reads a diffusers directory and, if lora is given, merges that adapter into the weights of its UNet, at
// strength one and in the data type of the files.
func loadModel(e *engine.Engine, dir, lora string) (*sd.Model, error) {
	var adapter *weights.LoRA
	if lora != "" {
		var err error
		if adapter, err = weights.ReadLoRA(lora); err != nil { // first: a wrong file shows before the model is read
			return nil, err
		}
	}
	m, err := sd.Load(e, dir)
	if err != nil || adapter == nil {
		return m, err
	}
	if err := mergeAdapter(m, adapter); err != nil {
		m.Free()
		return nil, err
	}
	return m, nil
}

func mergeAdapter(m *sd.Model, adapter *weights.LoRA) (err error) {
	where := unetFolder(m.Dir)
	base, err := weights.OpenComponent(where, sd.UNetWeightsName)
	if err != nil {
		return err
	}
	merged, err := weights.Merge(base, adapter, 1)
	if err != nil {
		return errors.Join(err, base.Close())
	}
	defer func() { err = errors.Join(err, merged.Close()) }() // closes base too
	params, err := sd.LoadParams(merged, where, m.UNet.Specs(), nil, nil)
	if err != nil {
		return err
	}
	m.UNetParams.Free()
	m.UNetParams = params
	return nil
}

func unetFolder(model string) string { return filepath.Join(model, "unet") }
