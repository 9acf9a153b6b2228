package plan

import (
	"cmp"
	"context"
	"fmt"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/unlearn"
)

// view is a simulation's look at the parameters.
type view struct {
	sim          unlearn.Simulation
	net          network
	theta, phi   denoise.Selection
	displacement bool
	fresh        bool
	tuning       batch
	chain        *chain
}

type chain struct{ delta, moments vector }

// newView lays out the parameters of a simulation.
func (t *trainer) newView(s unlearn.Simulation) (*view, error) {
	v := &view{sim: s, net: t.net, theta: t.theta, phi: t.theta, displacement: true}
	switch {
	case s.Adapts == unlearn.FreshAdapter:
		layers, err := t.model.AttentionLayers(s.Targets...)
		if err != nil {
			return nil, err
		}
		fresh, err := sd.NewAdapter(layers, cmp.Or(s.Rank, max(1, t.r.Trainable.Rank)), 1)
		if err != nil {
			return nil, fmt.Errorf("recipe: simulation %q: %w", s.Name, err)
		}
		adapters := []*sd.Adapter{fresh}
		if t.adapter != nil {
			adapters = []*sd.Adapter{t.adapter, fresh}
		}
		v.net, v.fresh, v.displacement = network{denoise.NewNetwork(t.model, adapters...)}, true, false
		v.phi, v.theta = v.net.Group(len(adapters)), v.net.Group(len(adapters)-1)
	case s.Adapts == unlearn.AllWeights && t.adapter != nil:
		v.phi, v.displacement = t.net.Group(0), false
	case s.Adapts == unlearn.CrossAttention:
		var err error
		if v.phi, err = t.net.Named("attn2.to_k", "attn2.to_v"); err != nil {
			return nil, fmt.Errorf("recipe: simulation %q: %w", s.Name, err)
		}
		v.displacement = false
	}
	size := cmp.Or(t.r.Data[s.Data].Batch, 1)
	if s.Prior != "" {
		size += cmp.Or(t.r.Data[s.Prior].Batch, 1)
	}
	var err error
	v.tuning, err = t.batch(size)
	return v, err
}

// simulatedSteps bounds the inner steps that are gone through; the rest does not change the memory.
const simulatedSteps = 3

// start is the point where a simulation begins; made is what was made for it.
func (t *trainer) start(v *view) (point, made []*tensor) {
	point = t.point()
	if !v.fresh {
		return point, nil
	}
	made = t.feed(v.net.shapes(v.phi)...)
	return concat(point, made), made
}

func (t *trainer) resilience(v *view, harm *harm) (vector, error) {
	start, made := t.start(v)
	defer t.memory.free(made...)
	d, err := t.simulate(v, start)
	if err != nil {
		return vector{}, err
	}
	defer t.end(d)
	var root, inverse vector
	if t.r.Hypergradient.Metric == unlearn.AdamMetric {
		if root, inverse, err = t.metricOf(d); err != nil {
			return vector{}, err
		}
		defer t.release(root, inverse)
	}
	point := put(v.phi, start, d.at.ts)
	g, err := t.gradientAt(v.net, v.phi, harm.limit, harm.batch, point, harm.in)
	if err != nil {
		return vector{}, err
	}
	defer t.release(g)
	right, err := t.mix(g)
	if err != nil {
		return vector{}, err
	}
	defer t.release(right)
	if t.r.Hypergradient.Solver == unlearn.Unrolled {
		return t.unrolled(v, d, point, harm, right)
	}
	tuning := t.feed(v.net.inputs(v.tuning)...)
	defer t.memory.free(tuning...)
	system := hypergrad.System[vector]{Space: t.machine, Gamma: t.r.Hypergradient.Gamma, Right: right, Product: t.product(v, point, tuning)}
	if v.displacement {
		x, _, err := t.solver(inverse, root)(context.Background(), system)
		return x, err
	}
	return t.implicit(v, inverse, point, harm, tuning, system)
}

