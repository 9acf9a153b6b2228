package finetune

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/sd"
)

// prompt is what all pictures are trained under; empty: their own captions.
func (c Config) prompt() string {
	switch {
	case c.learns() && strings.TrimSpace(c.InstancePrompt) == "":
		return "a photo of " + c.Placeholder
	case strings.TrimSpace(c.InstancePrompt) == "":
		return ""
	}
	return c.InstancePrompt
}

// learns tells whether a new word is learnt.
func (c Config) learns() bool {
	return c.Method == TextualInversion || c.Method == Custom && c.Placeholder != ""
}

// throughText tells whether training goes through the text encoder.
func (c Config) throughText() bool { return c.TrainTextEncoder || c.learns() }

// textProblems lists what is wrong with the settings of training through the text encoder.
func (c Config) textProblems(bad func(key, format string, args ...any)) {
	if c.TrainTextEncoder && c.Method != Full && c.Method != DreamBooth {
		bad("train_text_encoder", "true is only for methods %s and %s", Full, DreamBooth)
	}
	if !c.learns() {
		if c.Placeholder != "" {
			bad("placeholder", "%q is only for methods %s and %s", c.Placeholder, TextualInversion, Custom)
		}
		if c.Initializer != "" {
			bad("initializer", "%q is only for a placeholder under method %s or %s", c.Initializer, TextualInversion, Custom)
		}
		return
	}
	switch {
	case strings.TrimSpace(c.Placeholder) == "":
		bad("placeholder", "is missing; give the new word that shall stand for the pictures, such as <cat>")
	case c.Placeholder != strings.ToLower(c.Placeholder):
		bad("placeholder", "%q must be in lower case, as prompts are; diffusers would not always find it", c.Placeholder)
	case !strings.Contains(c.prompt(), c.Placeholder):
		bad("instance_prompt", "%q must contain the placeholder %q, which would not be trained otherwise", c.InstancePrompt, c.Placeholder)
	}
	if strings.TrimSpace(c.Initializer) == "" {
		bad("initializer", "is missing; give a word of one token that describes the pictures, such as cat")
	}
	if c.Vectors < 1 {
		bad("vectors", "%d is too small; it must be at least 1", c.Vectors)
	}
}

// prepareTokenizer takes the model's tokenizer where training goes through the text encoder, and teaches it the
// placeholder.
func (t *tuning) prepareTokenizer() (err error) {
	if !t.config.throughText() {
		return nil
	}
	if !t.config.learns() {
		t.tokenizer = denoise.Tokenizers(t.model)
		return nil
	}
	if err := t.model.CheckConcepts(); err != nil {
		return err
	}
	words, err := t.model.Towers[0].Tokenizer.WithPlaceholder(t.config.Placeholder, t.config.Vectors)
	t.tokenizer = words
	return err
}

// prepareText lays out the network of a UNet that is trained with its text encoders.
func (t *tuning) prepareText() (groups [][]*engine.Tensor, err error) {
	if t.net, err = denoise.NewTextNetwork(t.model, 0); err != nil {
		return nil, err
	}
	t.selected = t.net.Group(0).And(t.net.TextParameters())
	for _, tower := range t.model.Towers {
		groups = append(groups, tower.Params.Tensors)
	}
	return groups, nil
}

// prepareConcept lays out the network of a UNet whose text encoder learns a word. Every new embedding starts as that of
// the initializer.
func (t *tuning) prepareConcept() (groups [][]*engine.Tensor, err error) {
	c, tower := t.config, t.model.Towers[0]
	ids, _ := tower.Tokenizer.Encode(c.Initializer)
	if n := slices.Index(ids[1:], tower.Tokenizer.EndID()); n != 1 {
		return nil, fmt.Errorf("fine-tuning: initializer %q has %d tokens; use a word of one token", c.Initializer, n)
	}
	table, err := tower.Params.Host(tower.Encoder.TokenTable())
	if err != nil {
		return nil, err
	}
	width := tower.Encoder.Config.Width
	row := table[int(ids[1])*width:][:width]
	t.initial = []*engine.Tensor{engine.Float32s(slices.Repeat(row, c.Vectors), c.Vectors, width)}
	if t.net, err = denoise.NewTextNetwork(t.model, c.Vectors); err != nil {
		return nil, err
	}
	t.net.SetTokenizer(t.tokenizer)
	t.selected = t.net.Group(2)
	if c.Method == Custom {
		attention, err := t.net.Named(customParts()...)
		if err != nil {
			return nil, err
		}
		t.selected = attention.And(t.selected)
	}
	return [][]*engine.Tensor{tower.Params.Tensors, t.initial}, nil
}

// customParts are parts of the names of what Custom Diffusion trains in the UNet.
func customParts() []string { return []string{"attn2.to_k", "attn2.to_v"} }

// concept is the word that was learnt.
func (t *tuning) concept(learnt *engine.Tensor) (*sd.Concept, error) {
	values, err := engine.Values(learnt)
	return &sd.Concept{Placeholder: t.config.Placeholder, Count: t.config.Vectors, Vectors: values}, err
}
