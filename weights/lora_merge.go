package weights

import (
	"fmt"
	"slices"
)

// mergedSource shows a base model with an adapter added to its weights.
type mergedSource struct {
	Source
	layers   map[string]*LoRALayer // by the name of the weight they change
	strength float64
}

// Merge returns base, the weights of one component, with the layers of the adapter merged into it:
// W + strength·(alpha/rank)·Up·Down for the tensor MODULE.weight of every module, all others as they are. A weight is
// [out, in] or, of a convolution, [out, in, height, width]. It is computed in float64 when the tensor is asked for, and
// rounded to the weight's own dtype. The result's Path is the base's; closing it closes base.
//
// The adapter's modules must be called as base calls them; see [LoRA.Resolve] and [LoRA.Of]. It returns one error that
// lists all modules that base does not have and all whose sizes differ.
func Merge(base Source, lora *LoRA, strength float64) (FileSource, error) {
	if !isFinite(strength) {
		return nil, fmt.Errorf("LoRA strength is %g; use a finite number such as 1", strength)
	}
	if len(lora.Layers) > 0 {
		if err := lora.check(); err != nil {
			return nil, err
		}
	}
	names := base.Names()
	merged := &mergedSource{Source: base, layers: map[string]*LoRALayer{}, strength: strength}
	var missing, unfit []string
	for i := range lora.Layers {
		layer := &lora.Layers[i]
		name := layer.Module + ".weight"
		if _, found := slices.BinarySearch(names, name); !found {
			missing = append(missing, layer.Module)
			continue
		}
		weight, err := base.Tensor(name)
		if err != nil {
			return nil, err
		}
		if !layer.fits(weight.Shape) || !weight.DType.IsFloat() {
			unfit = append(unfit, fmt.Sprintf("%s (adapter %v, weight %s %v)", layer.Module, layer.changeShape(), weight.DType, weight.Shape))
			continue
		}
		if merged.layers[name] != nil {
			return nil, fmt.Errorf("LoRA module %q occurs in several components; merge each into its own weights", layer.Module)
		}
		merged.layers[name] = layer
	}
	if len(missing)+len(unfit) > 0 {
		slices.Sort(missing)
		slices.Sort(unfit)
		return nil, fmt.Errorf("the LoRA adapter does not fit the model (modules that the model lacks: %s; modules of another size: %s); use the model that it was trained on",
			few(missing), few(unfit))
	}
	return merged, nil
}

// Path returns the path of the file that holds the tensor before merging, "" if the base was not read from a file.
func (s *mergedSource) Path(name string) string {
	if base, ok := s.Source.(FileSource); ok {
		return base.Path(name)
	}
	return ""
}

// describe spares [Defer] the merging: type and shape are the base's.
func (s *mergedSource) describe(name string) (DType, []int, bool) {
	if known, ok := s.Source.(interface {
		describe(name string) (DType, []int, bool)
	}); ok {
		return known.describe(name)
	}
	return 0, nil, false
}

func (s *mergedSource) Tensor(name string) (*Tensor, error) {
	weight, err := s.Source.Tensor(name)
	if err != nil {
		return nil, err
	}
	layer := s.layers[name]
	if layer == nil {
		return weight, nil
	}
	if err := weight.check(); err != nil {
		return nil, err
	}
	data := make([]byte, len(weight.data))
	err = weight.file.guard(func() error {
		return layer.addTo(data, weight.data, weight.DType, s.strength*layer.Scale())
	})
	if err != nil {
		return nil, fmt.Errorf("tensor %q with the LoRA adapter: %w", name, err)
	}
	return New(name, weight.DType, weight.Shape, data)
}

// addTo writes weight + scale·Up·Down into merged; both hold [Out, In, kernel] elements of dtype.
func (l *LoRALayer) addTo(merged, weight []byte, dtype DType, scale float64) error {
	fields := l.fields()
	row := make([]float64, fields)
	stride := fields * dtype.Size()
	for o := range l.Out {
		span := o * stride
		decodeFloats(row, dtype, weight[span:span+stride])
		for r := range l.Rank {
			up := scale * float64(l.Up[o*l.Rank+r])
			for i, down := range l.Down[r*fields : (r+1)*fields] {
				row[i] += up * float64(down)
			}
		}
		if i := encodeFloats(merged[span:span+stride], dtype, row); i >= 0 {
			return fmt.Errorf("element [%d, %d] becomes %g, beyond the range of %s; lower the strength", o, i, row[i], dtype)
		}
	}
	return nil
}
