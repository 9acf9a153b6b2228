package plan

import (
	"context"

	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/unlearn"
)

// trainer goes through a run of package unlearn as that package does, on a machine that does not compute.
type trainer struct {
	*machine
	r        unlearn.Recipe
	arch     *Architecture
	net      *network // with the adapter under training, if θ is one
	adapter  *sd.Adapter
	theta    group
	teacher  *network
	frozen   []*tensor // the UNet's parameters as they were read
	outer    *descent
	views    []*view
	harmful  batch
	retained batch
}

// view is a simulation's look at the parameters.
type view struct {
	sim          unlearn.Simulation
	net          *network
	theta, phi   group
	displacement bool
	fresh        bool
	tuning       batch
	chain        *chain
}

type chain struct{ delta, moments vector }

func (t *trainer) freeBatch(ts []*tensor) { t.heap.free(ts...) }

// feed puts a batch on the device.
func (t *trainer) feed(n *network, b batch) []*tensor {
	var out []*tensor
	for _, in := range n.inputs(b) {
		t.heap.transient(in.bytes())
		out = append(out, t.heap.feed(in.bytes()))
	}
	return out
}

func (t *trainer) vectorOf(n *network, g group, ts []*tensor) vector {
	return vector{key: groupKey(n, g), shapes: n.shapes(g), ts: ts}
}

// groupKey names the shapes of a group of parameters: θ of a network and of one with another adapter have the same.
func groupKey(n *network, g group) string {
	for i := range n.adapters {
		if g == n.group(i+1) {
			return n.adapterKey(i)
		}
	}
	return n.arch.Name + " UNet"
}

func (t *trainer) gradientAt(n *network, by group, limit float64, b batch, point, in []*tensor) (vector, error) {
	p, err := t.gradient(n, by, limit, b)
	out, err := t.run(p, err, concat(point, in), nil)
	if err != nil {
		return vector{}, err
	}
	t.heap.free(out[0])
	return t.vectorOf(n, by, out[1:]), nil
}

