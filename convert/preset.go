package convert

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"

	"github.com/resalign/resalign/diffusion"
)

// presetFiles are the settings of published models, laid out as their directories are; they say what a single file does
// not:
//
//	sd1       stable-diffusion-v1-4 (CompVis) and v1-5, which agree in them
//	sd2-base  stable-diffusion-2-base and 2-1-base (Stability AI): 512 pixels, noise prediction
//	sd2-768   stable-diffusion-2 and 2-1 (Stability AI): 768 pixels, velocity prediction
//	sdxl      stable-diffusion-xl-base-1.0 (Stability AI)
//
//go:embed presets
var presetFiles embed.FS

// presetOf is the preset of a family.
func presetOf(family Family, prediction diffusion.PredictionType) (fs.FS, error) {
	name := string(family)
	if family == SD2 {
		name = "sd2-base"
		if prediction == diffusion.VPrediction {
			name = "sd2-768"
		}
	}
	return fs.Sub(presetFiles, "presets/"+name)
}

// scheduler returns a preset's scheduler_config.json for another prediction, and for a noise schedule that ends in noise
// alone where zeroSNR says so.
func scheduler(preset fs.FS, prediction diffusion.PredictionType, zeroSNR bool) ([]byte, error) {
	raw, err := fs.ReadFile(preset, "scheduler/scheduler_config.json")
	if err != nil {
		return nil, err
	}
	var settings map[string]any
	if err := json.Unmarshal(raw, &settings); err != nil {
		return nil, fmt.Errorf("preset: scheduler_config.json: %w", err)
	}
	changed := maps.Clone(settings)
	changed["prediction_type"] = prediction
	if zeroSNR {
		changed["rescale_betas_zero_snr"] = true
		changed["timestep_spacing"] = "trailing"
	}
	out, err := json.MarshalIndent(changed, "", "  ")
	return append(out, '\n'), err
}
