package denoise

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// Tokenizer turns prompts into the token ids of one sample, and tells what of a prompt did not fit.
type Tokenizer interface {
	Encode(prompt string) (ids []int32, cut string)
}

// Tokenizers is the tokenizer of a network of the model with its text encoders: the model's own, or for SDXL both of them.
func Tokenizers(m *sd.Model) Tokenizer {
	if m.XL {
		return pair(m.Towers)
	}
	return m.Towers[0].Tokenizer
}

// pair joins the ids of the two tokenizers of SDXL and the position of the second one's end of text.
type pair []sd.TextTower

// Encode returns 2·tokens + 1 numbers.
func (p pair) Encode(prompt string) (ids []int32, cut string) {
	for _, t := range p {
		more, rest := t.Tokenizer.Encode(prompt)
		ids = append(ids, more...)
		if rest != "" {
			cut = rest
		}
	}
	last := p[len(p)-1].Tokenizer
	end := slices.Index(ids[len(ids)-last.Length():], last.EndID())
	return append(ids, int32(max(0, end))), cut
}

// textPart are the text encoders in a network.
type textPart struct {
	towers []textTower
	xl     bool
	table  int // position of the token embeddings among the first encoder's parameters
	learnt int // rows that follow them; 0: none
	words  Tokenizer
}

// textTower is one text encoder.
type textTower struct {
	encoder *sd.TextEncoder
	from    int // its first parameter in the network's list
}

// NewTextNetwork is a model's UNet behind its text encoders: batches hold token ids (see DatasetOptions.Tokenizer), or
// embeddings as for other networks. Its groups of parameters are the UNet, each text encoder and, if learnt is above 0, so
// many further token embeddings [learnt, width], whose ids follow the vocabulary; these are for models with one text encoder.
func NewTextNetwork(m *sd.Model, learnt int) (*Network, error) {
	if learnt > 0 {
		if err := m.CheckConcepts(); err != nil {
			return nil, err
		}
	}
	return TextLayout(m, learnt), nil
}

// TextLayout is NewTextNetwork without a look at whether the model's tokenizer has room for further embeddings: for a
// model without numbers, whose graphs are to be counted.
func TextLayout(m *sd.Model, learnt int) *Network {
	n := NewNetwork(m)
	n.text = &textPart{xl: m.XL, table: m.Towers[0].Encoder.TokenTable(), learnt: learnt, words: Tokenizers(m)}
	for _, tower := range m.Towers {
		n.text.towers = append(n.text.towers, textTower{encoder: tower.Encoder, from: len(n.specs)})
		for _, s := range tower.Encoder.Specs() {
			s.Name = tower.Name + "." + s.Name
			n.specs = append(n.specs, s)
		}
		n.starts = append(n.starts, len(n.specs))
		n.architecture += fmt.Sprintf("text %+v and %d\n", tower.Encoder.Config, learnt)
	}
	if learnt > 0 {
		n.specs = append(n.specs, nn.Spec{Name: "learnt_embeddings", Shape: []int{learnt, m.Towers[0].Encoder.Config.Width}, Init: nn.Embedding})
		n.starts = append(n.starts, len(n.specs))
	}
	return n
}

// SetTokenizer makes a network with text encoders understand prompts with the words that are learnt.
func (n *Network) SetTokenizer(words Tokenizer) { n.text.words = words }

// Tokenizer is what a network with text encoders reads prompts with; nil for a network without.
func (n *Network) Tokenizer() Tokenizer {
	if n.text == nil {
		return nil
	}
	return n.text.words
}

// TextParameters selects the text encoders' parameters that predictions depend on. Of an encoder that is followed up to
// its last layer but one, as those of SDXL are, the rest is left out: an optimizer would only decay it.
func (n *Network) TextParameters() Selection {
	s := Selection{name: "text parameters"}
	for i, t := range n.text.towers {
		pooled := n.text.xl && i == len(n.text.towers)-1
		last := fmt.Sprintf("encoder.layers.%d.", t.encoder.Config.Layers-1)
		for k, spec := range t.encoder.Specs() {
			beyond := strings.Contains(spec.Name, last) || strings.Contains(spec.Name, "final_layer_norm")
			projection := strings.Contains(spec.Name, "text_projection")
			if !pooled && (projection || n.text.xl && beyond) {
				continue
			}
			s.index = append(s.index, t.from+k)
		}
	}
	return s
}

// encode turns token ids, [B, tokens] or for SDXL [B, 2·tokens + 1], into what the UNet is conditioned on, in a graph.
func (t *textPart) encode(p []*ad.Value, ids *ad.Value) (context, pooled *ad.Value) {
	batch, at := ids.Dim(0), 0
	var states []*ad.Value
	for i, tower := range t.towers {
		specs, tokens := tower.encoder.Specs(), tower.encoder.Config.Tokens
		names, values := make([]string, len(specs)), slices.Clone(p[tower.from:tower.from+len(specs)])
		for k, s := range specs {
			names[k] = s.Name
		}
		if t.learnt > 0 {
			values[t.table] = ad.Concat(0, values[t.table], p[tower.from+len(specs)])
		}
		own, ends := ids, (*ad.Value)(nil)
		switch {
		case t.xl && i == len(t.towers)-1:
			ends = ad.Reshape(ad.Slice(ids, 1, ids.Dim(1)-1, ids.Dim(1)), batch)
		case tower.encoder.Config.Projection > 0:
			ends = ids.Tape().Indices(make([]int32, batch), batch) // of an output that is not used
		}
		if t.xl {
			own = ad.Slice(ids, 1, at, at+tokens)
			at += tokens
		}
		out := tower.encoder.Forward(nn.NewWeights(names, values), own, ends)
		pooled = out.Pooled
		if t.xl {
			states = append(states, out.Penultimate)
		} else {
			states = append(states, out.Last)
		}
	}
	if !t.xl {
		return states[0], nil
	}
	return ad.Concat(2, states...), pooled
}

// Embedding is what a prompt is to the UNet at a point: the text encoders of the point encode it, or those of the model
// where the network has none. The cache, which may be nil, keeps what the model's own make of it.
func (n *Network) Embedding(ctx context.Context, p Point, cache *data.Cache, prompt string) (*sd.Embedding, error) {
	if n.text == nil {
		if cache == nil {
			return n.Model.EncodePrompt(ctx, prompt)
		}
		return CachedEmbedding(ctx, n.Model, cache, prompt)
	}
	ids, cut := n.text.words.Encode(prompt)
	in := engine.Int32s(ids, 1, len(ids))
	defer engine.Free(in)
	out, err := n.call(ctx, n.EmbeddingGraph(), p, nil, []*engine.Tensor{in})
	if err != nil {
		return nil, err
	}
	defer engine.Free(out...)
	shape := engine.Shape(out[0])
	e := &sd.Embedding{Tokens: shape[1], Width: shape[2], Cut: cut}
	if e.Context, err = engine.Values(out[0]); err == nil && len(out) > 1 {
		e.Pooled, err = engine.Values(out[1])
	}
	return e, err
}

// NegativeEmbedding is the embedding that guidance steers away from at a point: see [sd.Model.NegativeEmbedding].
func (n *Network) NegativeEmbedding(ctx context.Context, p Point, prompt string) (*sd.Embedding, error) {
	if n.text == nil {
		return n.Model.NegativeEmbedding(ctx, prompt)
	}
	e, err := n.Embedding(ctx, p, nil, prompt)
	if err == nil && n.Model.XL && n.Model.ForceZeros && prompt == "" {
		clear(e.Context)
		clear(e.Pooled)
	}
	return e, err
}