// simulate goes through a fine-tuning.
func (t *trainer) simulate(v *view, start []*tensor) (*descent, error) {
	at := vector{v.net.shapes(v.phi), pick(v.phi, start)}
	rule := v.sim.Rule()
	var d *descent
	if v.chain == nil {
		d = t.newDescent(at, rule)
	} else {
		moved, err := t.mix(at, v.chain.delta)
		if err != nil {
			return nil, err
		}
		d = &descent{at: moved, rule: rule, moments: v.chain.moments, owned: true}
		v.chain.moments = vector{}
	}
	steps := min(v.sim.Steps, simulatedSteps)
	if t.r.Method == unlearn.ResAlign && t.r.Hypergradient.Solver == unlearn.Unrolled {
		d.keep = min(v.sim.Steps, t.r.Hypergradient.Iterations)
		steps = max(steps, d.keep)
	}
	if err := t.repeat(steps, float64(v.sim.Steps), func() error { return t.innerStep(v, d, start) }); err != nil {
		return nil, err
	}
	if v.sim.ChainReset <= 1 {
		return d, nil
	}
	if v.chain != nil {
		t.release(v.chain.delta)
	}
	delta, err := t.mix(d.at, at)
	if err != nil {
		return nil, err
	}
	v.chain = &chain{delta: delta, moments: d.moments}
	d.moments = vector{}
	return d, nil
}

func (t *trainer) innerStep(v *view, d *descent, start []*tensor) error {
	in := t.feed(v.net.inputs(v.tuning)...)
	defer t.memory.free(in...)
	g, err := t.gradientAt(v.net, v.phi, 0, v.tuning, put(v.phi, start, d.at.ts), in)
	if err != nil {
		return err
	}
	if v.sim.ClipNorm > 0 {
		if _, err := t.Dot(g, g); err != nil {
			return err
		}
	}
	return t.descend(d, g)
}

// product is v ↦ H·v as the recipe takes it.
func (t *trainer) product(v *view, point, tuning []*tensor) hypergrad.Product[vector] {
	return func(u vector) (vector, error) {
		var p *program
		var err error
		switch t.r.Hypergradient.Products {
		case centralDifferences:
			return hypergrad.CentralDifference(t.machine, func(phi vector) (vector, error) {
				return t.gradientAt(network{v.net.Exact()}, v.phi, 0, v.tuning, put(v.phi, point, phi.ts), tuning)
			}, vector{v.net.shapes(v.phi), pick(v.phi, point)}, 0)(u)
		case unlearn.GaussNewton:
			p, err = t.gaussNewtonProduct(v.net, v.phi, v.tuning)
		default:
			p, err = t.hessianProduct(v.net, v.phi, v.tuning)
		}
		out, err := t.run(p, err, concat(point, u.ts, tuning), nil)
		return vector{v.net.shapes(v.phi), out}, err
	}
}

const (
	exactProducts      = "exact"
	centralDifferences = "central_differences"
)

// cross is ∇_θ⟨∇_φ L_FT, u⟩.
func (t *trainer) cross(v *view, point, tuning []*tensor, u vector) (vector, error) {
	if t.r.Hypergradient.Products == centralDifferences {
		return hypergrad.CentralDifference(t.machine, func(phi vector) (vector, error) {
			return t.gradientAt(network{v.net.Exact()}, v.theta, 0, v.tuning, put(v.phi, point, phi.ts), tuning)
		}, vector{v.net.shapes(v.phi), pick(v.phi, point)}, 0)(u)
	}
	p, err := t.crossProduct(v.net, v.theta, v.phi, v.tuning)
	out, err := t.run(p, err, concat(point, u.ts, tuning), nil)
	return vector{v.net.shapes(v.theta), out}, err
}

// solver is the recipe's, with the metric's vectors around it where it has one. last is what the solution is multiplied by.
func (t *trainer) solver(inverse, last vector) hypergrad.Solver[vector] {
	h := t.r.Hypergradient
	solve := hypergrad.RichardsonSolver[vector](t.richardson())
	if h.Solver == unlearn.ConjugateGradient {
		solve = hypergrad.ConjugateGradientSolver[vector](hypergrad.ConjugateGradientOptions{Iterations: h.Iterations, FinalResidual: h.Residual})
	}
	if h.Metric != unlearn.AdamMetric {
		return solve
	}
	return t.inMetric(solve, inverse, last)
}

