package weights

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strings"
)

// peftConfig is the part of a PEFT LoraConfig that decides the ranks and scales of an adapter.
type peftConfig struct {
	R            *int         `json:"r"`
	LoRAAlpha    *float64     `json:"lora_alpha"`
	RankPattern  peftPatterns `json:"rank_pattern"`
	AlphaPattern peftPatterns `json:"alpha_pattern"`
	UseRSLoRA    bool         `json:"use_rslora"`
	UseDoRA      bool         `json:"use_dora"`
	FanInFanOut  bool         `json:"fan_in_fan_out"`
	PEFTType     string       `json:"peft_type"`

	where string // for messages
}

// peftMetadataKey is where diffusers stores an adapter's LoraConfig (diffusers 0.35, LORA_ADAPTER_METADATA_KEY).
const peftMetadataKey = "lora_adapter_metadata"

// metadataConfigs reads the LoraConfigs in a file's metadata, by component. A pipeline's file holds those of several
// models, each field behind "unet." or another model's name; fields behind none are for all.
func metadataConfigs(metadata map[string]string) (map[string]*peftConfig, error) {
	text, ok := metadata[peftMetadataKey]
	if !ok {
		return nil, nil
	}
	where := fmt.Sprintf("metadata %q", peftMetadataKey)
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return nil, fmt.Errorf("%s is not a JSON object: %w; remove it or export the adapter again", where, err)
	}
	configs := map[string]*peftConfig{}
	for _, component := range loraComponents {
		own := map[string]json.RawMessage{}
		for key, value := range fields {
			if after, ok := strings.CutPrefix(key, componentFolder(component)+"."); ok {
				own[after] = value
			} else if _, set := own[key]; !set && !strings.Contains(key, ".") {
				own[key] = value
			}
		}
		packed, err := json.Marshal(own)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		if configs[component], err = parsePEFTConfig(where, packed); err != nil {
			return nil, err
		}
	}
	return configs, nil
}

// parsePEFTConfig reads one LoraConfig; where says in messages what it was read from.
func parsePEFTConfig(where string, data []byte) (*peftConfig, error) {
	c := &peftConfig{where: where}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("%s: %w; export the adapter again", where, err)
	}
	switch {
	case c.PEFTType != "" && c.PEFTType != "LORA":
		return nil, fmt.Errorf("%s: peft_type is %q, and only LORA is supported; merge the adapter with PEFT", where, c.PEFTType)
	case c.UseDoRA:
		return nil, fmt.Errorf("%s: use_dora is true, and DoRA adapters are not supported; export a plain LoRA adapter", where)
	case c.FanInFanOut:
		return nil, fmt.Errorf("%s: fan_in_fan_out is true, but no layer of Stable Diffusion stores its weight transposed; set it to false", where)
	}
	return c, nil
}

// alpha returns the alpha of a module whose factors have the given rank; the rank itself where nothing is configured. It
// returns an error if the configured rank is another.
func (c *peftConfig) alpha(module string, rank int) (float64, error) {
	if c == nil {
		return float64(rank), nil
	}
	configured := float64(rank)
	if c.R != nil {
		configured = float64(*c.R)
	}
	if v, ok := c.RankPattern.find(module); ok {
		configured = v
	}
	if configured != float64(rank) {
		return 0, fmt.Errorf("LoRA module %q: its factors have rank %d, but %s says %g (r, rank_pattern); use the configuration that belongs to the adapter", module, rank, c.where, configured)
	}
	alpha := float64(rank)
	if c.LoRAAlpha != nil {
		alpha = *c.LoRAAlpha
	} else if len(c.AlphaPattern) == 0 {
		return alpha, nil
	}
	if v, ok := c.AlphaPattern.find(module); ok {
		alpha = v
	}
	if c.UseRSLoRA { // rank-stabilised: scaled by alpha/√rank instead of alpha/rank
		alpha *= math.Sqrt(float64(rank))
	}
	return alpha, nil
}

// peftPatterns are numbers for modules whose path ends in a regular expression, in the file's order, as the first match
// counts (peft.utils.other.get_pattern_key).
type peftPatterns []peftPattern

type peftPattern struct {
	text  string
	match *regexp.Regexp // nil: the text has no operators but dots
	value float64
}

// UnmarshalJSON reads an object, keeping the order of its members.
func (p *peftPatterns) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		return nil
	}
	r := newJSONReader(data)
	return r.object("patterns", func(key string) error {
		token, err := r.token(fmt.Sprintf("pattern %q", key))
		if err != nil {
			return err
		}
		number, ok := token.(json.Number)
		if !ok {
			return fmt.Errorf("pattern %q: %v is not a number", key, token)
		}
		pattern := peftPattern{text: key}
		if pattern.value, err = number.Float64(); err != nil {
			return fmt.Errorf("pattern %q: %v is not a number that can be used", key, token)
		}
		if regexp.QuoteMeta(strings.ReplaceAll(key, ".", "")) != strings.ReplaceAll(key, ".", "") {
			if pattern.match, err = regexp.Compile(`^(?:.*\.)?(?:` + key + `)$`); err != nil {
				return fmt.Errorf("pattern %q is not a regular expression that can be used here: %w", key, err)
			}
		}
		*p = append(*p, pattern)
		return nil
	})
}

// find returns the number for a module.
func (p peftPatterns) find(module string) (value float64, ok bool) {
	for _, pattern := range p {
		if pattern.matches(module) {
			return pattern.value, true
		}
	}
	return 0, false
}

func (p *peftPattern) matches(module string) bool {
	if p.match != nil {
		return p.match.MatchString(module)
	}
	start := len(module) - len(p.text)
	if start < 0 || (start > 0 && module[start-1] != '.') {
		return false
	}
	for i := range len(p.text) {
		if p.text[i] != '.' && p.text[i] != module[start+i] {
			return false
		}
	}
	return true
}
