package plan

import (
	"cmp"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// harm is a batch of harmful latents and the loss on it.
type harm struct {
	batch batch
	limit float64
	point []*tensor // where the loss at θ is taken
	in    []*tensor
	more  []*tensor // that go with the batch
}

// harm makes the batch of the harmful loss with its target.
func (t *trainer) harm() (*harm, error) {
	if err := t.walkLatents(t.net, t.point()); err != nil {
		return nil, err
	}
	h := &harm{batch: t.harmful, limit: t.r.Objective.Cap, point: t.point(), in: t.feed(t.net.inputs(t.harmful)...)}
	var target *tensor
	var err error
	switch t.r.Objective.Harm {
	case unlearn.ESD:
		target, err = t.guidedAway(h)
	case unlearn.Relabel:
		target, err = t.relabelled(h)
	case unlearn.Mosaic:
		target = t.feed(t.net.latents(h.batch))[0]
	default:
		return h, nil
	}
	if err != nil {
		return nil, err
	}
	h.more, h.limit = append(h.more, h.in[len(h.in)-2]), 0
	h.in = withTarget(h.in, target)
	if t.rows.Len() > 0 {
		err = t.attacked(h)
	}
	return h, err
}

// walkLatents denoises from noise to a place on the way, where latents come from prompts: half of the way on average.
func (t *trainer) walkLatents(n network, point []*tensor) error {
	l := t.r.Latents
	if l.From != unlearn.FromPrompts {
		return nil
	}
	if t.rows.Len() > 0 {
		n, point = t.teacher, t.frozen
	}
	rows := t.harmful
	if l.Guidance != 1 {
		rows.size *= 2
	}
	given := t.feed(n.conditions(rows)[2:]...)
	defer t.memory.free(given...)
	return t.repeat(2, float64(l.Steps-1)/2, func() error {
		in := concat(t.feed(n.conditions(rows)[:2]...), given)
		out, err := t.predictAt(n, rows, point, in)
		if err != nil {
			return err
		}
		t.fetch(out)
		t.memory.free(concat(in[:2], []*tensor{out})...)
		return nil
	})
}

// guidedAway is the target of esd: three predictions of θ₀ and their combination.
func (t *trainer) guidedAway(h *harm) (*tensor, error) {
	var terms []vector
	shape := []input{t.net.latents(h.batch)}
	for k := range 3 {
		in := h.in
		if k > 0 { // under another prompt
			own := t.feed(t.teacher.prompts(h.batch))
			defer t.memory.free(own...)
			in = concat(in[:2], own, in[3:])
		}
		out, err := t.predictAt(t.teacher, h.batch, t.frozen, in)
		if err != nil {
			return nil, err
		}
		v := vector{shape, []*tensor{out}}
		defer t.release(v)
		terms = append(terms, v)
	}
	target, err := t.mix(terms...)
	if err != nil {
		return nil, err
	}
	return target.ts[0], nil
}

// relabelled is the target of salun: a prediction under other prompts.
func (t *trainer) relabelled(h *harm) (*tensor, error) {
	own := t.feed(t.net.prompts(h.batch))
	defer t.memory.free(own...)
	return t.predictAt(t.net, h.batch, t.point(), concat(h.in[:2], own, h.in[3:]))
}

// findSalient makes the mask of salun.
func (t *trainer) findSalient() error {
	batches := t.r.Saliency.Batches
	if batches == 0 {
		d := t.r.Data["harmful"]
		n := t.countPictures("data.harmful", folders(d)...)
		batches = max(1, (n+t.harmful.size-1)/t.harmful.size)
	}
	var sum vector
	if err := t.repeat(2, float64(batches), func() error {
		in := t.feed(t.net.inputs(t.harmful)...)
		g, err := t.gradientAt(t.net, t.theta, 0, t.harmful, t.point(), in)
		t.memory.free(in...)
		if err != nil {
			return err
		}
		sum, err = t.accumulate(sum, g)
		return err
	}); err != nil {
		return err
	}
	// Their values on the host become the mask.
	var values []*tensor
	for _, x := range sum.ts {
		values = append(values, t.memory.feed(x.bytes))
	}
	var mask []*tensor
	for _, x := range sum.ts {
		mask = append(mask, t.memory.feed(x.bytes))
	}
	t.mask = vector{sum.shapes, mask}
	t.memory.free(values...)
	t.release(sum)
	return nil
}

// attacked makes of a harmful batch that of advunlearn: under the model's own encoder, with adversarial words before each
// prompt once the warm-up is over.
func (t *trainer) attacked(h *harm) error {
	attacks := float64(t.r.Outer.Steps-t.r.Attack.Warmup) / float64(max(1, t.r.Outer.Steps))
	if err := t.repeat(1, min(attacks, 1), func() error {
		rows, err := t.attack(h.batch)
		h.more = append(h.more, rows...)
		if len(rows) > 0 {
			h.point = put(t.rows, h.point, rows)
		}
		return err
	}); err != nil {
		return err
	}
	ids := t.feed(t.net.prompts(h.batch.asTokens()))[0]
	h.more = append(h.more, h.in[2])
	h.in = t.net.retokened(h.in, ids)
	h.batch = h.batch.asTokens()
	return nil
}

// attack looks for adversarial embeddings.
func (t *trainer) attack(b batch) ([]*tensor, error) {
	shapes := t.net.shapes(t.rows)
	rule, err := train.DefaultOptimizer(train.Adam, cmp.Or(t.r.Attack.LearningRate, 1))
	if err != nil {
		return nil, err
	}
	begin := t.feed(shapes...)
	defer t.memory.free(begin...)
	d := t.newDescent(vector{shapes, begin}, rule)
	if err := t.repeat(2, float64(t.r.Attack.Steps), func() error { return t.attackStep(d, b) }); err != nil {
		return nil, err
	}
	t.release(d.moments)
	return d.at.ts, nil
}

func (t *trainer) attackStep(d *descent, b batch) error {
	if err := t.walkLatents(t.teacher, t.frozen); err != nil {
		return err
	}
	in := t.feed(t.net.inputs(b)...)
	defer t.memory.free(in...)
	aim, err := t.predictAt(t.teacher, b, t.frozen, in)
	if err != nil {
		return err
	}
	ids := t.feed(t.net.prompts(b.asTokens()))
	defer t.memory.free(append(ids, aim)...)
	with := t.net.retokened(withTarget(in, aim), ids[0])
	g, err := t.gradientAt(t.net, t.rows, 0, b.asTokens(), put(t.rows, t.point(), d.at.ts), with)
	if err != nil {
		return err
	}
	if t.r.Attack.Sign {
		t.fetch(g.ts...)
		t.release(g)
		g.ts = t.feed(g.shapes...)
	}
	return t.descend(d, g)
}

// contrasted is the gradient of lcfdsd: for retained and for harmful pictures a prediction, its derivative on the host, and
// a pullback.
func (t *trainer) contrasted() (vector, error) {
	var shares []vector
	for _, b := range []batch{t.retained, t.harmful} {
		g, err := t.classGradient(b)
		if err != nil {
			return vector{}, err
		}
		defer t.release(g)
		shares = append(shares, g)
	}
	return t.mix(shares...)
}

func (t *trainer) classGradient(b batch) (vector, error) {
	in := t.feed(t.net.inputs(b)...)
	if t.r.Method == unlearn.LCFDSDNG { // the noise is shifted
		t.fetch(in[0])
		t.memory.free(in[0])
		in[0] = t.feed(t.net.latents(b))[0]
	}
	defer t.memory.free(in...)
	predicted, err := t.predictAt(t.net, b, t.point(), in)
	if err != nil {
		return vector{}, err
	}
	defer t.memory.free(predicted)
	t.fetch(predicted, in[0], in[len(in)-2])
	t.memory.transient(2 * predicted.bytes) // latents, in float64
	slope := t.feed(t.net.latents(b))
	defer t.memory.free(slope...)
	p, err := t.pullback(t.net, t.theta, b)
	out, err := t.run(p, err, concat(t.point(), slope, in[:len(t.net.conditions(b))]), nil)
	if err != nil {
		return vector{}, err
	}
	return vector{t.net.shapes(t.theta), out}, nil
}

// againstRelearning is the gradient of meta-unlearn beside those at θ that other methods have.
func (t *trainer) againstRelearning(v *view) (total vector, err error) {
	start, made := t.start(v)
	defer t.memory.free(made...)
	d, err := t.simulate(v, start)
	if err != nil {
		return total, err
	}
	defer t.end(d)
	w := t.r.Meta
	after := put(v.phi, start, d.at.ts)
	for _, l := range []struct {
		net    network
		point  []*tensor
		by     denoise.Selection
		batch  batch
		weight float64
	}{
		{t.net, t.point(), t.theta, t.related, w.Related},
		{v.net, after, v.theta, t.harmful, 1}, // logged whatever its weight
		{v.net, after, v.theta, t.related, w.RelatedAfter},
		{v.net, after, v.theta, t.retained, w.RetainedAfter},
	} {
		if l.batch.size == 0 || l.weight == 0 {
			continue
		}
		in := t.feed(l.net.inputs(l.batch)...)
		g, err := t.gradientAt(l.net, l.by, 0, l.batch, l.point, in)
		t.memory.free(in...)
		if err != nil {
			return total, err
		}
		scaled, err := t.mix(g)
		if err != nil {
			return total, err
		}
		t.release(g)
		if total, err = t.accumulate(total, scaled); err != nil {
			return total, err
		}
	}
	return total, nil
}
