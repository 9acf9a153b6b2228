package weights

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// LoRA is a low-rank adapter of a UNet: for some of its linear layers, a change W + (alpha/rank)·Up·Down of the weight
// (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3).
type LoRA struct {
	Layers []LoRALayer
}

// LoRALayer is the adapter of one linear layer.
type LoRALayer struct {
	Module        string    // the layer's path in the UNet, such as "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
	Down          []float32 // [Rank, In], applied first
	Up            []float32 // [Out, Rank]
	Rank, In, Out int
	Alpha         float64 // the change is scaled by Alpha/Rank; equal to Rank when a file says nothing
}

// Scale returns Alpha/Rank, by which Up·Down is multiplied.
func (l *LoRALayer) Scale() float64 { return l.Alpha / float64(l.Rank) }

// check returns an error unless the sizes agree and every number is finite.
func (l *LoRALayer) check() error {
	const most = 1 << 24 // far above any layer, and products of two still fit an int64
	if l.Rank <= 0 || l.In <= 0 || l.Out <= 0 || max(l.Rank, l.In, l.Out) > most ||
		int64(len(l.Down)) != int64(l.Rank)*int64(l.In) || int64(len(l.Up)) != int64(l.Out)*int64(l.Rank) {
		return fmt.Errorf("LoRA module %q: %d values down and %d up do not fit rank %d, %d inputs and %d outputs; give Down [rank, in] and Up [out, rank]",
			l.Module, len(l.Down), len(l.Up), l.Rank, l.In, l.Out)
	}
	if !isFinite(l.Alpha) {
		return fmt.Errorf("LoRA module %q: alpha is %g; it must be a finite number", l.Module, l.Alpha)
	}
	for _, factor := range [][]float32{l.Down, l.Up} {
		for _, v := range factor {
			if !isFinite(float64(v)) {
				return fmt.Errorf("LoRA module %q: a factor holds %g; the adapter is damaged or its training diverged, so use an earlier one", l.Module, v)
			}
		}
	}
	return nil
}

func isFinite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// ReadLoRA reads the adapter file at path, safetensors or PyTorch; see [LoRAFrom] for the names it may use.
func ReadLoRA(path string) (*LoRA, error) {
	source, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	lora, err := LoRAFrom(source)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return lora, nil
}

