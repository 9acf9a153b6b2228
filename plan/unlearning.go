package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/unlearn"
)

// trainer goes through a run of package unlearn as that package does, on a machine that does not compute.
type trainer struct {
	*session
	r       unlearn.Recipe
	net     network // with the adapter under training, if θ is one
	adapter *sd.Adapter
	theta   denoise.Selection
	start0  []*tensor // the parameters of net where training begins
	outer   *descent
	views   []*view
	mask    vector // method salun

	harmful, retained batch // retained: of size 0 where the method does without
	related           batch // meta-unlearn: of size 0 without
	rows              denoise.Selection
}

// newTrainer lays the parameters out and prepares the data.
func newTrainer(m *machine, a *Architecture, r unlearn.Recipe) (*trainer, error) {
	model := a.skeleton()
	model.GradientCheckpointing, model.Compute = r.Memory.GradientCheckpointing, nn.Compute(r.Memory.Compute)
	t := &trainer{session: newSession(m, model, a, r.Resolution), r: r}
	t.tile = r.Memory.VAETileSize
	if err := t.sizeBatches(); err != nil {
		return nil, fmt.Errorf("recipe: %w", err)
	}
	if err := t.layOut(); err != nil {
		return nil, err
	}
	t.outer = t.newDescent(vector{t.net.shapes(t.theta), pick(t.theta, t.start0)}, r.Outer.Rule())
	if r.Method == unlearn.ResAlign || r.Method == unlearn.MetaUnlearn {
		for _, s := range r.Simulations {
			v, err := t.newView(s)
			if err != nil {
				return nil, err
			}
			t.views = append(t.views, v)
		}
	}
	pictures := t.pictures()
	prompts := pictures.plain + len(r.Latents.Prompts)
	if r.Method == unlearn.SafeGen { // its pictures go without captions
		prompts = 1
	}
	if r.Objective.Harm == unlearn.ESD {
		prompts += 2
	}
	return t, t.encode(pictures, prompts)
}

// sizeBatches finds out what batches look like.
func (t *trainer) sizeBatches() (err error) {
	r := t.r
	size := cmp.Or(r.Data["harmful"].Batch, 1)
	if r.Latents.From == unlearn.FromPrompts {
		size = r.Latents.Batch
	}
	if t.harmful, err = t.batch(size); err != nil {
		return err
	}
	if slices.Contains(r.Sets(), "retain") {
		t.retained, err = t.batch(cmp.Or(r.Data["retain"].Batch, 4))
	}
	if slices.Contains(r.Sets(), "related") && err == nil {
		t.related, err = t.batch(cmp.Or(r.Data["related"].Batch, 1))
	}
	return err
}

// layOut chooses θ.
func (t *trainer) layOut() (err error) {
	r := t.r
	switch r.Trainable.Parameters {
	case "lora":
		layers, err := t.model.AttentionLayers(r.Trainable.Targets...)
		if err != nil {
			return fmt.Errorf("recipe: trainable.targets: %w", err)
		}
		if t.adapter, err = sd.NewAdapter(layers, r.Trainable.Rank, r.Trainable.Scale); err != nil {
			return fmt.Errorf("recipe: trainable.rank: %w", err)
		}
		t.net = network{denoise.NewNetwork(t.model, t.adapter)}
		t.theta = t.net.Group(1)
		t.start0 = concat(t.frozen, t.feed(t.net.shapes(t.theta)...))
	case unlearn.TextEncoder:
		if t.net, err = t.newTextNetwork(t.harmful.size * r.Attack.Tokens); err != nil {
			return fmt.Errorf("recipe: method %s: %w", unlearn.AdvUnlearn, err)
		}
		if t.theta, err = t.net.NamedOf(1, unlearn.TextParts()...); err != nil {
			return err
		}
		t.rows = t.net.Group(2)
		t.start0 = concat(t.frozen, t.text, t.feed(t.net.shapes(t.rows)...))
	default:
		t.net = network{denoise.NewNetwork(t.model)}
		t.theta, t.start0 = t.net.Group(0), t.frozen
		if parts := r.TrainedParts(names(t.net.Specs())); len(parts) > 0 {
			t.theta, err = t.net.Named(parts...)
		}
	}
	return err
}

// pictures counts what is encoded.
func (t *trainer) pictures() pictures {
	var p pictures
	for _, name := range slices.Sorted(maps.Keys(t.r.Data)) {
		d := t.r.Data[name]
		if !slices.Contains(t.r.Sets(), name) {
			continue
		}
		n := t.countPictures("data."+name, folders(d)...)
		if t.r.Method == unlearn.SafeGen && name == "harmful" {
			n *= 2 // as they are, and coarse
		}
		p.plain += n
		if d.Flip {
			p.mirrored += n
		}
	}
	if len(t.r.Sets()) > 0 {
		p.plain = max(1, p.plain) // pictures that are not here yet are encoded, too
	}
	return p
}

// folders are those of a set of pictures.
func folders(d unlearn.Dataset) []string {
	if len(d.Parts) == 0 {
		return []string{d.Folder}
	}
	var out []string
	for _, part := range d.Parts {
		out = append(out, part.Folder)
	}
	return out
}

// walk goes through the run: some outer steps, previews, a checkpoint and the export.
func (t *trainer) walk() error {
	if t.r.Method == unlearn.SalUn {
		if err := t.findSalient(); err != nil {
			return err
		}
	}
	t.prepare, t.work = t.work, work{}
	o := t.r.Outer
	if err := t.settle(o.Steps, func() error {
		t.work = work{} // that of the last step counts; they are all alike
		each := float64(o.SimulationsPerStep) / float64(max(1, len(t.views)))
		if err := t.outerStep(t.views, each); err != nil {
			return err
		}
		t.checkpoint(t.outer, t.chains()...)
		return nil
	}); err != nil {
		return err
	}
	t.step, t.work = t.work, work{}
	if err := t.preview(t.r.Preview, o.Steps, t.net, t.point()); err != nil {
		return fmt.Errorf("recipe: preview.options: %w", err)
	}
	t.previews = t.work
	switch {
	case t.adapter != nil:
		return t.exportMerged(t.adapter, t.outer.at)
	case t.r.Trainable.Parameters == unlearn.TextEncoder:
		t.export(t.text...)
	default:
		t.export()
	}
	return nil
}

