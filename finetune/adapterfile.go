package finetune

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// LoRAFormats lists the formats that adapters are saved in: that of diffusers, PEFT's folder, and kohya's file. See
// weights.WriteLoRA, weights.WritePEFTLoRA and weights.WriteKohyaLoRA.
func LoRAFormats() []string {
	return []string{string(weights.DiffusersLoRA), string(weights.PEFTLoRA), string(weights.KohyaLoRA)}
}

// CheckLoRAFormat says whether a format is one of [LoRAFormats], or empty, which stands for that of diffusers.
func CheckLoRAFormat(format string) error {
	if format != "" && !slices.Contains(LoRAFormats(), format) {
		return fmt.Errorf("%q is not known; use %s", format, strings.Join(LoRAFormats(), ", "))
	}
	return nil
}

// AdapterPath is where [WriteAdapter] puts an adapter in a run's folder: the folder lora for PEFT, or the file
// lora.safetensors.
func AdapterPath(dir, format string) string {
	if weights.LoRADialect(format) == weights.PEFTLoRA {
		return filepath.Join(dir, "lora")
	}
	return filepath.Join(dir, "lora.safetensors")
}

// WriteAdapter writes an adapter of the given factors into a run's folder, in float32, and returns its path. What an
// earlier, interrupted run left there is replaced.
func WriteAdapter(dir, format string, a *sd.Adapter, factors *sd.Params) (path string, err error) {
	if err := CheckLoRAFormat(format); err != nil {
		return "", fmt.Errorf("lora_format: %w", err)
	}
	lora, err := a.LoRA(factors)
	if err != nil {
		return "", err
	}
	path = AdapterPath(dir, format)
	switch cmp.Or(weights.LoRADialect(format), weights.DiffusersLoRA) {
	case weights.PEFTLoRA:
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("output: %w", err)
		}
		return path, weights.WritePEFTLoRA(path, lora, weights.F32)
	case weights.KohyaLoRA:
		return path, weights.WriteKohyaLoRA(path, lora, weights.F32, nil)
	}
	return path, weights.WriteLoRA(path, lora, weights.F32, nil)
}