// LoRAFrom reads the UNet adapter that a source holds, its layers sorted by module. All of these names are understood, with
// or without "unet." in front:
//
//   - attention processors of older diffusers: ATTENTION.processor.to_q_lora.down.weight and .up.weight;
//   - PEFT and today's diffusers: MODULE.lora_A.weight (down) and MODULE.lora_B.weight (up);
//   - in between: MODULE.lora.down.weight, MODULE.lora_linear_layer.down.weight, and .up.weight;
//   - a scalar MODULE.alpha, or PEFT's configuration in the file's metadata, for the scale.
//
// It returns one error that lists every name that is none of these (of a text encoder, say, or of a convolution) and
// every factor whose other half is missing: an adapter is read whole or not at all.
func LoRAFrom(source Source) (*LoRA, error) {
	halves := map[string]*loraHalves{}
	var unknown []string
	for _, name := range source.Names() {
		module, part := splitLoRAName(name)
		if part == noPart {
			unknown = append(unknown, name)
			continue
		}
		h := halves[module]
		if h == nil {
			h = &loraHalves{module: module}
			halves[module] = h
		}
		t, err := source.Tensor(name)
		if err != nil {
			return nil, err
		}
		if h.part[part] != nil {
			return nil, fmt.Errorf("%s and %s are the same factor under two names; keep one of them", h.part[part].Name, name)
		}
		h.part[part] = t
	}
	if len(unknown) > 0 {
		return nil, fmt.Errorf("%d names are not LoRA factors of a UNet's linear layers in the naming of diffusers or PEFT: %s; remove or convert them",
			len(unknown), few(unknown))
	}
	var missing []string
	for _, h := range halves {
		for part, suffix := range map[loraPart]string{downPart: "down", upPart: "up"} {
			if h.part[part] == nil {
				missing = append(missing, h.module+" ("+suffix+")")
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, fmt.Errorf("%d LoRA factors have no counterpart; missing are %s; export the adapter again", len(missing), few(missing))
	}
	if len(halves) == 0 {
		return nil, errors.New("there are no LoRA factors; check that this is an adapter and not a model")
	}
	config, err := parsePEFTConfig(source.Metadata())
	if err != nil {
		return nil, err
	}
	lora := &LoRA{}
	for _, module := range slices.Sorted(maps.Keys(halves)) {
		layer, err := halves[module].layer(config)
		if err != nil {
			return nil, err
		}
		lora.Layers = append(lora.Layers, layer)
	}
	return lora, nil
}

type loraPart int

const (
	downPart loraPart = iota
	upPart
	alphaPart
	noPart
)

// loraHalves collects what a file says of one module.
type loraHalves struct {
	module string
	part   [3]*Tensor
}

var loraSuffixes = []struct {
	suffix string
	part   loraPart
}{
	{".lora_A.weight", downPart},
	{".lora_B.weight", upPart},
	{".lora_A.default.weight", downPart}, // PEFT's name for its only adapter
	{".lora_B.default.weight", upPart},
	{".lora.down.weight", downPart},
	{".lora.up.weight", upPart},
	{".lora_linear_layer.down.weight", downPart},
	{".lora_linear_layer.up.weight", upPart},
	{"_lora.down.weight", downPart}, // attention processors
	{"_lora.up.weight", upPart},
	{"_lora.alpha", alphaPart},
	{".alpha", alphaPart},
}

// splitLoRAName returns the module of a tensor's name and which part of its adapter the tensor is; noPart if the name
// is in no known form.
func splitLoRAName(name string) (module string, part loraPart) {
	module = strings.TrimPrefix(name, "base_model.model.")
	module = strings.TrimPrefix(module, "unet.")
	if strings.HasPrefix(module, "text_encoder") || strings.HasPrefix(module, "text_model.") || strings.HasPrefix(module, "lora_") {
		return "", noPart
	}
	for _, s := range loraSuffixes {
		path, ok := strings.CutSuffix(module, s.suffix)
		if !ok {
			continue
		}
		if s.suffix[0] == '_' {
			attention, layer, ok := cutLast(path, ".processor.")
			if !ok {
				return "", noPart
			}
			path = attention + "." + layer
		}
		if path == "" {
			return "", noPart
		}
		if strings.HasSuffix(path, ".to_out") {
			path += ".0" // the output layer is the first of a list (the second is dropout)
		}
		return path, s.part
	}
	return "", noPart
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// layer turns the tensors of a module into its adapter.
func (h *loraHalves) layer(config *peftConfig) (LoRALayer, error) {
	layer := LoRALayer{Module: h.module}
	down, up := h.part[downPart], h.part[upPart]
	if len(down.Shape) != 2 || len(up.Shape) != 2 || down.Shape[0] != up.Shape[1] {
		return layer, fmt.Errorf("LoRA module %q: %s is %v and %s is %v instead of [rank, in] and [out, rank]; only adapters of linear layers are supported, so remove those of convolutions",
			h.module, down.Name, down.Shape, up.Name, up.Shape)
	}
	layer.Rank, layer.In, layer.Out = down.Shape[0], down.Shape[1], up.Shape[0]
	var err error
	if layer.Down, err = down.Float32(); err != nil {
		return layer, err
	}
	if layer.Up, err = up.Float32(); err != nil {
		return layer, err
	}
	layer.Alpha = config.alpha(h.module, layer.Rank)
	if alpha := h.part[alphaPart]; alpha != nil {
		values, err := alpha.Float64()
		if err != nil {
			return layer, err
		}
		if len(values) != 1 {
			return layer, fmt.Errorf("%s has %d values instead of one; export the adapter again", alpha.Name, len(values))
		}
		layer.Alpha = values[0]
	}
	return layer, layer.check()
}

// WriteLoRA stores an adapter as the safetensors file path under the names that diffusers' load_lora_weights reads:
// unet.MODULE.lora_A.weight [rank, in] and unet.MODULE.lora_B.weight [out, rank], in the given floating-point dtype.
// Loaders take such a file's scale for 1, so a module whose Alpha differs from its Rank has Alpha/Rank multiplied into its
// up factor. Like [Write] it leaves path whole or untouched; it returns an error for inconsistent or repeated modules and
// for values beyond the range of dtype.
func WriteLoRA(path string, lora *LoRA, dtype DType, metadata map[string]string) error {
	var tensors []*Tensor
	for i := range lora.Layers {
		layer := &lora.Layers[i]
		if err := layer.check(); err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
		up := layer.Up
		if scale := layer.Scale(); scale != 1 {
			up = make([]float32, len(layer.Up))
			for i, v := range layer.Up {
				up[i] = float32(float64(v) * scale)
			}
		}
		name := "unet." + layer.Module
		a, err := FromFloat32(name+".lora_A.weight", dtype, []int{layer.Rank, layer.In}, layer.Down)
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
		b, err := FromFloat32(name+".lora_B.weight", dtype, []int{layer.Out, layer.Rank}, up)
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
		tensors = append(tensors, a, b)
	}
	withFormat := map[string]string{"format": "pt"} // what Hugging Face's loaders expect to find
	maps.Copy(withFormat, metadata)
	return Write(path, tensors, withFormat)
}

// byModule returns the adapter's layers under their modules' names, and an error for a module that occurs twice.
func (lora *LoRA) byModule() (map[string]*LoRALayer, error) {
	layers := make(map[string]*LoRALayer, len(lora.Layers))
	for i := range lora.Layers {
		layer := &lora.Layers[i]
		if err := layer.check(); err != nil {
			return nil, err
		}
		if layers[layer.Module] != nil {
			return nil, fmt.Errorf("LoRA module %q occurs twice; give each module one layer", layer.Module)
		}
		layers[layer.Module] = layer
	}
	return layers, nil
}
