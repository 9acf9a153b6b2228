package bench

import (
	"context"
	"fmt"
	"math"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

const (
	tokens       = 77 // of a prompt
	loraRank     = 4
	learningRate = 1e-4
	sampleSteps  = 30
	guidance     = 7.5
)

// workload is a UNet with random weights and a batch of random latents.
type workload struct {
	preset preset
	model  *sd.Model
	batch  *denoise.Batch

	outerBatch int // pictures of an outer step's harmful and fine-tuning batches; 0: the recipe's, one
}

func newCase(e *engine.Engine, p preset) (*workload, error) {
	m := &sd.Model{Engine: e, UNet: sd.NewUNet(p.unet), XL: p.unet.TextTime}
	c := &workload{preset: p, model: m}
	if err := c.draw(); err != nil {
		return nil, err
	}
	c.batch = c.randomBatch("bench", p.batch)
	return c, nil
}

// randomBatch is one of random latents, prompts and targets.
func (c *workload) randomBatch(purpose string, size int) *denoise.Batch {
	p := c.preset
	s := random.New(0, purpose)
	steps := make([]float32, size)
	for i := range steps {
		steps[i] = float32(s.IntN(1000))
	}
	latents := []int{size, p.unet.InChannels, p.side, p.side}
	b := &denoise.Batch{
		Noisy: normals(s, latents...), Target: normals(s, latents...), Timesteps: engine.Float32s(steps, size),
		Context: normals(s, size, tokens, p.unet.ContextWidth), Weights: constant(1/float32(size), size),
	}
	if c.model.XL {
		b.Pooled = normals(s, size, p.unet.PooledWidth())
		b.TimeIDs = constant(0, size, 6)
	}
	return b
}

func (c *workload) free() {
	c.batch.Free()
	c.model.UNetParams.Free()
}

// draw makes the weights, as sd.RandomParams does, one tensor at a time: the largest UNets would not fit into memory twice.
func (c *workload) draw() error {
	p := &sd.Params{Specs: c.model.UNet.Specs()}
	c.model.UNetParams = p
	for i := range p.Specs {
		drawn := sd.RandomParams(p.Specs[i:i+1], 0)
		p.Tensors = append(p.Tensors, drawn.Tensors...)
		if err := c.model.Engine.Place(drawn.Tensors...); err != nil {
			return err
		}
	}
	return nil
}

func normals(s *random.Stream, shape ...int) *engine.Tensor {
	return engine.Float32s(s.Normals(size(shape)), shape...)
}

func constant(value float32, shape ...int) *engine.Tensor {
	values := make([]float32, size(shape))
	for i := range values {
		values[i] = value
	}
	return engine.Float32s(values, shape...)
}

func size(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

// prepare sets one kind of work up; done releases what it holds.
func (c *workload) prepare(what string) (work func(context.Context) error, done func(), err error) {
	net, selection, point, free, err := c.network(what == LoRAStep || what == LoRAHessianProduct)
	if err != nil {
		return nil, nil, err
	}
	switch what {
	case Forward:
		return func(ctx context.Context) error {
			loss, err := net.Value(ctx, point, denoise.Loss{}, c.batch)
			if err == nil {
				err = train.CheckFinite("loss", loss, 1)
			}
			return err
		}, free, nil
	case Step, LoRAStep:
		work, descent, err := c.stepping(net, selection, point)
		if err != nil {
			free()
			return nil, nil, err
		}
		return work, func() { descent.Free(); free() }, nil
	case HessianProduct, LoRAHessianProduct:
		v, err := c.direction(selection.Specs(net))
		if err != nil {
			free()
			return nil, nil, err
		}
		return func(ctx context.Context) error {
			product, err := net.HessianProduct(ctx, point, selection, denoise.Loss{}, c.batch, v)
			product.Free()
			return err
		}, func() { v.Free(); free() }, nil
	case Generate:
		return c.generating(net, point), free, nil
	}
	free()
	return nil, nil, fmt.Errorf("there is no work called %q", what)
}

// network is the UNet, with an adapter if asked for, and what is trained of it.
func (c *workload) network(lora bool) (net *denoise.Network, s denoise.Selection, p denoise.Point, free func(), err error) {
	if !c.model.UNetParams.Tensors[0].Ok() { // used up by the steps before
		if err := c.draw(); err != nil {
			return nil, s, nil, nil, err
		}
	}
	if !lora {
		net = denoise.NewNetwork(c.model)
		p, err = net.Point(c.model.UNetParams.Tensors)
		return net, net.Group(0), p, net.Free, err
	}
	layers, err := c.model.AttentionLayers()
	if err != nil {
		return nil, s, nil, nil, err
	}
	adapter, err := sd.NewAdapter(layers, loraRank, 1)
	if err != nil {
		return nil, s, nil, nil, err
	}
	factors := adapter.Draw(0, 0.01, 0.01)
	net = denoise.NewNetwork(c.model, adapter)
	p, err = net.Point(c.model.UNetParams.Tensors, factors.Tensors)
	return net, net.Group(1), p, func() { net.Free(); factors.Free() }, err
}

// stepping goes down the loss by Adam, from one repetition to the next. As in a fine-tuning, steps take the memory of what they
// start from, here also that of the workload's own weights or adapter.
func (c *workload) stepping(net *denoise.Network, s denoise.Selection, p denoise.Point) (func(context.Context) error, *denoise.Descent, error) {
	optimizer, err := train.DefaultOptimizer(train.Adam, learningRate)
	if err != nil {
		return nil, nil, err
	}
	descent, err := denoise.NewDescent(net, s, optimizer, p)
	if err != nil {
		return nil, nil, err
	}
	descent.Own()
	return func(ctx context.Context) error {
		_, gradient, err := net.Gradient(ctx, descent.Point(), s, denoise.Loss{}, c.batch)
		if err != nil {
			return err
		}
		return descent.Step(ctx, gradient, 1, 1)
	}, descent, nil
}

func (c *workload) direction(specs []nn.Spec) (denoise.Vector, error) {
	var v denoise.Vector
	for _, s := range specs {
		v = append(v, normals(random.New(1, "direction", s.Name), s.EngineShape()...))
		if err := c.model.Engine.Place(v[len(v)-1]); err != nil {
			v.Free()
			return nil, err
		}
	}
	return v, nil
}

// generating walks from noise to latents with guidance, the whole batch at once: each call of the network sees it twice,
// without and with the prompt.
func (c *workload) generating(net *denoise.Network, p denoise.Point) func(context.Context) error {
	return func(ctx context.Context) error {
		config := c.preset.scheduler
		sampler, err := diffusion.NewSampler(config, "ddim", sampleSteps)
		if err != nil {
			return err
		}
		b, err := c.guided()
		if err != nil {
			return err
		}
		defer b.Free()
		x, err := engine.Values(c.batch.Noisy)
		if err != nil {
			return err
		}
		n, unet := len(x), c.preset.unet
		for i, t := range sampler.Timesteps() {
			scaled := sampler.ScaleModelInput(x, i)
			engine.Free(b.Noisy, b.Timesteps)
			b.Noisy = engine.Float32s(append(append(make([]float32, 0, 2*n), scaled...), scaled...), 2*c.preset.batch, unet.InChannels, c.preset.side, c.preset.side)
			b.Timesteps = constant(float32(t), 2*c.preset.batch)
			out, err := net.Predict(ctx, p, b)
			if err != nil {
				return err
			}
			values, err := engine.Values(out)
			engine.Free(out)
			if err != nil {
				return err
			}
			mixed := make([]float32, n)
			for k := range mixed {
				mixed[k] = values[k] + guidance*(values[n+k]-values[k])
			}
			x = sampler.Step(mixed, i, x)
		}
		return train.CheckFinite("latents", norm(x), sampleSteps)
	}
}

// guided is a batch twice the size whose first half has no prompt.
func (c *workload) guided() (*denoise.Batch, error) {
	twice := func(t *engine.Tensor, zeroFirst bool) (*engine.Tensor, error) {
		if t == nil {
			return nil, nil
		}
		values, err := engine.Values(t)
		if err != nil {
			return nil, err
		}
		first := values
		if zeroFirst {
			first = make([]float32, len(values))
		}
		shape := append([]int(nil), engine.Shape(t)...)
		shape[0] *= 2
		return engine.Float32s(append(append([]float32(nil), first...), values...), shape...), nil
	}
	b := &denoise.Batch{}
	var err error
	if b.Context, err = twice(c.batch.Context, true); err != nil {
		return nil, err
	}
	if b.Pooled, err = twice(c.batch.Pooled, false); err != nil {
		return nil, err
	}
	b.TimeIDs, err = twice(c.batch.TimeIDs, false)
	return b, err
}

func norm(x []float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}
