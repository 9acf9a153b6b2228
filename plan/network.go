package plan

import (
	"fmt"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// network is a UNet with adapters, as package denoise sees it, without numbers.
type network struct {
	key      string
	arch     *Architecture
	unet     *sd.UNet
	adapters []*sd.Adapter
	specs    []nn.Spec
	starts   []int // where each group of parameters begins: the UNet, then the adapters; and the end

	checkpoints bool // see denoise.Network.CheckpointGradients
}

// group is a range of a network's parameters.
type group struct{ from, to int }

func newNetwork(a *Architecture, adapters ...*sd.Adapter) *network {
	n := &network{arch: a, adapters: adapters, starts: []int{0}, unet: sd.NewUNet(a.UNet)}
	n.specs = n.unet.Specs()
	for _, adapter := range adapters {
		n.starts = append(n.starts, len(n.specs))
		n.specs = append(n.specs, adapter.Specs()...)
	}
	n.starts = append(n.starts, len(n.specs))
	n.key = a.Name
	for i := range adapters {
		n.key += " + " + n.adapterKey(i)
	}
	return n
}

// checkpointed makes the network compute activations again when derivatives need them.
func (n *network) checkpointed(on bool) *network {
	if n.checkpoints = on; on {
		n.key += ", checkpointed"
	}
	return n
}

func (n *network) group(i int) group { return group{n.starts[i], n.starts[i+1]} }

// adapterKey names an adapter's shapes.
func (n *network) adapterKey(i int) string {
	a := n.adapters[i]
	return fmt.Sprintf("%s adapter of rank %d on %d layers", n.arch.Name, a.Rank, len(a.Layers))
}

func (g group) of(v []*ad.Value) []*ad.Value { return v[g.from:g.to] }

func (n *network) shapes(g group) []input { return shapesOf(n.specs[g.from:g.to]) }

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

// batch is the shape of a batch: how many pictures, and the side of their latents.
type batch struct {
	size, height, width int
}

// inputs are those of a loss: noisy latents, timesteps, context, what SDXL adds, target and weights. Predictions take all
// but the last two.
func (n *network) inputs(b batch) []input {
	latents := input{dims: []int{b.size, n.unet.Config.InChannels, b.height, b.width}}
	in := []input{latents, {dims: []int{b.size}}, {dims: []int{b.size, n.arch.tokens(), n.unet.Config.ContextWidth}}}
	if n.arch.XL {
		in = append(in, input{dims: []int{b.size, n.unet.Config.PooledWidth()}}, input{dims: []int{b.size, 6}})
	}
	return append(in, latents, input{dims: []int{b.size}})
}

func (n *network) predict(p, b []*ad.Value) *ad.Value {
	names := make([]string, n.starts[1])
	for i := range names {
		names[i] = n.specs[i].Name
	}
	w := nn.NewWeights(names, p[:n.starts[1]])
	for i, a := range n.adapters {
		w = w.WithAdapter(a.Factors(p[n.starts[i+1]:n.starts[i+2]]))
	}
	if n.checkpoints {
		w = w.WithCheckpoints()
	}
	c := sd.Conditions{Timesteps: b[1], Context: b[2]}
	if n.arch.XL {
		c.Pooled, c.TimeIDs = b[3], b[4]
	}
	return n.unet.Forward(w, b[0], c)
}

// loss is denoise.Loss.
func (n *network) loss(p, b []*ad.Value, limit float64) *ad.Value {
	e := ad.Square(ad.Sub(n.predict(p, b), b[len(b)-2]))
	perSample := ad.Scale(ad.SumTo(e, e.Dim(0), 1, 1, 1), float64(e.Dim(0))/float64(e.Size()))
	if limit > 0 {
		perSample = ad.Minimum(perSample, limit)
	}
	return ad.SumAll(ad.Mul(perSample, ad.Reshape(b[len(b)-1], e.Dim(0), 1, 1, 1)))
}

// evaluation is a program over a network: parameters, a direction in some of them, and a batch.
func (c *compiler) evaluation(what string, n *network, directions group, b batch, build func(p, v, b []*ad.Value) []*ad.Value) (*program, error) {
	key := fmt.Sprintf("%s of %s, %v, %v", what, n.key, directions, b)
	in := append(append(shapesOf(n.specs), n.shapes(directions)...), n.inputs(b)...)
	if what == predictionName {
		in = in[:len(in)-2]
	}
	np, nv := len(n.specs), directions.to-directions.from
	return c.program(key, in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return build(in[:np], in[np:np+nv], in[np+nv:])
	})
}