func (t *trainer) richardson() hypergrad.RichardsonOptions {
	h := t.r.Hypergradient
	o := hypergrad.RichardsonOptions{Iterations: h.Iterations, Damping: h.Damping, FinalResidual: h.Residual}
	if h.Solver == unlearn.FirstOrder {
		o.Iterations, o.Damping = 1, 1
	}
	return o
}

// inMetric multiplies by the metric's vectors around each product.
func (t *trainer) inMetric(solve hypergrad.Solver[vector], inverse, last vector) hypergrad.Solver[vector] {
	return func(ctx context.Context, s hypergrad.System[vector]) (vector, hypergrad.Report, error) {
		var none vector
		right, err := t.multiply(inverse, s.Right)
		if err != nil {
			return none, hypergrad.Report{}, err
		}
		defer t.release(right)
		product := s.Product
		s.Right, s.Product = right, func(u vector) (vector, error) {
			scaled, err := t.multiply(inverse, u)
			if err != nil {
				return none, err
			}
			defer t.release(scaled)
			curved, err := product(scaled)
			if err != nil {
				return none, err
			}
			defer t.release(curved)
			return t.multiply(inverse, curved)
		}
		y, report, err := solve(ctx, s)
		if err != nil {
			return none, report, err
		}
		defer t.release(y)
		x, err := t.multiply(last, y)
		return x, report, err
	}
}

func (t *trainer) implicit(v *view, inverse vector, point []*tensor, harm *harm, tuning []*tensor, s hypergrad.System[vector]) (vector, error) {
	direct, err := t.directShare(v, point, harm)
	if err != nil {
		return vector{}, err
	}
	defer t.release(direct)
	a := hypergrad.Adaptation[vector, vector]{
		ThetaSpace: t.machine, PhiSpace: t.machine, Gamma: s.Gamma, Direct: direct, Right: s.Right, Product: s.Product,
		Cross: func(u vector) (vector, error) { return t.cross(v, point, tuning, u) },
	}
	h := t.r.Hypergradient
	var x vector
	if h.Solver == unlearn.FirstOrder || (h.Solver == unlearn.Richardson && h.Metric != unlearn.AdamMetric) {
		x, _, err = hypergrad.Implicit(context.Background(), a, t.richardson())
	} else {
		x, _, err = hypergrad.ImplicitWith(context.Background(), a, t.solver(inverse, inverse))
	}
	return x, err
}

func (t *trainer) directShare(v *view, point []*tensor, harm *harm) (vector, error) {
	g, err := t.gradientAt(v.net, v.theta, harm.limit, harm.batch, point, harm.in)
	if err != nil {
		return vector{}, err
	}
	defer t.release(g)
	return t.mix(g)
}

// unrolled goes back over the recorded steps, each of which draws its batch again.
func (t *trainer) unrolled(v *view, d *descent, point []*tensor, harm *harm, right vector) (total vector, err error) {
	each := func(vector) error { return nil }
	if !v.displacement {
		if total, err = t.directShare(v, point, harm); err != nil {
			return vector{}, err
		}
		each = func(u vector) error {
			tuning := t.feed(v.net.inputs(v.tuning)...)
			defer t.memory.free(tuning...)
			share, err := t.cross(v, point, tuning, u)
			if err == nil {
				total, err = t.accumulate(total, share)
			}
			return err
		}
	}
	start, err := t.unroll(d, right, v.sim.ClipNorm > 0, func(u vector) (vector, error) {
		tuning := t.feed(v.net.inputs(v.tuning)...)
		defer t.memory.free(tuning...)
		return t.product(v, point, tuning)(u)
	}, each)
	if err != nil || v.displacement {
		return start, err
	}
	t.release(start)
	return total, nil
}
