package plan

import (
	"fmt"
	"hash/fnv"
	"strings"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// network is a UNet with whatever a denoise.Network puts on it, without numbers. Package denoise lays the parameters out; the
// graphs are written here as there, of the same building blocks.
type network struct {
	key    string // names everything that a program depends on but the batch
	arch   *Architecture
	layout *denoise.Network // which is never evaluated
	unet   *sd.UNet
	specs  []nn.Spec

	adapters []*sd.Adapter
	starts   []int // of the groups that follow the UNet's: adapters, text encoders and learnt words, or a spectrum
	text     []*sd.TextEncoder
	learnt   int // token embeddings that follow the first text encoder
	spectrum *sd.Spectrum

	checkpoints bool
	compute     nn.Compute
	dropout     float64
}

func newNetwork(a *Architecture, adapters ...*sd.Adapter) *network {
	n := &network{arch: a, adapters: adapters, key: a.Name}
	for _, adapter := range adapters {
		n.key += fmt.Sprintf(" + adapter of rank %d on %d layers", adapter.Rank, len(adapter.Layers))
	}
	return n.laidOut(denoise.NewNetwork(a.skeleton(), adapters...), len(adapters))
}

// newTextNetwork has the text encoders as well, and so many further token embeddings. These follow the layout: a model
// without a tokenizer cannot say whether it has room for them.
func newTextNetwork(a *Architecture, learnt int) (*network, error) {
	layout, err := denoise.NewTextNetwork(a.skeleton(), 0)
	if err != nil {
		return nil, err
	}
	n := &network{arch: a, learnt: learnt, key: fmt.Sprintf("%s with text and %d embeddings", a.Name, learnt)}
	for _, t := range a.Text {
		n.text = append(n.text, sd.NewTextEncoder(t))
	}
	n.laidOut(layout, len(n.text))
	if learnt == 0 {
		return n, nil
	}
	if a.XL {
		return nil, fmt.Errorf("%s has two text encoders; embeddings of one's tokens are for Stable Diffusion 1.x and 2.x", a.Name)
	}
	n.specs = append(n.specs, nn.Spec{Name: "learnt_embeddings", Shape: []int{learnt, a.Text[0].Width}})
	n.starts = append(n.starts, len(n.specs))
	return n, nil
}

// embeddings selects the further token embeddings.
func (n *network) embeddings() selection {
	return selection{name: "embeddings", index: []int{len(n.specs) - 1}}
}

// newSpectralNetwork has shifted singular values.
func newSpectralNetwork(a *Architecture) *network {
	m := a.skeleton()
	n := &network{arch: a, spectrum: m.NewSpectrum(), key: a.Name + " with a spectrum"}
	return n.laidOut(denoise.NewSpectralNetwork(m, n.spectrum), 2)
}

// laidOut takes over the parameters of a layout with so many groups after the UNet's.
func (n *network) laidOut(layout *denoise.Network, groups int) *network {
	n.layout, n.specs, n.unet = layout, layout.Specs(), layout.Model.UNet
	at := layout.Group(0).Len()
	for i := range groups {
		n.starts = append(n.starts, at)
		at += layout.Group(i + 1).Len()
	}
	n.starts = append(n.starts, at)
	return n
}

// checkpointed makes the network compute activations again when derivatives need them.
func (n *network) checkpointed(on bool) *network {
	if n.checkpoints = on; on {
		n.key += ", checkpointed"
	}
	return n
}

// computing makes the network compute in a type of numbers.
func (n *network) computing(in nn.Compute) *network {
	if in == nn.BFloat16 {
		n.compute = in
		n.key += ", bfloat16"
	}
	return n
}

// exact is the network in float32, see denoise.Network.Exact.
func (n *network) exact() *network {
	if n.compute != nn.BFloat16 {
		return n
	}
	next := *n
	next.compute, next.key = nn.Float32, strings.TrimSuffix(n.key, ", bfloat16")
	return &next
}

// selection is a list of parameters, by their positions.
type selection struct {
	name  string
	index []int
}

func (n *network) group(i int) selection {
	return n.selected(fmt.Sprintf("group %d", i), n.layout.Group(i))
}

// selected finds out what a selection of the layout selects, by having it pick from marks.
func (n *network) selected(name string, s denoise.Selection) selection {
	marks := make(denoise.Point, len(n.specs))
	at := make(map[*engine.Tensor]int, len(n.specs))
	for i := range marks {
		marks[i] = new(engine.Tensor)
		at[marks[i]] = i
	}
	out := selection{name: name}
	for _, mark := range s.Of(marks) {
		out.index = append(out.index, at[mark])
	}
	return out
}

// named is denoise.Network.NamedOf.
func (n *network) named(group int, parts ...string) (selection, error) {
	s, err := n.layout.NamedOf(group, parts...)
	if err != nil {
		return selection{}, err
	}
	return n.selected(fmt.Sprintf("%s of group %d", strings.Join(parts, ","), group), s), nil
}

func (s selection) of(v []*ad.Value) []*ad.Value { return pick(v, s.index) }

func pick[T any](list []T, index []int) []T {
	out := make([]T, len(index))
	for i, k := range index {
		out[i] = list[k]
	}
	return out
}

// put is a point with the selected tensors replaced.
func (s selection) put(point, ts []*tensor) []*tensor {
	out := concat(point)
	for i, k := range s.index {
		out[k] = ts[i]
	}
	return out
}

func (n *network) shapes(s selection) []input { return shapesOf(pick(n.specs, s.index)) }

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

// shapesKey names a list of shapes.
func shapesKey(shapes []input) string {
	h := fnv.New64a()
	fmt.Fprint(h, shapes)
	return fmt.Sprintf("%d tensors %x", len(shapes), h.Sum64())
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
func (n *network) inputs(b batch) []input {
	in := n.conditions(b)
	if b.seeded {
		in = append(in, input{dims: []int{1}, integer: true})
	}
	return append(in, n.latents(b), input{dims: []int{b.size}})
}

func (n *network) latents(b batch) input {
	return input{dims: []int{b.size, n.unet.Config.InChannels, b.height, b.width}}
}

// prompts is the input that holds a batch's prompts.
func (n *network) prompts(b batch) input {
	switch {
	case !b.tokens:
		return input{dims: []int{b.size, n.arch.tokens(), n.unet.Config.ContextWidth}}
	case n.arch.XL:
		return input{dims: []int{b.size, 2*n.arch.tokens() + 1}, integer: true}
	}
	return input{dims: []int{b.size, n.arch.tokens()}, integer: true}
}

func (n *network) conditions(b batch) []input {
	in := []input{n.latents(b), {dims: []int{b.size}}, n.prompts(b)}
	if n.arch.XL && !b.tokens {
		in = append(in, n.pooled(b))
	}
	if n.arch.XL {
		in = append(in, input{dims: []int{b.size, 6}})
	}
	return in
}

func (n *network) pooled(b batch) input {
	return input{dims: []int{b.size, n.unet.Config.PooledWidth()}}
}

func (n *network) predict(p, b []*ad.Value) *ad.Value {
	c, rest := sd.Conditions{Timesteps: b[1], Context: b[2]}, b[3:]
	if len(n.text) > 0 && b[2].Rank() == 2 {
		c.Context, c.Pooled = n.encode(p, b[2])
	}
	if n.arch.XL && c.Pooled == nil {
		c.Pooled, rest = rest[0], rest[1:]
	}
	if n.arch.XL {
		c.TimeIDs, rest = rest[0], rest[1:]
	}
	w := n.weights(p)
	if len(rest) > 0 && rest[0].Rank() == 1 {
		w = w.WithDropout(n.dropout, rest[0])
	}
	return n.unet.Forward(w, b[0], c)
}

// weights is denoise.Network's.
func (n *network) weights(p []*ad.Value) *nn.Weights {
	unet := n.starts[0]
	w := nn.NewWeights(names(n.specs[:unet]), p[:unet])
	for i, a := range n.adapters {
		w = w.WithAdapter(a.Factors(p[n.starts[i]:n.starts[i+1]]))
	}
	if n.spectrum != nil {
		w = n.spectrum.Apply(w, p[:unet], p[n.starts[0]:n.starts[1]], p[n.starts[1]:n.starts[2]])
	}
	if n.checkpoints {
		w = w.WithCheckpoints()
	}
	return w.ComputeIn(n.compute)
}

// encode is what denoise makes of token ids.
func (n *network) encode(p []*ad.Value, ids *ad.Value) (context, pooled *ad.Value) {
	size, tokens := ids.Dim(0), n.arch.tokens()
	var states []*ad.Value
	for i, encoder := range n.text {
		specs := encoder.Specs()
		values := concat(p[n.starts[i] : n.starts[i]+len(specs)])
		if n.learnt > 0 {
			values[encoder.TokenTable()] = ad.Concat(0, values[encoder.TokenTable()], p[n.starts[i+1]])
		}
		own, ends := ids, (*ad.Value)(nil)
		switch {
		case n.arch.XL && i == len(n.text)-1:
			ends = ad.Reshape(ad.Slice(ids, 1, ids.Dim(1)-1, ids.Dim(1)), size)
		case encoder.Config.Projection > 0:
			ends = ids.Tape().Indices(make([]int32, size), size)
		}
		if n.arch.XL {
			own = ad.Slice(ids, 1, i*tokens, (i+1)*tokens)
		}
		out := encoder.Forward(nn.NewWeights(names(specs), values), own, ends)
		pooled = out.Pooled
		if n.arch.XL {
			states = append(states, out.Penultimate)
		} else {
			states = append(states, out.Last)
		}
	}
	if !n.arch.XL {
		return states[0], nil
	}
	return ad.Concat(2, states...), pooled
}

// losses are those of denoise.Loss: with a bound on the error of a sample, if there is one, and without.
func (n *network) losses(p, b []*ad.Value, limit float64) (bounded, whole *ad.Value) {
	e := ad.Square(ad.Sub(n.predict(p, b), b[len(b)-2]))
	perSample := ad.Scale(ad.SumTo(e, e.Dim(0), 1, 1, 1), float64(e.Dim(0))/float64(e.Size()))
	weights := ad.Reshape(b[len(b)-1], e.Dim(0), 1, 1, 1)
	whole = ad.SumAll(ad.Mul(perSample, weights))
	if limit == 0 {
		return whole, whole
	}
	return ad.SumAll(ad.Mul(ad.Minimum(perSample, limit), weights)), whole
}

func (n *network) loss(p, b []*ad.Value, limit float64) *ad.Value {
	bounded, _ := n.losses(p, b, limit)
	return bounded
}

func names(specs []nn.Spec) []string {
	out := make([]string, len(specs))
	for i, s := range specs {
		out[i] = s.Name
	}
	return out
}
