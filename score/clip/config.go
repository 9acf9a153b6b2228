package clip

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/vision"
)

// architecture is that of both towers; text is nil where the files describe the vision tower alone.
type architecture struct {
	vision vision.CLIPConfig
	text   *sd.TextConfig
}

// name is what the literature calls the architecture, or its sizes where it has no name.
func (a architecture) name() string {
	for name, known := range presets() {
		if known.vision == a.vision {
			return name
		}
	}
	v := a.vision
	return fmt.Sprintf("ViT of width %d, %d layers, patches of %d in %d, %s", v.Width, v.Layers, v.Patch, v.Image, v.Activation)
}

// presets are the transformers that OpenAI published, by their names there.
func presets() map[string]architecture {
	text := func(width, heads int) *sd.TextConfig {
		return &sd.TextConfig{
			Width: width, Hidden: 4 * width, Layers: 12, Heads: heads, Vocabulary: 49408, Tokens: 77,
			Activation: "quick_gelu", Eps: 1e-5, Projection: width,
		}
	}
	return map[string]architecture{
		"ViT-B/32":       {vision.CLIPViTB32(), text(512, 8)},
		"ViT-B/16":       {vision.CLIPViTB16(), text(512, 8)},
		"ViT-L/14":       {vision.CLIPViTL14(224), text(768, 12)},
		"ViT-L/14@336px": {vision.CLIPViTL14(336), text(768, 12)},
	}
}

// maxConfigBytes bounds a configuration; real ones have a few kilobytes.
const maxConfigBytes = 1 << 20

// readJSON reads a small JSON object.
func readJSON(path string) (map[string]json.RawMessage, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot read the file: %w; put it there, or give another place", path, errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxConfigBytes {
		return nil, fmt.Errorf("%s: not a JSON file of at most %d bytes; give a configuration", path, maxConfigBytes)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot read the file: %w", path, errors.Unwrap(err))
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(raw, &object); err != nil || object == nil {
		return nil, fmt.Errorf("%s: not a JSON object; restore the file", path)
	}
	return object, nil
}

// readArchitecture reads a transformers config.json: of a CLIPModel or of the safety checker, which have text_config and
// vision_config, or of a CLIPVisionModelWithProjection.
func readArchitecture(path string) (architecture, error) {
	var a architecture
	object, err := readJSON(path)
	if err != nil {
		return a, err
	}
	top := section{where: path, values: object}
	switch kind := top.text("model_type", ""); kind {
	case "clip":
		projection := top.positive("projection_dim", 512, 1<<14)
		visionPart, textPart := top.part("vision_config"), top.part("text_config")
		a.vision = visionPart.vision(projection)
		text := textPart.encoder(projection)
		a.text = &text
		top.problems = append(append(top.problems, visionPart.problems...), textPart.problems...)
	case "clip_vision_model":
		a.vision = top.vision(top.positive("projection_dim", 512, 1<<14))
	default:
		return a, fmt.Errorf("%s: model_type = %q is not a CLIP model (\"clip\" and \"clip_vision_model\" are); give the folder of one", path, kind)
	}
	if len(top.problems) > 0 {
		return a, fmt.Errorf("%s: %s", path, strings.Join(top.problems, "; "))
	}
	if err := a.vision.Validate(); err != nil {
		return a, fmt.Errorf("%s: vision_config: %w", path, err)
	}
	return a, nil
}

// section is an object of a configuration, with what is wrong in it.
type section struct {
	where    string
	values   map[string]json.RawMessage
	problems []string
}

// part descends to the configuration of one tower. Where there is NAME_dict as well, transformers takes all values from
// that, and defaults for those it lacks.
func (s *section) part(name string) *section {
	p := &section{where: name}
	for _, key := range []string{name, name + "_dict"} {
		raw, ok := s.values[key]
		if !ok || string(raw) == "null" {
			continue
		}
		p.values = nil
		if err := json.Unmarshal(raw, &p.values); err != nil {
			s.problems = append(s.problems, key+" is not an object")
		}
	}
	if p.values == nil {
		s.problems = append(s.problems, name+" is missing")
	}
	return p
}

