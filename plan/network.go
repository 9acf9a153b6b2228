package plan

import (
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/nn"
)

// network is what runs evaluate, without numbers: its graphs are compiled, and never run.
type network struct{ *denoise.Network }

// newTextNetwork has the text encoders as well, and so many further token embeddings.
func (s *session) newTextNetwork(learnt int) (network, error) {
	if learnt > 0 {
		if err := s.arch.checkConcepts(); err != nil {
			return network{}, err
		}
	}
	return network{denoise.TextLayout(s.model, learnt)}, nil
}

// pick takes the selected ones out of a list of what parameters have.
func pick[T any](s denoise.Selection, list []T) []T {
	index := s.Indices()
	out := make([]T, len(index))
	for i, k := range index {
		out[i] = list[k]
	}
	return out
}

// put is a point with the selected tensors replaced.
func put(s denoise.Selection, point, ts []*tensor) []*tensor {
	out := concat(point)
	for i, k := range s.Indices() {
		out[k] = ts[i]
	}
	return out
}

// shapes are those of selected parameters.
func (n network) shapes(s denoise.Selection) []input { return shapesOf(s.Specs(n.Network)) }

func shapesOf(specs []nn.Spec) []input {
	out := make([]input, len(specs))
	for i, s := range specs {
		out[i] = input{dims: s.EngineShape()}
	}
	return out
}

func (in input) bytes() int {
	n := 4
	for _, d := range in.dims {
		n *= d
	}
	return n
}

// batch is the shape of a batch: how many pictures, and the sides of their latents.
type batch struct {
	size, height, width int
	tokens              bool // ids in place of embeddings
	seeded              bool // with the seed of a dropout
}

// asTokens is the batch for a network with text encoders.
func (b batch) asTokens() batch {
	b.tokens = true
	return b
}

// inputs are those of a loss: noisy latents, timesteps, what prompts are, what SDXL adds, the seed of a dropout, target and
// weights.
func (n network) inputs(b batch) []input {
	in := n.conditions(b)
	if b.seeded {
		in = append(in, input{dims: []int{1}, integer: true})
	}
	return append(in, n.latents(b), input{dims: []int{b.size}})
}

func (n network) latents(b batch) input {
	return input{dims: []int{b.size, n.Model.UNet.Config.InChannels, b.height, b.width}}
}

// prompts is the input that holds a batch's prompts.
func (n network) prompts(b batch) input {
	tokens := n.Model.Towers[0].Encoder.Config.Tokens
	switch {
	case !b.tokens:
		return input{dims: []int{b.size, tokens, n.Model.UNet.Config.ContextWidth}}
	case n.Model.XL:
		return input{dims: []int{b.size, 2*tokens + 1}, integer: true}
	}
	return input{dims: []int{b.size, tokens}, integer: true}
}

// conditions are the inputs of a prediction.
func (n network) conditions(b batch) []input {
	in := []input{n.latents(b), {dims: []int{b.size}}, n.prompts(b)}
	if n.Model.XL && !b.tokens {
		in = append(in, input{dims: []int{b.size, n.Model.UNet.Config.PooledWidth()}})
	}
	if n.Model.XL {
		in = append(in, input{dims: []int{b.size, 6}})
	}
	return in
}

// retokened is the inputs of a loss on a batch with ids in place of its embeddings.
func (n network) retokened(in []*tensor, ids *tensor) []*tensor {
	out := concat(in[:2], []*tensor{ids})
	rest := in[3:]
	if n.Model.XL {
		rest = rest[1:] // pooled embeddings
	}
	return append(out, rest...)
}
