package weights

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/files"
)

// WriteLoRA stores an adapter as the safetensors file path under the names that diffusers' load_lora_weights reads:
// unet.MODULE.lora_A.weight [rank, in] and unet.MODULE.lora_B.weight [out, rank], with text_encoder or text_encoder_2 in
// place of unet for their layers, in the given floating-point dtype. Factors of convolutions are
// [rank, in, height, width] and [out, rank, 1, 1].
//
// Loaders take such a file's scale for 1, so a module whose Alpha differs from its Rank has Alpha/Rank multiplied into its
// up factor. Like [Write] it leaves path whole or untouched; it returns an error for inconsistent or repeated modules and
// for values beyond the range of dtype.
func WriteLoRA(path string, lora *LoRA, dtype DType, metadata map[string]string) error {
	tensors, err := lora.tensors(dtype, func(l *LoRALayer) (string, string) {
		name := componentFolder(l.Component) + "." + l.Module
		return name + ".lora_A.weight", name + ".lora_B.weight"
	}, true)
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	return Write(path, tensors, withFormat(metadata))
}

// WriteKohyaLoRA stores an adapter as the safetensors file path under kohya's names: lora_unet_MODULE.lora_down.weight,
// .lora_up.weight and .alpha, and lora_te_MODULE for the text encoder. An adapter for SDXL has lora_te1_ and lora_te2_, and
// the UNet's modules bear their names in the original code of latent diffusion, as in kohya's own files. The factors are
// stored as they are, in dtype, and every alpha as an F32 scalar.
func WriteKohyaLoRA(path string, lora *LoRA, dtype DType, metadata map[string]string) error {
	xl := lora.isXL()
	base := func(l *LoRALayer) string {
		switch {
		case l.Component == LoRATextEncoder2:
			return "lora_te2_" + mangle(l.Module)
		case l.Component == LoRATextEncoder && xl:
			return "lora_te1_" + mangle(l.Module)
		case l.Component == LoRATextEncoder:
			return "lora_te_" + mangle(l.Module)
		}
		if original, ok := sdxlLayout.name(l.Module); ok && xl {
			return "lora_unet_" + mangle(original)
		}
		return "lora_unet_" + mangle(l.Module)
	}
	tensors, err := lora.tensors(dtype, func(l *LoRALayer) (string, string) {
		return base(l) + ".lora_down.weight", base(l) + ".lora_up.weight"
	}, false)
	if err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	for i := range lora.Layers {
		l := &lora.Layers[i]
		alpha, err := fromFloats(base(l)+".alpha", F32, nil, []float64{l.Alpha})
		if err != nil {
			return fmt.Errorf("%s cannot be written: %w", path, err)
		}
		tensors = append(tensors, alpha)
	}
	return Write(path, tensors, withFormat(metadata))
}

// isXL tells an adapter for SDXL by what only that has: a second text encoder, text embeddings of width 2048, or several
// transformer blocks in an attention layer.
func (lora *LoRA) isXL() bool {
	return slices.ContainsFunc(lora.Layers, func(l LoRALayer) bool {
		return l.Component == LoRATextEncoder2 || l.Component == LoRAUNet &&
			(strings.Contains(l.Module, ".transformer_blocks.1.") || strings.HasSuffix(l.Module, ".attn2.to_k") && l.In == 2048)
	})
}

// WritePEFTLoRA stores an adapter as PEFT's save_pretrained does, in the new or empty folder dir: for each component that
// it changes a folder unet, text_encoder or text_encoder_2 with adapter_model.safetensors and adapter_config.json. The
// factors are stored as they are, in dtype, and ranks and alphas in the configuration.
func WritePEFTLoRA(dir string, lora *LoRA, dtype DType) error {
	return files.WriteFolder(dir, func(partial string) error {
		if err := lora.check(); err != nil {
			return fmt.Errorf("%s cannot be written: %w", dir, err)
		}
		for _, component := range lora.Components() {
			folder := filepath.Join(partial, componentFolder(component))
			if err := os.Mkdir(folder, 0o755); err != nil {
				return fmt.Errorf("output: %w", err)
			}
			part := lora.Of(component)
			tensors, err := part.tensors(dtype, func(l *LoRALayer) (string, string) {
				name := "base_model.model." + l.Module
				return name + ".lora_A.weight", name + ".lora_B.weight"
			}, false)
			if err != nil {
				return fmt.Errorf("%s cannot be written: %w", dir, err)
			}
			if err := Write(filepath.Join(folder, adapterFile+".safetensors"), tensors, withFormat(nil)); err != nil {
				return err
			}
			config, err := json.MarshalIndent(part.peftFields(), "", "  ")
			if err != nil {
				return fmt.Errorf("%s cannot be written: %w", dir, err)
			}
			if err := files.WriteBytes(filepath.Join(folder, adapterConfig), append(config, '\n')); err != nil {
				return err
			}
		}
		return nil
	})
}

// peftFields is the LoraConfig of an adapter of one component: the most frequent rank and alpha, and patterns for others.
func (lora *LoRA) peftFields() map[string]any {
	ranks, alphas := map[int]int{}, map[float64]int{}
	var modules []string
	for _, l := range lora.Layers {
		ranks[l.Rank]++
		alphas[l.Alpha]++
		modules = append(modules, l.Module)
	}
	rank, alpha := mostFrequent(ranks), mostFrequent(alphas)
	rankPattern, alphaPattern := map[string]int{}, map[string]float64{}
	for _, l := range lora.Layers {
		if l.Rank != rank {
			rankPattern[l.Module] = l.Rank
		}
		if l.Alpha != alpha {
			alphaPattern[l.Module] = l.Alpha
		}
	}
	return map[string]any{
		"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "rank_pattern": rankPattern, "alpha_pattern": alphaPattern,
		"target_modules": modules, "bias": "none", "lora_dropout": 0, "inference_mode": true,
		"use_rslora": false, "use_dora": false, "fan_in_fan_out": false,
		"base_model_name_or_path": nil, "task_type": nil,
	}
}

// mostFrequent returns the key with the highest count; of several, the smallest.
func mostFrequent[K int | float64](counts map[K]int) K {
	var best K
	for i, k := range slices.Sorted(maps.Keys(counts)) {
		if i == 0 || counts[k] > counts[best] {
			best = k
		}
	}
	return best
}

// tensors turns the layers into tensors that names calls; fold multiplies the scale into the up factors.
func (lora *LoRA) tensors(dtype DType, names func(l *LoRALayer) (down, up string), fold bool) ([]*Tensor, error) {
	if err := lora.check(); err != nil {
		return nil, err
	}
	var tensors []*Tensor
	for i := range lora.Layers {
		layer := &lora.Layers[i]
		if layer.mangled {
			return nil, fmt.Errorf("LoRA module %q bears kohya's name; compare the adapter with its model first, which knows the other one", layer.Module)
		}
		up := layer.Up
		if scale := layer.Scale(); fold && scale != 1 {
			up = make([]float32, len(layer.Up))
			for i, v := range layer.Up {
				up[i] = float32(float64(v) * scale)
			}
		}
		downName, upName := names(layer)
		a, err := FromFloat32(downName, dtype, layer.downShape(), layer.Down)
		if err != nil {
			return nil, err
		}
		b, err := FromFloat32(upName, dtype, layer.upShape(), up)
		if err != nil {
			return nil, err
		}
		tensors = append(tensors, a, b)
	}
	return tensors, nil
}

// withFormat adds what Hugging Face's loaders expect to find.
func withFormat(metadata map[string]string) map[string]string {
	all := map[string]string{"format": "pt"}
	maps.Copy(all, metadata)
	return all
}
