package plan

import (
	"fmt"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// evaluation is a program over a network: parameters, directions, and what of a batch it takes.
func (c *compiler) evaluation(what string, n *network, directions, in []input, build func(p, v, b []*ad.Value) []*ad.Value) (*program, error) {
	key := fmt.Sprintf("%s of %s, %s, %v", what, n.key, shapesKey(directions), in)
	np, nv := len(n.specs), len(directions)
	all := append(append(shapesOf(n.specs), directions...), in...)
	return c.program(key, all, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return build(in[:np], in[np:np+nv], in[np+nv:])
	})
}

func (c *compiler) prediction(n *network, b batch) (*program, error) {
	return c.evaluation("prediction", n, nil, n.conditions(b), func(p, _, b []*ad.Value) []*ad.Value {
		return []*ad.Value{n.predict(p, b)}
	})
}

func (c *compiler) gradient(n *network, by selection, limit float64, b batch) (*program, error) {
	return c.evaluation(fmt.Sprintf("gradient by %s, %t,", by.name, limit > 0), n, nil, n.inputs(b), func(p, _, b []*ad.Value) []*ad.Value {
		loss := n.loss(p, b, limit)
		return append([]*ad.Value{loss}, ad.Gradient(loss, by.of(p)...)...)
	})
}

// gradientWithError has the loss without its bound as well.
func (c *compiler) gradientWithError(n *network, by selection, limit float64, b batch) (*program, error) {
	return c.evaluation(fmt.Sprintf("gradient with error by %s, %t,", by.name, limit > 0), n, nil, n.inputs(b), func(p, _, b []*ad.Value) []*ad.Value {
		loss, whole := n.losses(p, b, limit)
		return append([]*ad.Value{loss, ad.Scale(whole, 1)}, ad.Gradient(loss, by.of(p)...)...)
	})
}

// pullback is Jᵀu for the Jacobian J of the prediction.
func (c *compiler) pullback(n *network, by selection, b batch) (*program, error) {
	return c.evaluation("pullback by "+by.name, n, []input{n.latents(b)}, n.conditions(b), func(p, u, b []*ad.Value) []*ad.Value {
		return ad.Pullback(n.predict(p, b), u[0], by.of(p)...)
	})
}

func (c *compiler) hessianProduct(n *network, by selection, b batch) (*program, error) {
	n = n.exact()
	return c.evaluation("Hessian product by "+by.name, n, n.shapes(by), n.inputs(b), func(p, v, b []*ad.Value) []*ad.Value {
		return ad.HessianProduct(n.loss(p, b, 0), by.of(p), v)
	})
}

func (c *compiler) gaussNewtonProduct(n *network, by selection, b batch) (*program, error) {
	n = n.exact()
	return c.evaluation("Gauss–Newton product by "+by.name, n, n.shapes(by), n.inputs(b), func(p, v, b []*ad.Value) []*ad.Value {
		prediction, weights := n.predict(p, b), b[len(b)-1]
		u := ad.StopGradient(prediction)
		forward := ad.Gradient(ad.Dot(ad.Pullback(prediction, u, by.of(p)...), v), u)[0]
		size := prediction.Dim(0)
		perSample := ad.Scale(ad.Reshape(weights, size, 1, 1, 1), 2*float64(size)/float64(prediction.Size()))
		return ad.Pullback(prediction, ad.Mul(perSample, forward), by.of(p)...)
	})
}

func (c *compiler) crossProduct(n *network, outer, inner selection, b batch) (*program, error) {
	n = n.exact()
	return c.evaluation(fmt.Sprintf("cross product by %s and %s", outer.name, inner.name), n, n.shapes(inner), n.inputs(b), func(p, u, b []*ad.Value) []*ad.Value {
		inward := ad.Gradient(n.loss(p, b, 0), inner.of(p)...)
		return ad.Gradient(ad.Dot(inward, u), outer.of(p)...)
	})
}

// step is one step of an optimizer: parameters, gradients and moments, then rate, count and scale.
func (c *compiler) step(key string, shapes []input, o train.Optimizer) (*program, error) {
	n, slots := len(shapes), o.StateSlots()
	in := append(repeated(shapes, 2), states(o, shapes)...)
	o.LR = 0 // an input
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

func (c *compiler) vaeDecoder(a *Architecture, compute nn.Compute, b batch) (*program, error) {
	v := sd.NewVAE(a.VAE)
	shapes := shapesOf(v.Specs())
	n := len(shapes)
	in := append(shapes, input{dims: []int{b.size, a.VAE.LatentChannels, b.height, b.width}})
	return c.program(fmt.Sprintf("decoder of %s in %s, %v", a.Name, compute, b), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		z := ad.Scale(in[n], 1/a.VAE.ScalingFactor)
		return []*ad.Value{v.Decode(nn.NewWeights(names(v.Specs()), in[:n]).ComputeIn(compute), z)}
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