const predictionName = "prediction"

func (c *compiler) prediction(n *network, b batch) (*program, error) {
	return c.evaluation(predictionName, n, group{}, b, func(p, _, b []*ad.Value) []*ad.Value {
		return []*ad.Value{n.predict(p, b)}
	})
}

func (c *compiler) gradient(n *network, by group, limit float64, b batch) (*program, error) {
	return c.evaluation(fmt.Sprintf("gradient by %v, %t", by, limit > 0), n, group{}, b, func(p, _, b []*ad.Value) []*ad.Value {
		loss := n.loss(p, b, limit)
		return append([]*ad.Value{loss}, ad.Gradient(loss, by.of(p)...)...)
	})
}

func (c *compiler) hessianProduct(n *network, by group, b batch) (*program, error) {
	return c.evaluation("Hessian product", n, by, b, func(p, v, b []*ad.Value) []*ad.Value {
		return ad.HessianProduct(n.loss(p, b, 0), by.of(p), v)
	})
}

func (c *compiler) gaussNewtonProduct(n *network, by group, b batch) (*program, error) {
	return c.evaluation("Gauss–Newton product", n, by, b, func(p, v, b []*ad.Value) []*ad.Value {
		prediction, weights := n.predict(p, b), b[len(b)-1]
		u := ad.StopGradient(prediction)
		forward := ad.Gradient(ad.Dot(ad.Pullback(prediction, u, by.of(p)...), v), u)[0]
		size := prediction.Dim(0)
		perSample := ad.Scale(ad.Reshape(weights, size, 1, 1, 1), 2*float64(size)/float64(prediction.Size()))
		return ad.Pullback(prediction, ad.Mul(perSample, forward), by.of(p)...)
	})
}

func (c *compiler) crossProduct(n *network, outer, inner group, b batch) (*program, error) {
	return c.evaluation(fmt.Sprintf("cross product by %v", outer), n, inner, b, func(p, u, b []*ad.Value) []*ad.Value {
		inward := ad.Gradient(n.loss(p, b, 0), inner.of(p)...)
		return ad.Gradient(ad.Dot(inward, u), outer.of(p)...)
	})
}

// step is one step of an optimizer: parameters, gradients and moments, then rate, count and scale.
func (c *compiler) step(key string, shapes []input, o train.Optimizer) (*program, error) {
	n, slots := len(shapes), o.StateSlots()
	in := append(repeated(shapes, 2), states(o, shapes)...)
	return c.program(fmt.Sprintf("step of %s, %+v", key, o), append(in, input{}, input{}, input{}), func(t *ad.Tape, in []*ad.Value) []*ad.Value {
		numbers := in[(2+slots)*n:]
		out := make([]*ad.Value, (1+slots)*n)
		for i := range n {
			var state []*ad.Value
			for s := range slots {
				state = append(state, in[(2+s)*n+i])
			}
			scaled := ad.Mul(in[n+i], ad.Reshape(numbers[2], ones(in[n+i].Rank())...))
			next, states := o.Apply(numbers[0].Node(), numbers[1].Node(), in[i].Node(), scaled.Node(), ad.Nodes(state))
			out[i] = t.Input(next)
			for s, node := range states {
				out[(1+s)*n+i] = t.Input(node)
			}
		}
		return out
	})
}

// states are what an optimizer keeps of parameters of the given shapes, slot by slot.
func states(o train.Optimizer, shapes []input) []input {
	var out []input
	for slot := range o.StateSlots() {
		for _, s := range shapes {
			out = append(out, input{dims: o.StateShape(slot, s.dims)})
		}
	}
	return out
}

