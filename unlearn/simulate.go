package unlearn

import (
	"context"
	"fmt"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// view is a simulated fine-tuning's own look at the parameters: the network with whatever it adds, θ in it, and φ, what
// it trains. Where φ is θ itself, fine-tuning is a displacement of θ.
type view struct {
	sim          Simulation
	net          *denoise.Network
	theta, phi   denoise.Selection
	displacement bool
	fresh        *sd.Adapter // the adapter that the simulated user adds
	ownNet       bool

	pictures, prior *denoise.Sampler
	hessian         *denoise.Sampler // the fine-tuning batch at which H is taken
	hessianPrior    *denoise.Sampler

	chain *chain // persistent simulations only
}

// chain is where a persistent simulation stands between outer steps: how far φ is from where it starts, and the inner
// optimizer's moments.
type chain struct {
	delta   denoise.Vector
	moments denoise.Vector
	steps   int // inner steps since it began
	used    int // outer steps since it began
	began   int // the outer step of its beginning
}

func (c *chain) free() {
	if c != nil {
		c.delta.Free()
		c.moments.Free()
	}
}

func (v *view) free() {
	v.chain.free()
	if v.ownNet {
		v.net.Free()
	}
}

// newView lays out the parameters of a simulation.
func (t *trainer) newView(s Simulation) (*view, error) {
	v := &view{sim: s, net: t.net, theta: t.theta, phi: t.theta, displacement: true}
	switch {
	case s.Adapts == FreshAdapter:
		rank := s.Rank
		if rank == 0 {
			rank = max(1, t.recipe.Trainable.Rank)
		}
		layers, err := t.model.AttentionLayers(s.Targets...)
		if err != nil {
			return nil, err
		}
		if v.fresh, err = sd.NewAdapter(layers, rank, 1); err != nil {
			return nil, fmt.Errorf("recipe: simulation %q: %w", s.Name, err)
		}
		adapters := []*sd.Adapter{v.fresh}
		if t.adapter != nil {
			adapters = []*sd.Adapter{t.adapter, v.fresh}
		}
		v.net, v.ownNet, v.displacement = denoise.NewNetwork(t.model, adapters...), true, false
		v.phi = v.net.Group(len(adapters))
		v.theta = v.net.Group(len(adapters) - 1)
	case s.Adapts == AllWeights && t.adapter != nil:
		// The weights move under the adapter and are thrown away afterwards; θ keeps its coordinates.
		v.phi, v.displacement = t.net.Group(0), false
	case s.Adapts == CrossAttention:
		var err error
		if v.phi, err = t.net.Named("attn2.to_k", "attn2.to_v"); err != nil {
			return nil, fmt.Errorf("recipe: simulation %q: %w", s.Name, err)
		}
		v.displacement = false
	}
	return v, nil
}

// start is the point at which a simulation begins: θ as it is, and a fresh adapter where there is one. made lists the
// tensors that were made for it.
func (t *trainer) start(v *view, step int) (p denoise.Point, made []*engine.Tensor, err error) {
	p = append(denoise.Point(nil), t.outer.Point()...)
	if v.fresh == nil {
		return p, nil, nil
	}
	drawn := step
	if v.chain != nil {
		drawn = v.chain.began // what the chain learnt fits the factors that it began with
	}
	seed := random.New(t.recipe.Seed, "fresh adapter", v.sim.Name, drawn).Uint64()
	factors := v.fresh.Draw(seed, 1/float64(v.fresh.Rank), 0)
	p = append(p, factors.Tensors...)
	if len(p) != len(v.net.Specs()) {
		return nil, factors.Tensors, fmt.Errorf("%w: the simulation's parameters do not line up", engine.ErrInternal)
	}
	return p, factors.Tensors, nil
}

// simulated is the end of a simulation, θ*: free it after use.
type simulated struct {
	point   denoise.Point
	descent *denoise.Descent
	made    []*engine.Tensor
	loss    float64 // of the last inner batch

	began      int // optimizer steps that were taken before this outer step
	firstBatch int // the fine-tuning batch of the first step after them

	root, inverse denoise.Vector // √P and 1/√P of the optimizer's metric, where one is used
}

func (s *simulated) free() {
	s.descent.Free()
	engine.Free(s.made...)
	s.root.Free()
	s.inverse.Free()
}

// simulate fine-tunes from θ as the configuration says: its pictures, optimizer, learning rate, steps and parameters,
// without a proximal term (method, section 2). It keeps what the given hypergradients need of it.
func (t *trainer) simulate(ctx context.Context, v *view, step int, needed ...Hypergradient) (*simulated, error) {
	start, made, err := t.start(v, step)
	if err != nil {
		engine.Free(made...)
		return nil, err
	}
	s := &simulated{made: made}
	if s.descent, err = t.descent(v, start); err != nil {
		engine.Free(made...)
		return nil, err
	}
	record, metric := 0, false
	for _, h := range needed {
		if h.Solver == Unrolled {
			record = max(record, min(v.sim.Steps, h.Iterations))
		}
		metric = metric || h.Metric == AdamMetric
	}
	if record > 0 {
		s.descent.Record(record)
	}
	s.began, s.firstBatch = s.descent.Steps(), step*v.sim.Steps
	for k := range v.sim.Steps {
		if err := t.innerStep(ctx, v, s, step*v.sim.Steps+k); err != nil {
			s.free()
			return nil, fmt.Errorf("inner step %d: %w", k+1, err)
		}
	}
	s.point = s.descent.Point()
	if metric {
		if s.root, s.inverse, err = s.descent.Metric(ctx); err != nil {
			s.free()
			return nil, err
		}
	}
	if err := t.keepChain(v, step, start, s.descent); err != nil {
		s.free()
		return nil, err
	}
	return s, nil
}

// descent is a fresh optimizer at the start, or a persistent simulation moved along with θ.
func (t *trainer) descent(v *view, start denoise.Point) (*denoise.Descent, error) {
	if v.chain == nil {
		return denoise.NewDescent(v.net, v.phi, v.sim.Rule(), start)
	}
	moved, err := t.space.Mix(1, v.phi.Of(start), 1, v.chain.delta)
	if err != nil {
		return nil, err
	}
	d := denoise.ContinueDescent(v.net, v.phi, v.sim.Rule(), start, moved, v.chain.moments, v.chain.steps)
	v.chain.moments = nil // the descent's own now
	return d, nil
}

// keepChain remembers where a persistent simulation stands, until it is due to begin anew.
func (t *trainer) keepChain(v *view, step int, start denoise.Point, d *denoise.Descent) error {
	if v.sim.ChainReset == 0 {
		return nil
	}
	used, began := 1, step
	if v.chain != nil {
		used, began = 1+v.chain.used, v.chain.began
	}
	v.chain.free()
	v.chain = nil
	if used >= v.sim.ChainReset {
		return nil
	}
	delta, err := t.space.Mix(1, d.Selected(), -1, v.phi.Of(start))
	if err != nil {
		return err
	}
	v.chain = &chain{delta: delta, moments: d.TakeMoments(), steps: d.Steps(), used: used, began: began}
	return nil
}

func (t *trainer) innerStep(ctx context.Context, v *view, s *simulated, at int) error {
	batch, err := t.fineTuningBatch(ctx, v, v.pictures, v.prior, at)
	if err != nil {
		return err
	}
	defer batch.Free()
	loss, g, err := v.net.Gradient(ctx, s.descent.Point(), v.phi, denoise.Loss{}, batch)
	if err != nil {
		return err
	}
	t.gradients += v.batchSize()
	s.loss = loss
	if err := train.CheckFinite("fine-tuning loss", loss, at+1); err != nil {
		g.Free()
		return err
	}
	scale := 1.0
	if v.sim.ClipNorm > 0 {
		norm, err := t.space.Norm(g)
		if err != nil {
			return err
		}
		scale = denoise.ClipScale(norm, v.sim.ClipNorm)
	}
	// A simulation that goes on from draw to draw has one schedule over all of them.
	rate := v.sim.schedule().At(s.descent.Steps(), v.sim.Steps*max(1, v.sim.ChainReset))
	return s.descent.Step(ctx, g, scale, rate)
}

func (t *trainer) fineTuningBatch(ctx context.Context, v *view, pictures, prior *denoise.Sampler, at int) (*denoise.Batch, error) {
	if prior == nil {
		return pictures.Batch(ctx, at)
	}
	weight := v.sim.PriorWeight
	if weight == 0 {
		weight = 1
	}
	return denoise.JoinedBatch(ctx, pictures, prior, at, 1, weight)
}

// batchSize is the number of pictures in one fine-tuning batch.
func (v *view) batchSize() float64 {
	n := v.pictures.Size()
	if v.prior != nil {
		n += v.prior.Size()
	}
	return float64(n)
}
