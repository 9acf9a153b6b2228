package weights

import (
	"fmt"
	"strings"
)

type loraPart int

const (
	downPart loraPart = iota
	upPart
	midPart // the core of a Tucker decomposition: down and up are 1×1 around it
	alphaPart
	noPart
)

// loraName is what the name of a tensor in an adapter file says.
type loraName struct {
	component, module string
	part              loraPart // noPart: the name is in no known form
	dialect           LoRADialect
}

// loraSuffixes are the ends of names; in those that start with an underscore the module's last part comes before it.
var loraSuffixes = []struct {
	suffix string
	part   loraPart
}{
	{".lora_A.weight", downPart},
	{".lora_B.weight", upPart},
	{".lora_A.default.weight", downPart}, // PEFT's name for its only adapter
	{".lora_B.default.weight", upPart},
	{".lora_down.weight", downPart},
	{".lora_up.weight", upPart},
	{".lora_mid.weight", midPart},
	{".lora.down.weight", downPart},
	{".lora.up.weight", upPart},
	{".lora_linear_layer.down.weight", downPart},
	{".lora_linear_layer.up.weight", upPart},
	{"_lora.down.weight", downPart}, // attention processors
	{"_lora.up.weight", upPart},
	{"_lora.alpha", alphaPart},
	{".alpha", alphaPart},
}

// kohyaPrefixes are kohya's names of the components: "te" in Stable Diffusion 1.x and 2.x, "te1" and "te2" in XL.
var kohyaPrefixes = []struct{ prefix, component string }{
	{"lora_unet_", LoRAUNet},
	{"lora_te_", LoRATextEncoder},
	{"lora_te1_", LoRATextEncoder},
	{"lora_te2_", LoRATextEncoder2},
}

// parseLoRAName takes the name of a tensor apart.
func parseLoRAName(name string) loraName {
	for _, k := range kohyaPrefixes {
		rest, ok := strings.CutPrefix(name, k.prefix)
		if !ok {
			continue
		}
		n := splitLoRASuffix(rest)
		if n.part == noPart || strings.Contains(n.module, ".") {
			return loraName{part: noPart}
		}
		n.component, n.dialect = k.component, KohyaLoRA
		return n
	}
	rest, peft := strings.CutPrefix(name, "base_model.model.")
	component, named := LoRAUNet, false
	for _, c := range []struct{ prefix, component string }{
		{"unet.", LoRAUNet}, {"text_encoder.", LoRATextEncoder}, {"text_encoder_2.", LoRATextEncoder2},
	} {
		if after, ok := strings.CutPrefix(rest, c.prefix); ok {
			rest, component, named = after, c.component, true
			break
		}
	}
	if !named && (strings.HasPrefix(rest, "text_model.") || strings.HasPrefix(rest, "encoder.layers.")) {
		component = LoRATextEncoder
	}
	n := splitLoRASuffix(rest)
	n.component, n.dialect = component, DiffusersLoRA
	if peft {
		n.dialect = PEFTLoRA
	}
	return n
}

// splitLoRASuffix splits a name behind its prefix into module and part.
func splitLoRASuffix(name string) loraName {
	for _, s := range loraSuffixes {
		path, ok := strings.CutSuffix(name, s.suffix)
		if !ok {
			continue
		}
		if s.suffix[0] == '_' {
			if path, ok = processorModule(path); !ok {
				return loraName{part: noPart}
			}
		}
		if path == "" {
			return loraName{part: noPart}
		}
		if strings.HasSuffix(path, ".to_out") {
			path += ".0" // the output layer is the first of a list (the second is dropout)
		}
		return loraName{module: path, part: s.part}
	}
	return loraName{part: noPart}
}

// processorModule finds the layer that a factor of an attention processor belongs to: ATTENTION.processor.to_q in a UNet,
// self_attn.to_q in a text encoder.
func processorModule(path string) (module string, ok bool) {
	attention, layer, ok := cutLast(path, ".processor.")
	if ok {
		return attention + "." + layer, true
	}
	attention, layer, ok = cutLast(path, ".self_attn.to_")
	return attention + ".self_attn." + layer + "_proj", ok
}

func cutLast(s, separator string) (before, after string, found bool) {
	i := strings.LastIndex(s, separator)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(separator):], true
}

// foreignKinds are adapters of other kinds, by a part of their tensors' names.
var foreignKinds = []struct{ part, kind string }{
	{".dora_scale", "DoRA"},
	{".lora_magnitude_vector", "DoRA"},
	{".hada_", "LoHa"},
	{".lokr_", "LoKr"},
	{".oft_", "OFT"},
	{".on_input", "(IA)³"},
	{".lora_embedding_", "embedding LoRA"},
	{".lora_B.bias", "LoRA with biases"},
	{".diff_b", "full-difference"},
	{".diff", "full-difference"},
}

// checkKind refuses, by its kind, an adapter whose change is not a product of two factors.
func checkKind(names []string) error {
	for _, name := range names {
		for _, k := range foreignKinds {
			if strings.Contains(name, k.part) {
				return fmt.Errorf("this is a %s adapter (%s), and only LoRA adapters are supported; merge it into its model with the program that made it", k.kind, name)
			}
		}
	}
	return nil
}
