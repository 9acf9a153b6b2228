package clip

import (
	"fmt"
	"regexp"
	"strings"
)

// origin says where a file holds a parameter: all of a tensor, or some of its rows.
type origin struct {
	name       string
	part       int  // of three equal parts along the first dimension, from 1; 0 for the whole tensor
	transposed bool // OpenAI multiplies embeddings from the left
}

// dialect is a convention for the names of CLIP's parameters.
type dialect struct {
	name string
	// find returns where a file has the parameter that transformers calls by this name.
	find func(name string) origin
	// text tells whether a name belongs to the text tower, and idle whether it is no parameter of a tower.
	text, idle func(name string) bool
}

var openAILayer = regexp.MustCompile(`^(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$`)

// The parts of a transformer's layer, and the rest, from transformers' names to OpenAI's (openai/CLIP, model.py).
var (
	openAIParts = map[string]string{
		"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
	}
	openAIThirds = map[string]int{"self_attn.q_proj": 1, "self_attn.k_proj": 2, "self_attn.v_proj": 3}
	openAINames  = map[string]origin{
		"vision_model.embeddings.class_embedding":           {name: "visual.class_embedding"},
		"vision_model.embeddings.patch_embedding.weight":    {name: "visual.conv1.weight"},
		"vision_model.embeddings.position_embedding.weight": {name: "visual.positional_embedding"},
		"vision_model.pre_layrnorm.weight":                  {name: "visual.ln_pre.weight"},
		"vision_model.pre_layrnorm.bias":                    {name: "visual.ln_pre.bias"},
		"vision_model.post_layernorm.weight":                {name: "visual.ln_post.weight"},
		"vision_model.post_layernorm.bias":                  {name: "visual.ln_post.bias"},
		"visual_projection.weight":                          {name: "visual.proj", transposed: true},
		"text_model.embeddings.token_embedding.weight":      {name: "token_embedding.weight"},
		"text_model.embeddings.position_embedding.weight":   {name: "positional_embedding"},
		"text_model.final_layer_norm.weight":                {name: "ln_final.weight"},
		"text_model.final_layer_norm.bias":                  {name: "ln_final.bias"},
		"text_projection.weight":                            {name: "text_projection", transposed: true},
	}
)

func openAIName(name string) origin {
	if o, ok := openAINames[name]; ok {
		return o
	}
	m := openAILayer.FindStringSubmatch(name)
	if m == nil {
		return origin{name: name}
	}
	tower := "transformer.resblocks."
	if m[1] == "vision_model" {
		tower = "visual.transformer.resblocks."
	}
	if part := openAIThirds[m[3]]; part > 0 {
		return origin{name: fmt.Sprintf("%s%s.attn.in_proj_%s", tower, m[2], m[4]), part: part}
	}
	return origin{name: fmt.Sprintf("%s%s.%s.%s", tower, m[2], openAIParts[m[3]], m[4])}
}

// dialectOf tells from a name that every CLIP file has how it calls its parameters.
func dialectOf(have map[string]bool) (dialect, bool) {
	const patch = "embeddings.patch_embedding.weight"
	switch {
	case have["visual.conv1.weight"]:
		return dialect{
			name: "OpenAI", find: openAIName,
			text: func(n string) bool {
				switch n {
				case "token_embedding.weight", "positional_embedding", "ln_final.weight", "ln_final.bias", "text_projection":
					return true
				}
				return strings.HasPrefix(n, "transformer.resblocks.")
			},
			idle: func(n string) bool {
				switch n {
				case "logit_scale", "input_resolution", "context_length", "vocab_size":
					return true
				}
				return false
			},
		}, true
	case have["vision_model."+patch]:
		return transformers(""), true
	case have["vision_model.vision_model."+patch]: // the safety checker before transformers 5
		return transformers("vision_model."), true
	}
	return dialect{}, false
}

// transformers is the dialect of the Hugging Face models; prefix precedes the names of the vision tower.
func transformers(prefix string) dialect {
	return dialect{
		name: "transformers",
		find: func(n string) origin {
			if strings.HasPrefix(n, "vision_model.") {
				n = prefix + n
			}
			return origin{name: n}
		},
		text: func(n string) bool { return strings.HasPrefix(n, "text_model.") || n == "text_projection.weight" },
		idle: func(n string) bool { return n == "logit_scale" || strings.HasSuffix(n, ".position_ids") },
	}
}