func (t *trainer) predictAt(b batch, in []*tensor) (*tensor, error) {
	p, err := t.prediction(t.teacher, b)
	out, err := t.run(p, err, concat(t.frozen, in[:len(in)-2]), nil)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// point is the parameters of t.net.
func (t *trainer) point() []*tensor {
	if t.adapter == nil {
		return t.outer.at.ts
	}
	return concat(t.frozen, t.outer.at.ts)
}

// step is one outer step with each of the given simulations; none stands for λ = 0. times is how often each is drawn.
func (t *trainer) outerStep(views []*view, each float64) error {
	var total vector
	drawn := views
	if len(drawn) == 0 {
		drawn, each = []*view{nil}, 1
	}
	for _, v := range drawn {
		t.times = each
		g, err := t.oneGradient(v)
		if err != nil {
			return err
		}
		if total, err = t.accumulate(total, g); err != nil {
			return err
		}
	}
	t.times = 1
	if _, err := t.Dot(total, total); err != nil {
		return err
	}
	return t.descend(t.outer, total)
}

func (t *trainer) cap() float64 {
	if t.r.Objective.Harm == unlearn.ESD {
		return 0
	}
	return t.r.Objective.Cap
}

func (t *trainer) oneGradient(v *view) (vector, error) {
	harm := t.feed(t.net, t.harmful)
	defer t.freeBatch(harm)
	if t.r.Objective.Harm == unlearn.ESD {
		for range 3 {
			out, err := t.predictAt(t.harmful, harm)
			if err != nil {
				return vector{}, err
			}
			t.heap.free(out)
		}
	}
	direct, err := t.direct(harm)
	if err != nil || v == nil {
		return direct, err
	}
	defer t.release(direct)
	implicit, err := t.resilience(v, harm)
	if err != nil {
		return vector{}, err
	}
	defer t.release(implicit)
	return t.mix(direct, implicit)
}

// direct is (1−λ)∇L_harm(θ) + α∇R(θ).
func (t *trainer) direct(harm []*tensor) (vector, error) {
	g, err := t.gradientAt(t.net, t.theta, t.cap(), t.harmful, t.point(), harm)
	if err != nil {
		return vector{}, err
	}
	defer t.release(g)
	in := t.feed(t.net, t.retained)
	defer t.freeBatch(in)
	taught, err := t.predictAt(t.retained, in)
	if err != nil {
		return vector{}, err
	}
	defer t.heap.free(taught)
	with := concat(in)
	with[len(with)-2] = taught
	retain, err := t.gradientAt(t.net, t.theta, 0, t.retained, t.point(), with)
	if err != nil {
		return vector{}, err
	}
	defer t.release(retain)
	return t.mix(g, retain)
}

// simulatedSteps bounds the inner steps that are gone through; the rest does not change the memory.
const simulatedSteps = 3

// start is the point where a simulation begins; made is what was made for it.
func (t *trainer) start(v *view) (point, made []*tensor) {
	point = t.point()
	if !v.fresh {
		return point, nil
	}
	for _, s := range v.net.shapes(v.phi) {
		t.heap.transient(s.bytes())
		made = append(made, t.heap.feed(s.bytes()))
	}
	return concat(point, made), made
}

// put is the point with the moving parameters elsewhere.
func (v *view) put(point, moving []*tensor) []*tensor {
	return concat(point[:v.phi.from], moving, point[v.phi.to:])
}

func (t *trainer) resilience(v *view, harm []*tensor) (vector, error) {
	start, made := t.start(v)
	defer t.heap.free(made...)
	d, err := t.simulate(v, start)
	if err != nil {
		return vector{}, err
	}
	defer t.end(d)
	point := v.put(start, d.at.ts)
	g, err := t.gradientAt(v.net, v.phi, t.cap(), t.harmful, point, harm)
	if err != nil {
		return vector{}, err
	}
	defer t.release(g)
	right, err := t.mix(g)
	if err != nil {
		return vector{}, err
	}
	defer t.release(right)
	tuning := t.feed(v.net, v.tuning)
	defer t.freeBatch(tuning)
	if t.r.Hypergradient.Solver == unlearn.Unrolled {
		return t.unrolled(v, d, point, harm, tuning, right)
	}
	system := hypergrad.System[vector]{Space: t.machine, Gamma: t.r.Hypergradient.Gamma, Right: right, Product: t.product(v, point, tuning)}
	if v.displacement {
		x, _, err := t.solver(v, d)(background, system)
		return x, err
	}
	return t.implicit(v, d, point, harm, tuning, system)
}

// simulate goes through a fine-tuning.
func (t *trainer) simulate(v *view, start []*tensor) (*descent, error) {
	at := t.vectorOf(v.net, v.phi, start[v.phi.from:v.phi.to])
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
	if t.r.Hypergradient.Solver == unlearn.Unrolled {
		d.keep = min(v.sim.Steps, t.r.Hypergradient.Iterations)
		steps = max(steps, d.keep)
	}
	before := t.times
	t.times *= float64(v.sim.Steps) / float64(steps)
	for range steps {
		if err := t.innerStep(v, d, start); err != nil {
			return nil, err
		}
	}
	t.times = before
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
	in := t.feed(v.net, v.tuning)
	defer t.freeBatch(in)
	g, err := t.gradientAt(v.net, v.phi, 0, v.tuning, v.put(start, d.at.ts), in)
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
				return t.gradientAt(v.net, v.phi, 0, v.tuning, v.put(point, phi.ts), tuning)
			}, t.vectorOf(v.net, v.phi, point[v.phi.from:v.phi.to]), 0)(u)
		case unlearn.GaussNewton:
			p, err = t.gaussNewtonProduct(v.net, v.phi, v.tuning)
		default:
			p, err = t.hessianProduct(v.net, v.phi, v.tuning)
		}
		out, err := t.run(p, err, concat(point, u.ts, tuning), nil)
		return t.vectorOf(v.net, v.phi, out), err
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
			return t.gradientAt(v.net, v.theta, 0, v.tuning, v.put(point, phi.ts), tuning)
		}, t.vectorOf(v.net, v.phi, point[v.phi.from:v.phi.to]), 0)(u)
	}
	p, err := t.crossProduct(v.net, v.theta, v.phi, v.tuning)
	out, err := t.run(p, err, concat(point, u.ts, tuning), nil)
	return t.vectorOf(v.net, v.theta, out), err
}

