package verify

import (
	"fmt"
	"math"
	"strings"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// readAdapter makes the adapter that the tensors theta.* describe, and puts its numbers into start.
func (p *problem) readAdapter() error {
	lora, err := p.lora("theta.")
	if err != nil {
		return err
	}
	factors := map[string]weights.LoRALayer{}
	for _, l := range lora.Layers {
		factors[l.Module] = l
	}
	all, err := p.model.AttentionLayers()
	if err != nil {
		return err
	}
	var layers []sd.Layer // in the order of the model
	for _, l := range all {
		if f, ok := factors[l.Path]; ok {
			if f.In != l.In || f.Out != l.Out {
				return fmt.Errorf("%s: theta.* adapts %s with %d inputs and %d outputs, but the layer has %d and %d", p.ref.path, l.Path, f.In, f.Out, l.In, l.Out)
			}
			layers = append(layers, l)
			delete(factors, l.Path)
		}
	}
	for module := range factors {
		return fmt.Errorf("%s: theta.* adapts %q, which is no attention layer of the model; use the names of its layers", p.ref.path, module)
	}
	first := lora.Layers[0]
	if p.adapter, err = sd.NewAdapter(layers, first.Rank, first.Scale()); err != nil {
		return fmt.Errorf("%s: theta.*: %w", p.ref.path, err)
	}
	p.start, err = p.readVector("theta.")
	p.keep(p.start)
	return err
}

// lora reads the low-rank factors called PREFIX…, in the naming of diffusers' attention processors.
func (p *problem) lora(prefix string) (*weights.LoRA, error) {
	var tensors []*weights.Tensor
	for _, name := range p.ref.source.Names() {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		t, err := p.ref.tensor(name)
		if err != nil {
			return nil, err
		}
		tensors = append(tensors, t.Renamed(rest))
	}
	source, err := weights.NewSource(tensors, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: tensors %s*: %w", p.ref.path, prefix, err)
	}
	lora, err := weights.LoRAFrom(source)
	if err != nil {
		return nil, fmt.Errorf("%s: tensors %s*: %w", p.ref.path, prefix, err)
	}
	return lora, nil
}

// factors reads the factors called PREFIX… in the order of the adapter's parameters.
func (p *problem) factors(prefix string) ([][]float32, error) {
	lora, err := p.lora(prefix)
	if err != nil {
		return nil, err
	}
	at := map[string]weights.LoRALayer{}
	for _, l := range lora.Layers {
		at[l.Module] = l
	}
	var values [][]float32
	for _, l := range p.adapter.Layers {
		f, ok := at[l.Path]
		if !ok {
			return nil, fmt.Errorf("%s: tensors %s*: there are none for the layer %s; write the file again with them", p.ref.path, prefix, l.Path)
		}
		if f.In != l.In || f.Out != l.Out || f.Rank != p.adapter.Rank {
			return nil, fmt.Errorf("%s: tensors %s*: those for the layer %s have rank %d, %d inputs and %d outputs instead of %d, %d and %d",
				p.ref.path, prefix, l.Path, f.Rank, f.In, f.Out, p.adapter.Rank, l.In, l.Out)
		}
		values = append(values, f.Down, f.Up)
	}
	return values, nil
}

// readVector puts the factors called PREFIX… on the device.
func (p *problem) readVector(prefix string) (denoise.Vector, error) {
	values, err := p.factors(prefix)
	if err != nil {
		return nil, err
	}
	params, err := sd.FromHost(p.adapter.Specs(), values)
	if err != nil {
		return nil, err
	}
	return params.Tensors, nil
}

// compareVector compares factors with those called PREFIX….
func (p *problem) compareVector(name, prefix string, got denoise.Vector, tolerance float64) error {
	want, err := p.factors(prefix)
	if err != nil {
		return err
	}
	g := newGroup(name, tolerance)
	for i, s := range p.adapter.Specs() {
		values, err := engine.Values(got[i])
		if err != nil {
			return err
		}
		g.add(s.Name, values, want[i])
	}
	p.compare(g)
	return nil
}

// compareDisplacement compares the way from θ to v with that to the factors called PREFIX….
func (p *problem) compareDisplacement(name, prefix string, v denoise.Vector) error {
	want, err := p.factors(prefix)
	if err != nil {
		return err
	}
	g := newGroup(name, toleranceWay)
	for i, s := range p.adapter.Specs() {
		got, err := engine.Values(v[i])
		if err != nil {
			return err
		}
		from, err := engine.Values(p.start[i])
		if err != nil {
			return err
		}
		for k, x := range from {
			got[k] -= x
			want[i][k] -= x
		}
		g.add(s.Name, got, want[i])
	}
	p.compare(g)
	return nil
}

// norm is the Euclidean norm.
func norm(values []float32) float64 {
	sum := 0.0
	for _, v := range values {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}
