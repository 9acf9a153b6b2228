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

// Merge returns base with the adapter merged into it: W + strength·(alpha/rank)·Up·Down for the tensor MODULE.weight of
// every module, all others as they are. A weight is [out, in], or [out, in, 1, 1] for a 1×1 convolution. It is computed
// in float64 when the tensor is asked for, and rounded to the weight's own dtype. The result's Path is the base's; closing it
// closes base.
//
// It returns one error that lists all modules that base does not have and all whose sizes differ.
func Merge(base Source, lora *LoRA, strength float64) (FileSource, error) {
	if !isFinite(strength) {
		return nil, fmt.Errorf("LoRA strength is %g; use a finite number such as 1", strength)
	}
	byModule, err := lora.byModule()
	if err != nil {
		return nil, err
	}
	names := base.Names()
	merged := &mergedSource{Source: base, layers: map[string]*LoRALayer{}, strength: strength}
	var missing, unfit []string
	for module, layer := range byModule {
		name := module + ".weight"
		if _, found := slices.BinarySearch(names, name); !found {
			missing = append(missing, module)
			continue
		}
		weight, err := base.Tensor(name)
		if err != nil {
			return nil, err
		}
		if !layer.fits(weight) {
			unfit = append(unfit, fmt.Sprintf("%s (adapter [%d, %d], weight %s %v)", module, layer.Out, layer.In, weight.DType, weight.Shape))
			continue
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

// fits reports whether the layer's change has the size of a weight, and the weight is made of floating-point numbers.
func (l *LoRALayer) fits(weight *Tensor) bool {
	s := weight.Shape
	if len(s) == 4 && s[2] == 1 && s[3] == 1 {
		s = s[:2]
	}
	return len(s) == 2 && s[0] == l.Out && s[1] == l.In && weight.DType.IsFloat()
}

// Path returns the path of the file that holds the tensor before merging, "" if the base was not read from a file.
func (s *mergedSource) Path(name string) string {
	if base, ok := s.Source.(FileSource); ok {
		return base.Path(name)
	}
	return ""
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

// addTo writes weight + scale·Up·Down into merged; both hold [Out, In] elements of dtype.
func (l *LoRALayer) addTo(merged, weight []byte, dtype DType, scale float64) error {
	row := make([]float64, l.In)
	stride := l.In * dtype.Size()
	for o := range l.Out {
		span := o * stride
		decodeFloats(row, dtype, weight[span:span+stride])
		for r := range l.Rank {
			up := scale * float64(l.Up[o*l.Rank+r])
			for i, down := range l.Down[r*l.In : (r+1)*l.In] {
				row[i] += up * float64(down)
			}
		}
		if i := encodeFloats(merged[span:span+stride], dtype, row); i >= 0 {
			return fmt.Errorf("element [%d, %d] becomes %g, beyond the range of %s; lower the strength", o, i, row[i], dtype)
		}
	}
	return nil
}