// vision reads the vision tower's architecture (transformers, CLIPVisionConfig).
func (s *section) vision(projection int) vision.CLIPConfig {
	c := vision.CLIPConfig{
		Image: s.positive("image_size", 224, 1<<12), Patch: s.positive("patch_size", 32, 1<<12),
		Width: s.positive("hidden_size", 768, 1<<14), Hidden: s.positive("intermediate_size", 3072, 1<<16),
		Layers: s.positive("num_hidden_layers", 12, 256), Heads: s.positive("num_attention_heads", 12, 1024),
		Activation: s.activation(), Eps: s.epsilon(), Projection: projection,
	}
	if channels := s.positive("num_channels", 3, 1<<10); channels != 3 {
		s.problem("num_channels = %d is not supported (3 is)", channels)
	}
	s.known("image_size", "patch_size", "num_channels")
	return c
}

// encoder reads the text tower's architecture (transformers, CLIPTextConfig).
func (s *section) encoder(projection int) sd.TextConfig {
	c := sd.TextConfig{
		Width: s.positive("hidden_size", 512, 1<<14), Hidden: s.positive("intermediate_size", 2048, 1<<16),
		Layers: s.positive("num_hidden_layers", 12, 256), Heads: s.positive("num_attention_heads", 8, 1024),
		Vocabulary: s.positive("vocab_size", 49408, 1<<24), Tokens: s.positive("max_position_embeddings", 77, 4096),
		Activation: s.activation(), Eps: s.epsilon(), Projection: projection,
	}
	if c.Width%c.Heads != 0 {
		s.problem("num_attention_heads = %d does not divide hidden_size = %d", c.Heads, c.Width)
	}
	s.known("vocab_size", "max_position_embeddings")
	return c
}

func (s *section) problem(format string, args ...any) {
	s.problems = append(s.problems, s.prefix()+fmt.Sprintf(format, args...))
}

func (s *section) prefix() string {
	if strings.HasSuffix(s.where, "_config") {
		return s.where + "."
	}
	return ""
}

func (s *section) get(key string, into any) bool {
	raw, ok := s.values[key]
	if !ok || string(raw) == "null" {
		return false
	}
	if err := json.Unmarshal(raw, into); err != nil {
		s.problem("%s = %.60s has the wrong type", key, raw)
		return false
	}
	return true
}

func (s *section) text(key, fallback string) string {
	s.get(key, &fallback)
	return fallback
}

func (s *section) positive(key string, fallback, limit int) int {
	n := fallback
	s.get(key, &n)
	if n < 1 || n > limit {
		s.problem("%s = %d must lie in 1 … %d", key, n, limit)
		return max(1, fallback)
	}
	return n
}

func (s *section) activation() string {
	name := s.text("hidden_act", "quick_gelu")
	if name != "quick_gelu" && name != "gelu" {
		s.problem("hidden_act = %q is not supported (quick_gelu and gelu are)", name)
	}
	return name
}

func (s *section) epsilon() float64 {
	eps := 1e-5
	s.get("layer_norm_eps", &eps)
	if !(eps > 0) {
		s.problem("layer_norm_eps = %v must be positive", eps)
	}
	return eps
}

// inert are the keys that say nothing about what the towers compute: of training, of generating text, and of transformers'
// own bookkeeping, which older versions wrote out in full.
var inert = strings.Fields(`
	architectures attention_dropout dropout dtype torch_dtype gradient_checkpointing initializer_factor initializer_range
	logit_scale_init_value model_type projection_dim transformers_version
	hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps
	add_cross_attention bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
	cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample early_stopping
	encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
	forced_eos_token_id id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length
	no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states
	output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
	return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
	tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torchscript typical_p use_bfloat16 use_cache`)

// known refuses keys that this program does not know, so that no setting of a model is silently left out; more are those
// that were read beside the common ones.
func (s *section) known(more ...string) {
	var unknown []string
	for key, raw := range s.values {
		switch text := string(raw); {
		case slices.Contains(inert, key), slices.Contains(more, key), strings.HasPrefix(key, "_"), text == "null":
		case key == "pruned_heads" && text == "{}":
		default:
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		s.problem("%s = %.60s is not known to this program", key, s.values[key])
	}
}
