package sd

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/weights"
)

// Concept is a word with its own token embeddings, as Textual Inversion learns it (Gal et al. 2023).
type Concept struct {
	Placeholder string    // the word that stands for the embeddings in prompts, such as <cat>
	Count       int       // embeddings, one after the other
	Vectors     []float32 // [Count, width of the token embeddings]
}

// ReadConcept reads a file as diffusers' load_textual_inversion does: one tensor of shape [count, width] or [width], which
// is called by its placeholder.
func ReadConcept(path string) (_ *Concept, err error) {
	source, err := weights.Open(path)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	names := source.Names()
	if len(names) != 1 {
		return nil, fmt.Errorf("%s holds %d tensors, but a learnt embedding is one that is called by its placeholder, such as <cat>", path, len(names))
	}
	x, err := source.Tensor(names[0])
	if err != nil {
		return nil, err
	}
	c := &Concept{Placeholder: names[0], Count: 1}
	switch len(x.Shape) {
	case 1:
	case 2:
		c.Count = x.Shape[0]
	default:
		return nil, fmt.Errorf("%s: %q has shape %v; a learnt embedding has [count, width]", path, names[0], x.Shape)
	}
	if c.Vectors, err = x.Float32(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if c.Count < 1 || len(c.Vectors) == 0 {
		return nil, fmt.Errorf("%s: %q has shape %v; a learnt embedding has at least one vector", path, names[0], x.Shape)
	}
	for _, v := range c.Vectors {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("%s: %q holds a number that is not finite; learn it again", path, names[0])
		}
	}
	return c, nil
}

// Write writes the file that ReadConcept and diffusers' load_textual_inversion read, in float32.
func (c *Concept) Write(path string) error {
	x := weights.NewFloat32(c.Placeholder, []int{c.Count, len(c.Vectors) / c.Count}, c.Vectors)
	return weights.Write(path, []*weights.Tensor{x}, map[string]string{"format": "pt"})
}

// tokenTable is the name of a text encoder's token embeddings.
const tokenTable = "text_model.embeddings.token_embedding.weight"

// TokenTable is the position of the token embeddings [vocabulary, width] among the parameters.
func (t *TextEncoder) TokenTable() int {
	return slices.IndexFunc(t.specs, func(s nn.Spec) bool { return s.Name == tokenTable })
}

// CheckConcepts says whether the model can take learnt embeddings: pipelines with two text encoders cannot.
func (m *Model) CheckConcepts() error {
	if m.XL {
		return fmt.Errorf("%s has two text encoders; embeddings of one's tokens are for Stable Diffusion 1.x and 2.x", m.Dir)
	}
	tower := m.Towers[0]
	if rows := engine.Shape(tower.Params.Tensors[tower.Encoder.TokenTable()])[0]; rows != tower.Tokenizer.VocabSize() {
		return fmt.Errorf("%s: the text encoder has %d token embeddings for the %d tokens of its tokenizer; new words need as many of one as of the other",
			m.Dir, rows, tower.Tokenizer.VocabSize())
	}
	return nil
}

// Learn teaches the model's tokenizer and text encoder a word. It must come before the model is used; a model that learnt
// words is for making pictures, [Model.Save] does not write them.
func (m *Model) Learn(c *Concept) error {
	if err := m.CheckConcepts(); err != nil {
		return err
	}
	tower := &m.Towers[0]
	width := tower.Encoder.Config.Width
	if len(c.Vectors) != c.Count*width {
		return fmt.Errorf("the embedding %q has vectors of %d numbers, but the text encoder of %s has %d; take one that was learnt for this model",
			c.Placeholder, len(c.Vectors)/c.Count, m.Dir, width)
	}
	hash, err := m.ComponentHash(tower.Name)
	if err != nil {
		return err
	}
	words, err := tower.Tokenizer.WithPlaceholder(c.Placeholder, c.Count)
	if err != nil {
		return err
	}
	at := tower.Encoder.TokenTable()
	table, err := tower.Params.Host(at)
	if err != nil {
		return err
	}
	extended := engine.Float32s(append(slices.Clip(table), c.Vectors...), words.VocabSize(), width)
	tensors := slices.Clone(tower.Params.Tensors)
	engine.Free(tensors[at])
	tensors[at] = extended
	tower.Params, tower.Tokenizer = tower.Params.WithTensors(tensors), words
	m.mu.Lock()
	defer m.mu.Unlock()
	h := sha256.New()
	fmt.Fprintf(h, "%s %q %d\n", hash, c.Placeholder, c.Count)
	_ = binary.Write(h, binary.LittleEndian, c.Vectors) // a hash never fails to take bytes
	m.hashes[tower.Name] = hex.EncodeToString(h.Sum(nil))
	return nil
}
