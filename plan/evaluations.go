package plan

import (
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// of compiles a graph of package denoise for inputs of the given shapes.
func (c *compiler) of(g denoise.Graph, inputs ...[]input) (*program, error) {
	all := slices.Concat(inputs...)
	return c.program(g.Name, fmt.Sprintf("%s, %s", g.Key, shapesKey(all)), all, g.Build)
}

func (c *compiler) prediction(n network, b batch) (*program, error) {
	return c.of(n.PredictionGraph(), shapesOf(n.Specs()), n.conditions(b))
}

// embedding is the text encoder of a network that has its own, on one prompt.
func (c *compiler) embedding(n network) (*program, error) {
	return c.of(n.EmbeddingGraph(), shapesOf(n.Specs()), []input{n.prompts(batch{size: 1, tokens: true})})
}

func (c *compiler) gradient(n network, by denoise.Selection, limit float64, b batch) (*program, error) {
	return c.of(n.GradientGraph(by, denoise.Loss{Cap: limit}), shapesOf(n.Specs()), n.inputs(b))
}

func (c *compiler) gradientWithError(n network, by denoise.Selection, limit float64, b batch) (*program, error) {
	return c.of(n.GradientWithErrorGraph(by, denoise.Loss{Cap: limit}), shapesOf(n.Specs()), n.inputs(b))
}

func (c *compiler) pullback(n network, by denoise.Selection, b batch) (*program, error) {
	return c.of(n.PullbackGraph(by), shapesOf(n.Specs()), []input{n.latents(b)}, n.conditions(b))
}

func (c *compiler) hessianProduct(n network, by denoise.Selection, b batch) (*program, error) {
	return c.of(n.HessianProductGraph(by, denoise.Loss{}), shapesOf(n.Specs()), n.shapes(by), n.inputs(b))
}

func (c *compiler) gaussNewtonProduct(n network, by denoise.Selection, b batch) (*program, error) {
	return c.of(n.GaussNewtonProductGraph(by), shapesOf(n.Specs()), n.shapes(by), n.inputs(b))
}

func (c *compiler) crossProduct(n network, outer, inner denoise.Selection, b batch) (*program, error) {
	return c.of(n.CrossProductGraph(outer, inner, denoise.Loss{}), shapesOf(n.Specs()), n.shapes(inner), n.inputs(b))
}

// numbers are so many inputs of one number each.
func numbers(n int) []input { return make([]input, n) }

// step is one step of an optimizer.
func (c *compiler) step(shapes []input, o train.Optimizer) (*program, error) {
	return c.of(denoise.StepGraph(o, len(shapes)), repeated(shapes, 2), states(o, shapes), numbers(3))
}

// reverse takes derivatives back through one.
func (c *compiler) reverse(shapes []input, o train.Optimizer) (*program, error) {
	kept := states(o, shapes)
	return c.of(denoise.ReverseGraph(o, len(shapes)), repeated(shapes, 2), kept, shapes, kept, numbers(3))
}

// metric is that of an optimizer's second moments.
func (c *compiler) metric(shapes []input, o train.Optimizer) (*program, error) {
	return c.of(denoise.MetricGraph(o, len(shapes)), shapes, numbers(1))
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
func (c *compiler) combination(shapes []input, k int) (*program, error) {
	return c.of(denoise.CombinationGraph(k, len(shapes)), repeated(shapes, k), numbers(k))
}

func (c *compiler) innerProduct(shapes []input) (*program, error) {
	return c.of(denoise.InnerProductGraph(len(shapes)), repeated(shapes, 2))
}

func (c *compiler) product(shapes []input) (*program, error) {
	return c.of(denoise.ProductGraph(len(shapes)), repeated(shapes, 2))
}

func repeated(shapes []input, times int) []input {
	var out []input
	for range times {
		out = append(out, shapes...)
	}
	return out
}

// shapesKey names a list of shapes.
func shapesKey(shapes []input) string {
	h := fnv.New64a()
	fmt.Fprint(h, shapes)
	return fmt.Sprintf("%d tensors %x", len(shapes), h.Sum64())
}

// vaeEncoder and vaeDecoder are those of sd.Model. So are the names of these programs, by which compiled ones are found again.
func (c *compiler) vaeEncoder(a *Architecture, side int) (*program, error) {
	v := sd.NewVAE(a.VAE)
	shapes := shapesOf(v.Specs())
	n := len(shapes)
	in := append(shapes, input{dims: []int{1, a.VAE.InChannels, side, side}})
	return c.program("vae encoder", fmt.Sprintf("encoder of %s at %d", a.Name, side), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		mean, logVariance := v.Encode(nn.NewWeights(names(v.Specs()), in[:n]), in[n])
		return []*ad.Value{mean, logVariance}
	})
}

func (c *compiler) vaeDecoder(a *Architecture, compute nn.Compute, b batch) (*program, error) {
	v := sd.NewVAE(a.VAE)
	shapes := shapesOf(v.Specs())
	n := len(shapes)
	in := append(shapes, input{dims: []int{b.size, a.VAE.LatentChannels, b.height, b.width}})
	return c.program("vae decoder in "+string(compute), fmt.Sprintf("decoder of %s in %s, %v", a.Name, compute, b), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
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
	return c.program(towers[tower], fmt.Sprintf("text encoder %d of %s", tower, a.Name), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
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

// merge adds an adapter's factors into a weight, as sd.Model.Merge does.
func (c *compiler) merge(weight, down, up input, a *sd.Adapter) (*program, error) {
	in := []input{weight, down, up}
	return c.program(fmt.Sprintf("merge adapter of rank %d ×%g", a.Rank, a.Scale), fmt.Sprintf("merge %g %s", a.Scale, shapesKey(in)), in, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		up, down := ad.Reshape(in[2], in[2].Dim(0), a.Rank), ad.Reshape(in[1], a.Rank, in[1].Size()/a.Rank)
		change := ad.Reshape(ad.MatMul(up, down, false, false), in[0].Dims()...)
		return []*ad.Value{ad.Add(in[0], ad.Scale(change, a.Scale))}
	})
}

func names(specs []nn.Spec) []string {
	out := make([]string, len(specs))
	for i, s := range specs {
		out[i] = s.Name
	}
	return out
}