// combination is Σ cᵢ·vᵢ of k vectors.
func (c *compiler) combination(key string, shapes []input, k int) (*program, error) {
	n := len(shapes)
	in := repeated(shapes, k)
	for range k {
		in = append(in, input{})
	}
	return c.program(fmt.Sprintf("combination of %d of %s", k, key), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		out := make([]*ad.Value, n)
		for i := range out {
			for j := range k {
				term := ad.Mul(in[j*n+i], ad.Reshape(in[k*n+j], ones(in[j*n+i].Rank())...))
				if out[i] == nil {
					out[i] = term
				} else {
					out[i] = ad.Add(out[i], term)
				}
			}
		}
		return out
	})
}

// inner is the inner product of two vectors, tensor by tensor; multiplied their elementwise product.
func (c *compiler) inner(key string, shapes []input) (*program, error) {
	return c.pairwise("inner product of "+key, shapes, func(a, b *ad.Value) *ad.Value { return ad.SumAll(ad.Mul(a, b)) })
}

func (c *compiler) multiplied(key string, shapes []input) (*program, error) {
	return c.pairwise("product of "+key, shapes, ad.Mul)
}

func (c *compiler) pairwise(name string, shapes []input, f func(a, b *ad.Value) *ad.Value) (*program, error) {
	n := len(shapes)
	return c.program(name, repeated(shapes, 2), func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		out := make([]*ad.Value, n)
		for i := range out {
			out[i] = f(in[i], in[n+i])
		}
		return out
	})
}

func repeated(shapes []input, times int) []input {
	var out []input
	for range times {
		out = append(out, shapes...)
	}
	return out
}

func ones(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = 1
	}
	return out
}

// vaeEncoder and vaeDecoder are those of sd.Model.
func (c *compiler) vaeEncoder(a *Architecture, side int) (*program, error) {
	v := sd.NewVAE(a.VAE)
	shapes := shapesOf(v.Specs())
	n := len(shapes)
	in := append(shapes, input{dims: []int{1, a.VAE.InChannels, side, side}})
	return c.program(fmt.Sprintf("encoder of %s at %d", a.Name, side), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		mean, logVariance := v.Encode(nn.NewWeights(names(v.Specs()), in[:n]), in[n])
		return []*ad.Value{mean, logVariance}
	})
}

func (c *compiler) vaeDecoder(a *Architecture, b batch) (*program, error) {
	v := sd.NewVAE(a.VAE)
	shapes := shapesOf(v.Specs())
	n := len(shapes)
	in := append(shapes, input{dims: []int{b.size, a.VAE.LatentChannels, b.height, b.width}})
	return c.program(fmt.Sprintf("decoder of %s, %v", a.Name, b), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		z := ad.Scale(in[n], 1/a.VAE.ScalingFactor)
		return []*ad.Value{v.Decode(nn.NewWeights(names(v.Specs()), in[:n]), z)}
	})
}

// textEncoder is one of the model's text encoders on one prompt.
func (c *compiler) textEncoder(a *Architecture, tower int) (*program, error) {
	e := sd.NewTextEncoder(a.Text[tower])
	shapes := shapesOf(e.Specs())
	n := len(shapes)
	in := append(shapes, input{dims: []int{1, a.tokens()}, integer: true}, input{dims: []int{1}, integer: true})
	return c.program(fmt.Sprintf("text encoder %d of %s", tower, a.Name), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		out := e.Forward(nn.NewWeights(names(e.Specs()), in[:n]), in[n], in[n+1])
		state := out.Last
		if a.XL {
			state = out.Penultimate
		}
		if out.Pooled != nil {
			return []*ad.Value{state, out.Pooled}
		}
		return []*ad.Value{state}
	})
}

func names(specs []nn.Spec) []string {
	out := make([]string, len(specs))
	for i, s := range specs {
		out[i] = s.Name
	}
	return out
}
