package denoise

import (
	"fmt"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// textPart is the text encoder in a network.
type textPart struct {
	encoder *sd.TextEncoder
	from    int // its first parameter in the network's list
	table   int // position of the token embeddings among its parameters
	learnt  int // rows that follow them; 0: none
}

// NewTextNetwork is a model's UNet behind its text encoder: batches hold token ids (see DatasetOptions.Tokenizer). Its
// groups of parameters are the UNet, the text encoder and, if learnt is above 0, so many further token embeddings
// [learnt, width], whose ids follow the vocabulary. It is for models with one text encoder.
func NewTextNetwork(m *sd.Model, learnt int) (*Network, error) {
	if m.XL {
		return nil, fmt.Errorf("%s has two text encoders; training through one is for Stable Diffusion 1.x and 2.x", m.Dir)
	}
	if learnt > 0 {
		if err := m.CheckConcepts(); err != nil {
			return nil, err
		}
	}
	n, tower := NewNetwork(m), m.Towers[0]
	n.text = &textPart{encoder: tower.Encoder, from: len(n.specs), table: tower.Encoder.TokenTable(), learnt: learnt}
	for _, s := range tower.Encoder.Specs() {
		s.Name = tower.Name + "." + s.Name
		n.specs = append(n.specs, s)
	}
	n.starts = append(n.starts, len(n.specs))
	if learnt > 0 {
		n.specs = append(n.specs, nn.Spec{Name: "learnt_embeddings", Shape: []int{learnt, tower.Encoder.Config.Width}, Init: nn.Embedding})
		n.starts = append(n.starts, len(n.specs))
	}
	n.architecture += fmt.Sprintf("text %+v and %d\n", tower.Encoder.Config, learnt)
	return n, nil
}

// encode turns token ids [B, tokens] into what the UNet is conditioned on, in a graph.
func (t *textPart) encode(p []*ad.Value, ids *ad.Value) *ad.Value {
	specs := t.encoder.Specs()
	names, values := make([]string, len(specs)), slices.Clone(p[t.from:t.from+len(specs)])
	for i, s := range specs {
		names[i] = s.Name
	}
	if t.learnt > 0 {
		values[t.table] = ad.Concat(0, values[t.table], p[t.from+len(specs)])
	}
	return t.encoder.Forward(nn.NewWeights(names, values), ids, nil).Last
}