// chains are the tensors of persistent simulations.
func (t *trainer) chains() []*tensor {
	var out []*tensor
	for _, v := range t.views {
		if v.chain != nil {
			out = append(out, concat(v.chain.delta.ts, v.chain.moments.ts)...)
		}
	}
	return out
}

// point is the parameters of t.net.
func (t *trainer) point() []*tensor { return put(t.theta, t.start0, t.outer.at.ts) }

// outerStep is one outer step with each of the given simulations; none stands for λ = 0. each is how often one is drawn.
func (t *trainer) outerStep(views []*view, each float64) error {
	var total vector
	drawn := views
	if len(drawn) == 0 {
		drawn, each = []*view{nil}, 1
	}
	for _, v := range drawn {
		if err := t.repeat(1, 1, func() error {
			t.times = each
			g, err := t.oneGradient(v)
			if err != nil {
				return err
			}
			total, err = t.accumulate(total, g)
			return err
		}); err != nil {
			return err
		}
	}
	if t.r.Method == unlearn.SalUn {
		masked, err := t.multiply(t.mask, total)
		if err != nil {
			return err
		}
		t.release(total)
		total = masked
	}
	if _, err := t.Dot(total, total); err != nil {
		return err
	}
	return t.descend(t.outer, total)
}

// oneGradient is the gradient with one simulation, or none.
func (t *trainer) oneGradient(v *view) (vector, error) {
	if t.r.Method == unlearn.LCFDSDNG || t.r.Method == unlearn.LCFDSDLT {
		return t.contrasted()
	}
	h, err := t.harm()
	if err != nil {
		return vector{}, err
	}
	defer func() { t.memory.free(h.in...); t.memory.free(h.more...) }()
	direct, err := t.direct(h)
	if err != nil || v == nil {
		return direct, err
	}
	defer t.release(direct)
	var implicit vector
	if t.r.Method == unlearn.MetaUnlearn {
		implicit, err = t.againstRelearning(v)
	} else {
		implicit, err = t.resilience(v, h)
	}
	if err != nil {
		return vector{}, err
	}
	defer t.release(implicit)
	return t.mix(direct, implicit)
}

// direct is (1−λ)∇L_harm(θ) + α∇R(θ).
func (t *trainer) direct(h *harm) (vector, error) {
	limit := h.limit
	if t.r.Objective.Depth > 0 {
		limit = 0
	}
	p, err := t.gradientWithError(t.net, t.theta, limit, h.batch)
	out, err := t.run(p, err, concat(h.point, h.in), nil)
	if err != nil {
		return vector{}, err
	}
	t.memory.free(out[:2]...)
	g := vector{t.net.shapes(t.theta), out[2:]}
	defer t.release(g)
	if t.retained.size == 0 {
		return t.mix(g)
	}
	retain, err := t.retain()
	if err != nil {
		return vector{}, err
	}
	defer t.release(retain)
	return t.mix(g, retain)
}

// retain is ∇R(θ).
func (t *trainer) retain() (vector, error) {
	b := t.retained
	in := t.feed(t.net.inputs(b)...)
	defer t.memory.free(in...)
	with := in
	if t.r.Objective.Retain != unlearn.Denoising {
		taught, err := t.predictAt(t.teacher, b, t.frozen, in)
		if err != nil {
			return vector{}, err
		}
		defer t.memory.free(taught)
		with = withTarget(in, taught)
	}
	if t.rows.Len() > 0 {
		ids := t.feed(t.net.prompts(b.asTokens()))
		defer t.memory.free(ids...)
		b, with = b.asTokens(), t.net.retokened(with, ids[0])
	}
	return t.gradientAt(t.net, t.theta, 0, b, t.point(), with)
}

// withTarget is the inputs of a loss with another target.
func withTarget(in []*tensor, target *tensor) []*tensor {
	out := concat(in)
	out[len(out)-2] = target
	return out
}

// report fills in what does not depend on the collector.
func (t *trainer) report(p *Plan) {
	theta := t.theta.Specs(t.net.Network)
	p.Method = t.r.Method
	p.Steps, p.StepName = t.r.Outer.Steps, "outer step"
	p.Parameters = t.parameters()
	p.Parameters.Theta = count(theta)
	items := []Item{
		{"θ", int64(count(theta))},
		{"moments of the outer optimizer", stateSize(t.outer.rule, theta)},
		{"mask of salient parameters", int64(count(t.theta.Specs(t.net.Network)) * min(1, len(t.mask.ts)))},
	}
	var chains, trail int64
	for _, v := range t.views {
		specs := v.phi.Specs(v.net.Network)
		phi, moments := int64(count(specs)), stateSize(v.sim.Rule(), specs)
		if v.sim.ChainReset > 1 {
			chains += phi + moments
		}
		if h := t.r.Hypergradient; t.r.Method == unlearn.ResAlign && h.Solver == unlearn.Unrolled {
			trail = max(trail, int64(min(v.sim.Steps, h.Iterations))*(2*phi+moments))
		}
	}
	p.Resident = t.stays(append(items, Item{"persistent simulations: displacements and moments", chains}, Item{"recorded steps of the largest simulation", trail})...)
	t.fill(p)
}
