package weights

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

// peftConfig is the part of a PEFT LoraConfig that decides the scale of an adapter.
type peftConfig struct {
	LoRAAlpha    *float64           `json:"lora_alpha"`
	AlphaPattern map[string]float64 `json:"alpha_pattern"`
	UseRSLoRA    bool               `json:"use_rslora"`
	UseDoRA      bool               `json:"use_dora"`
}

// peftMetadataKey is where diffusers stores an adapter's LoraConfig (diffusers 0.35, LORA_ADAPTER_METADATA_KEY).
const peftMetadataKey = "lora_adapter_metadata"

// parsePEFTConfig reads the LoraConfig in a file's metadata; it returns nil if there is none. A pipeline's file holds the
// configurations of several models, each field behind "unet." or another model's name.
func parsePEFTConfig(metadata map[string]string) (*peftConfig, error) {
	text, ok := metadata[peftMetadataKey]
	if !ok {
		return nil, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return nil, fmt.Errorf("metadata %q is not a JSON object: %w; remove it or export the adapter again", peftMetadataKey, err)
	}
	own := map[string]json.RawMessage{}
	for key, value := range fields {
		if key = strings.TrimPrefix(key, "unet."); !strings.Contains(key, ".") {
			own[key] = value
		}
	}
	packed, err := json.Marshal(own)
	if err != nil {
		return nil, fmt.Errorf("metadata %q: %w", peftMetadataKey, err)
	}
	c := &peftConfig{}
	if err := json.Unmarshal(packed, c); err != nil {
		return nil, fmt.Errorf("metadata %q: %w; remove it or export the adapter again", peftMetadataKey, err)
	}
	if c.UseDoRA {
		return nil, fmt.Errorf("metadata %q: DoRA adapters are not supported; export a plain LoRA adapter", peftMetadataKey)
	}
	return c, nil
}

// alpha returns the alpha of a module of the given rank; the rank itself where nothing is configured.
func (c *peftConfig) alpha(module string, rank int) float64 {
	if c == nil {
		return float64(rank)
	}
	alpha, configured := 0.0, false
	if c.LoRAAlpha != nil {
		alpha, configured = *c.LoRAAlpha, true
	}
	longest := -1 // of the patterns that name the module or its last part, the most specific one
	for pattern, value := range c.AlphaPattern {
		if (module == pattern || strings.HasSuffix(module, "."+pattern)) && len(pattern) > longest {
			alpha, configured, longest = value, true, len(pattern)
		}
	}
	if !configured {
		return float64(rank)
	}
	if c.UseRSLoRA { // rank-stabilised: scaled by alpha/√rank instead of alpha/rank
		alpha *= math.Sqrt(float64(rank))
	}
	return alpha
}