// solver is the recipe's, with the metric's vectors around it where it has one.
func (t *trainer) solver(v *view, d *descent) hypergrad.Solver[vector] {
	h := t.r.Hypergradient
	solve := hypergrad.RichardsonSolver[vector](t.richardson())
	if h.Solver == unlearn.ConjugateGradient {
		solve = hypergrad.ConjugateGradientSolver[vector](hypergrad.ConjugateGradientOptions{Iterations: h.Iterations, FinalResidual: h.Residual})
	}
	if h.Metric != unlearn.AdamMetric {
		return solve
	}
	return t.inMetric(solve, d)
}

func (t *trainer) richardson() hypergrad.RichardsonOptions {
	h := t.r.Hypergradient
	o := hypergrad.RichardsonOptions{Iterations: h.Iterations, Damping: h.Damping, FinalResidual: h.Residual}
	if h.Solver == unlearn.FirstOrder {
		o.Iterations, o.Damping = 1, 1
	}
	return o
}

// inMetric holds √P and 1/√P during the solve and multiplies by them around each product.
func (t *trainer) inMetric(solve hypergrad.Solver[vector], d *descent) hypergrad.Solver[vector] {
	return func(ctx context.Context, s hypergrad.System[vector]) (vector, hypergrad.Report, error) {
		var none vector
		root, err := t.mix(d.at)
		if err != nil {
			return none, hypergrad.Report{}, err
		}
		inverse, err := t.mix(d.at)
		if err != nil {
			return none, hypergrad.Report{}, err
		}
		defer t.release(root, inverse)
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
		x, err := t.multiply(root, y)
		return x, report, err
	}
}

func (t *trainer) implicit(v *view, d *descent, point, harm, tuning []*tensor, s hypergrad.System[vector]) (vector, error) {
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
		x, _, err = hypergrad.Implicit(background, a, t.richardson())
	} else {
		x, _, err = hypergrad.ImplicitWith(background, a, t.solver(v, d))
	}
	return x, err
}

func (t *trainer) directShare(v *view, point, harm []*tensor) (vector, error) {
	g, err := t.gradientAt(v.net, v.theta, t.cap(), t.harmful, point, harm)
	if err != nil {
		return vector{}, err
	}
	defer t.release(g)
	return t.mix(g)
}

// unrolled goes back over the recorded steps.
func (t *trainer) unrolled(v *view, d *descent, point, harm, tuning []*tensor, right vector) (vector, error) {
	var total vector
	var err error
	if !v.displacement {
		if total, err = t.directShare(v, point, harm); err != nil {
			return vector{}, err
		}
	}
	adjoint, err := t.mix(right, right)
	if err != nil {
		return vector{}, err
	}
	var moments []vector
	for range d.rule.StateSlots() {
		zero, err := t.mix(right, right)
		if err != nil {
			return vector{}, err
		}
		moments = append(moments, zero)
	}
	defer func() { t.release(moments...) }()
	for range d.trail {
		// The reverse of a step makes derivatives by the parameters, the gradient and the moments.
		byGradient, err := t.mix(adjoint, adjoint)
		if err != nil {
			return vector{}, err
		}
		unclipped, err := t.mix(byGradient, byGradient)
		if err != nil {
			return vector{}, err
		}
		if !v.displacement {
			share, err := t.cross(v, point, tuning, unclipped)
			if err != nil {
				return vector{}, err
			}
			if total, err = t.accumulate(total, share); err != nil {
				return vector{}, err
			}
		}
		curved, err := t.product(v, point, tuning)(unclipped)
		if err != nil {
			return vector{}, err
		}
		t.release(unclipped, byGradient)
		if adjoint, err = t.accumulate(adjoint, curved); err != nil {
			return vector{}, err
		}
	}
	if v.displacement {
		return adjoint, nil
	}
	t.release(adjoint)
	return total, nil
}
