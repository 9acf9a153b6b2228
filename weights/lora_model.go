package weights

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// LoRAModel lists the layers of a pipeline that an adapter can change: by component and module, the shape of the weight,
// [out, in] or [out, in, height, width]. Modules are called as in diffusers' UNet2DConditionModel and, in text encoders,
// as in published checkpoints, with "text_model." in front.
type LoRAModel map[string]map[string][]int

// Resolve compares an adapter with a model and returns it with the model's names for all modules. Kohya's names are looked
// up among the modules' own, with dots as underscores, and among those that the UNet's layers have in the original code of
// latent diffusion (input_blocks, middle_block, output_blocks), which kohya uses for SDXL.
//
// An adapter of another family is refused in one sentence, as the width of its cross-attention tells; otherwise one error
// lists all layers that the model lacks, with the nearest module of the model, and all that do not fit.
func (lora *LoRA) Resolve(model LoRAModel) (*LoRA, error) {
	if err := lora.checkFamily(model); err != nil {
		return nil, err
	}
	resolved := &LoRA{Dialect: lora.Dialect, DType: lora.DType}
	mangled := map[string]map[string]string{}
	var missing, unfit []string
	for _, l := range lora.Layers {
		modules := model[l.Component]
		name := l.Module
		if l.mangled {
			if mangled[l.Component] == nil {
				var err error
				if mangled[l.Component], err = mangledNames(modules); err != nil {
					return nil, err
				}
			}
			name = mangled[l.Component][l.Module]
		} else if l.Component != LoRAUNet && modules[name] == nil {
			name = "text_model." + name // transformers 5 has no outer module
		}
		shape := modules[name]
		switch {
		case shape == nil:
			missing = append(missing, l.label()+nearest(l.Module, l.mangled, modules, len(missing)))
			continue
		case !l.fits(shape):
			unfit = append(unfit, fmt.Sprintf("%s (adapter %v, weight %v)", l.label(), l.changeShape(), shape))
			continue
		}
		l.Module, l.mangled = name, false
		resolved.Layers = append(resolved.Layers, l)
	}
	if len(missing)+len(unfit) > 0 {
		var parts []string
		if len(missing) > 0 {
			parts = append(parts, fmt.Sprintf("%d layers that the model lacks: %s", len(missing), listed(missing)))
		}
		if len(unfit) > 0 {
			parts = append(parts, fmt.Sprintf("%d layers of another size: %s", len(unfit), listed(unfit)))
		}
		return nil, fmt.Errorf("the LoRA adapter does not fit the model (%s); use the model that it was trained on", strings.Join(parts, "; "))
	}
	resolved.sort()
	return resolved, resolved.check()
}

// label is what a message calls the layer: the name in the file, if it came from one.
func (l *LoRALayer) label() string {
	if l.origin != "" {
		for _, s := range loraSuffixes {
			if name, ok := strings.CutSuffix(l.origin, s.suffix); ok {
				return name
			}
		}
	}
	return strings.TrimPrefix(l.Component+"."+l.Module, ".")
}

// changeShape is the shape of the change Up·Down.
func (l *LoRALayer) changeShape() []int {
	if l.Kernel == [2]int{} {
		return []int{l.Out, l.In}
	}
	return []int{l.Out, l.In, l.Kernel[0], l.Kernel[1]}
}

// fits reports whether the layer's change has the size of a weight. A 1×1 convolution and a linear layer are the same.
func (l *LoRALayer) fits(weight []int) bool {
	kernel := [2]int{max(1, l.Kernel[0]), max(1, l.Kernel[1])}
	switch len(weight) {
	case 2:
		return weight[0] == l.Out && weight[1] == l.In && kernel == [2]int{1, 1}
	case 4:
		return weight[0] == l.Out && weight[1] == l.In && weight[2] == kernel[0] && weight[3] == kernel[1]
	}
	return false
}

// mangle spells a module as kohya does.
func mangle(module string) string { return strings.ReplaceAll(module, ".", "_") }

// mangledNames maps kohya's spellings of a component's modules to the modules.
func mangledNames(modules map[string][]int) (map[string]string, error) {
	layout := ldmLayoutOf(modules)
	names := map[string]string{}
	for _, module := range slices.Sorted(maps.Keys(modules)) {
		spellings := []string{mangle(module)}
		if original, ok := layout.name(module); ok {
			spellings = append(spellings, mangle(original))
		}
		for _, s := range spellings {
			if other, taken := names[s]; taken && other != module {
				return nil, fmt.Errorf("kohya's name %s stands for both %s and %s in this model; convert the adapter with the program that made it", s, other, module)
			}
			names[s] = module
		}
	}
	return names, nil
}

// nearest names the module that is spelled most like one that was not found; nothing after the first hundred, which is
// what a message shows.
func nearest(module string, mangled bool, modules map[string][]int, before int) string {
	if before >= 100 {
		return ""
	}
	best, most := "", 0
	for _, candidate := range slices.Sorted(maps.Keys(modules)) {
		spelled := candidate
		if mangled {
			spelled = mangle(candidate)
		}
		if n := alike(module, spelled); n > most {
			best, most = candidate, n
		}
	}
	if best == "" {
		return ""
	}
	return " (nearest: " + best + ")"
}

// alike is the length of what two names have in common at their beginning and end, less what sets them apart.
func alike(a, b string) int {
	short := min(len(a), len(b))
	head := 0
	for head < short && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < short-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	return 2*(head+tail) - max(len(a), len(b)) + short
}

// checkFamily tells adapters of other families of models apart: by the width of the text embeddings that the
// cross-attention reads, and by the second text encoder.
func (lora *LoRA) checkFamily(model LoRAModel) error {
	if len(model[LoRATextEncoder2]) == 0 && slices.Contains(lora.Components(), LoRATextEncoder2) {
		return errors.New("the adapter changes a second text encoder, as one for Stable Diffusion XL does, but this model has only one; use a model of the adapter's family")
	}
	own, theirs := 0, 0
	for module, shape := range model[LoRAUNet] {
		if strings.HasSuffix(module, ".attn2.to_k") {
			own = shape[1]
			break
		}
	}
	for _, l := range lora.Layers {
		if l.Component != LoRAUNet || !(strings.HasSuffix(l.Module, "attn2.to_k") || strings.HasSuffix(l.Module, "attn2_to_k")) {
			continue
		}
		if l.In == own {
			return nil
		}
		theirs = l.In
	}
	if own == 0 || theirs == 0 {
		return nil
	}
	return fmt.Errorf("the adapter is for %s, whose text embeddings have width %d, but this model is %s with width %d; use a model of the adapter's family",
		family(theirs), theirs, family(own), own)
}

// family names the models with text embeddings of a width.
func family(width int) string {
	switch width {
	case 768:
		return "Stable Diffusion 1.x"
	case 1024:
		return "Stable Diffusion 2.x"
	case 2048:
		return "Stable Diffusion XL"
	}
	return "a model of another family"
}
