package weights

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// LoRA is a low-rank adapter of a pipeline: for some layers of its UNet and text encoders, a change
// W + (alpha/rank)·Up·Down of the weight (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models",
// equation 3).
type LoRA struct {
	Layers  []LoRALayer // sorted by component and module when they were read
	Dialect LoRADialect // whose names the file used; empty for an adapter that was not read
	DType   DType       // the widest type of the file's factors; zero for an adapter that was not read
}

// LoRADialect is a convention for the names in an adapter file.
type LoRADialect string

// The dialects.
const (
	DiffusersLoRA LoRADialect = "diffusers" // unet.MODULE.lora_A.weight, and what older versions wrote
	PEFTLoRA      LoRADialect = "peft"      // base_model.model.MODULE.lora_A.weight beside adapter_config.json
	KohyaLoRA     LoRADialect = "kohya"     // lora_unet_MODULE.lora_down.weight, the module's dots as underscores
)

// The components of a pipeline that an adapter can change, as [LoRALayer] and [LoRAModel] call them: a layer that names no
// component belongs to the UNet.
const (
	LoRAUNet         = ""
	LoRATextEncoder  = "text_encoder"
	LoRATextEncoder2 = "text_encoder_2"
)

var loraComponents = []string{LoRAUNet, LoRATextEncoder, LoRATextEncoder2}

// LoRALayer is the adapter of one linear layer or convolution. That of a convolution is a convolution with the kernel of
// the layer from In to Rank channels, then a 1×1 convolution to Out channels.
type LoRALayer struct {
	Component     string // LoRAUNet, LoRATextEncoder or LoRATextEncoder2
	Module        string // the layer's path in the component, such as "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
	Rank, In, Out int
	Kernel        [2]int    // height and width of a convolution's kernel; zeros for a linear layer
	Down          []float32 // [Rank, In] or [Rank, In, Kernel...], applied first
	Up            []float32 // [Out, Rank]
	Alpha         float64   // the change is scaled by Alpha/Rank; equal to Rank when a file says nothing

	mangled bool   // Module still is kohya's spelling, which only a model's list of modules can resolve
	origin  string // what the file calls the layer, for messages
}

// Scale returns Alpha/Rank, by which Up·Down is multiplied.
func (l *LoRALayer) Scale() float64 { return l.Alpha / float64(l.Rank) }

// Of returns the layers of one component, as an adapter of the same dialect.
func (lora *LoRA) Of(component string) *LoRA {
	part := &LoRA{Dialect: lora.Dialect, DType: lora.DType}
	for _, l := range lora.Layers {
		if l.Component == component {
			part.Layers = append(part.Layers, l)
		}
	}
	return part
}

// Components lists the components that the adapter changes, the UNet first.
func (lora *LoRA) Components() []string {
	var components []string
	for _, c := range loraComponents {
		if slices.ContainsFunc(lora.Layers, func(l LoRALayer) bool { return l.Component == c }) {
			components = append(components, c)
		}
	}
	return components
}

// fields returns the number of inputs of one output: In, times the size of a convolution's kernel.
func (l *LoRALayer) fields() int { return l.In * max(1, l.Kernel[0]) * max(1, l.Kernel[1]) }

// downShape and upShape are the shapes of the factors in a file.
func (l *LoRALayer) downShape() []int {
	if l.Kernel == [2]int{} {
		return []int{l.Rank, l.In}
	}
	return []int{l.Rank, l.In, l.Kernel[0], l.Kernel[1]}
}

func (l *LoRALayer) upShape() []int {
	if l.Kernel == [2]int{} {
		return []int{l.Out, l.Rank}
	}
	return []int{l.Out, l.Rank, 1, 1}
}

// maxLoRAKernel bounds a kernel's sides; those of Stable Diffusion have at most 3.
const maxLoRAKernel = 7

// check returns an error unless the sizes agree and every number is finite.
func (l *LoRALayer) check() error {
	const most = 1 << 24 // far above any layer, and products of two with a kernel still fit an int64
	if l.Rank <= 0 || l.In <= 0 || l.Out <= 0 || max(l.Rank, l.In, l.Out) > most ||
		min(l.Kernel[0], l.Kernel[1]) < 0 || max(l.Kernel[0], l.Kernel[1]) > maxLoRAKernel || (l.Kernel[0] == 0) != (l.Kernel[1] == 0) ||
		int64(len(l.Down)) != int64(l.Rank)*int64(l.fields()) || int64(len(l.Up)) != int64(l.Out)*int64(l.Rank) {
		return fmt.Errorf("LoRA module %q: %d values down and %d up do not fit rank %d, %d inputs, %d outputs and kernel %v; give Down [rank, in, kernel...] and Up [out, rank]",
			l.Module, len(l.Down), len(l.Up), l.Rank, l.In, l.Out, l.Kernel)
	}
	if !isFinite(l.Alpha) {
		return fmt.Errorf("LoRA module %q: alpha is %g; it must be a finite number", l.Module, l.Alpha)
	}
	if !slices.Contains(loraComponents, l.Component) {
		return fmt.Errorf("LoRA module %q: component %q is not known; use the UNet (empty), %q or %q", l.Module, l.Component, LoRATextEncoder, LoRATextEncoder2)
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

// check returns an error for an inconsistent layer, and for a layer that occurs twice.
func (lora *LoRA) check() error {
	if len(lora.Layers) == 0 {
		return errors.New("the adapter has no layers; train it first")
	}
	seen := map[[2]string]*LoRALayer{}
	for i := range lora.Layers {
		l := &lora.Layers[i]
		if err := l.check(); err != nil {
			return err
		}
		key := [2]string{l.Component, l.Module}
		if other := seen[key]; other != nil {
			return fmt.Errorf("LoRA module %q occurs twice%s; give each module one layer", l.Module, origins(other, l))
		}
		seen[key] = l
	}
	return nil
}

func origins(a, b *LoRALayer) string {
	if a.origin == "" || b.origin == "" {
		return ""
	}
	return fmt.Sprintf(" (as %s and as %s)", a.origin, b.origin)
}

func (lora *LoRA) sort() {
	slices.SortFunc(lora.Layers, func(a, b LoRALayer) int {
		return cmp.Or(cmp.Compare(a.Component, b.Component), cmp.Compare(a.Module, b.Module))
	})
}
