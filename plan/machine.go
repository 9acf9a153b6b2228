package plan

import (
	"slices"

	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/train"
)

// machine goes through a run without computing: it keeps account of the memory and of the work.
type machine struct {
	*compiler
	memory memory
	known  map[*program]bool
	times  float64 // how often what comes next is done
	work   work
	peak   int
	scalar *tensor
}

// memory is where arrays live.
type memory interface {
	// feed makes a tensor of numbers that the host has.
	feed(bytes int) *tensor
	// made makes one whose numbers are written where programs read them (engine.Made).
	made(bytes int) *tensor
	// free lets go of tensors; nil ones are skipped.
	free(ts ...*tensor)
	// transient is memory that the host needs for a moment.
	transient(bytes int)
	// keep is memory that the host needs to the end.
	keep(bytes int)
	// compile takes what a program itself needs.
	compile(p *program)
	// run goes through a program and returns its outputs. Inputs for which donate is true are used up.
	run(p *program, inputs []*tensor, donate []bool) []*tensor
	// settled tells whether the memory is what it will be in a while, too.
	settled() bool
	// taken is how much is in use at present.
	taken() int
}

func newMachine(c *compiler, in memory) *machine {
	m := &machine{compiler: c, memory: in, known: map[*program]bool{}, times: 1}
	m.scalar = m.memory.feed(4)
	return m
}

func (m *machine) note() { m.peak = max(m.peak, m.memory.taken()) }

// run carries out a program whose inputs are those given.
func (m *machine) run(p *program, err error, inputs []*tensor, donate []bool) ([]*tensor, error) {
	if err != nil {
		return nil, err
	}
	if !m.known[p] {
		m.known[p] = true
		m.memory.compile(p)
	}
	if err := m.ask(p, donate); err != nil {
		return nil, err
	}
	m.work.add(p, m.times)
	m.work.timed += m.times * p.seconds
	out := m.memory.run(p, inputs, donate)
	m.note()
	return out, nil
}

// repeat goes through something a few times, at most as often as it is done, and counts its work as often as it is done.
func (m *machine) repeat(walked int, done float64, f func() error) error {
	if done <= 0 {
		return nil
	}
	walked = max(1, min(walked, int(done)))
	before := m.times
	defer func() { m.times = before }()
	m.times *= done / float64(walked)
	for range walked {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// settle goes through something again and again, at most as often as it is done, until the memory is what it stays: a heap of small
// arrays grows for a while. f need not count its work more than once.
func (m *machine) settle(done int, f func() error) error {
	for k := 0; k < min(done, settledAt) && (k < walkedSteps || !m.memory.settled()); k++ {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// At least and at most so many steps are gone through.
const (
	walkedSteps = 2
	settledAt   = 8
)

// vector is a list of tensors in the shapes of some parameters.
type vector struct {
	shapes []input
	ts     []*tensor
}

func (m *machine) release(vs ...vector) {
	for _, v := range vs {
		m.memory.free(v.ts...)
	}
}

// feed makes tensors of numbers that the host has in arrays of its own.
func (m *machine) feed(shapes ...input) []*tensor {
	var out []*tensor
	for _, s := range shapes {
		m.memory.transient(s.bytes())
		out = append(out, m.memory.feed(s.bytes()))
	}
	return out
}

// fetch copies tensors to the host, for a moment.
func (m *machine) fetch(ts ...*tensor) {
	for _, t := range ts {
		m.memory.transient(t.bytes)
	}
}

// Dot, Combine and Release make the machine a space, in which package hypergrad's own solvers can be run. All inner
// products are 1: a solver then neither ends early nor finds fault.
func (m *machine) Dot(a, b vector) (float64, error) {
	p, err := m.innerProduct(a.shapes)
	out, err := m.run(p, err, concat(a.ts, b.ts), nil)
	m.memory.free(out...)
	return 1, err
}

func (m *machine) Combine(terms ...hypergrad.Term[vector]) (vector, error) {
	first := terms[0].Vector
	var in []*tensor
	for _, t := range terms {
		in = append(in, t.Vector.ts...)
	}
	for range terms {
		in = append(in, m.scalar)
	}
	p, err := m.combination(first.shapes, len(terms))
	out, err := m.run(p, err, in, nil)
	return vector{first.shapes, out}, err
}

func (m *machine) Release(v vector) { m.release(v) }

var _ hypergrad.Space[vector] = (*machine)(nil)

func (m *machine) mix(vs ...vector) (vector, error) {
	var terms []hypergrad.Term[vector]
	for _, v := range vs {
		terms = append(terms, hypergrad.Term[vector]{Coefficient: 1, Vector: v})
	}
	return m.Combine(terms...)
}

// accumulate is sum + v, both used up; an empty sum stands for zero.
func (m *machine) accumulate(sum, v vector) (vector, error) {
	if sum.ts == nil {
		return v, nil
	}
	next, err := m.mix(sum, v)
	m.release(sum, v)
	return next, err
}

func (m *machine) multiply(a, b vector) (vector, error) {
	p, err := m.product(a.shapes)
	out, err := m.run(p, err, concat(a.ts, b.ts), nil)
	return vector{a.shapes, out}, err
}

// descent is denoise.Descent.
type descent struct {
	at, moments vector // moments: slot by slot
	rule        train.Optimizer
	owned       bool
	keep        int // steps that are recorded
	trail       []footprint
}

// footprint is what a step started from and used.
type footprint struct {
	at, gradient, moments vector
	owned                 bool
}

func (f footprint) release(m *machine) {
	m.release(f.gradient, f.moments)
	if f.owned {
		m.release(f.at)
	}
}

func (m *machine) newDescent(at vector, rule train.Optimizer) *descent {
	shapes := states(rule, at.shapes)
	moments := vector{shapes: shapes}
	for _, s := range shapes {
		moments.ts = append(moments.ts, m.memory.made(s.bytes()))
	}
	return &descent{at: at, rule: rule, moments: moments}
}

// descend takes a step. It uses up the gradient.
func (m *machine) descend(d *descent, gradient vector) error {
	recorded := d.keep > 0
	n, slots := len(d.at.ts), d.rule.StateSlots()
	next, moments := make([]*tensor, n), make([]*tensor, slots*n)
	var sizes []int
	for _, s := range d.at.shapes {
		sizes = append(sizes, s.bytes())
	}
	for _, part := range denoise.StepParts(m.native, sizes) {
		k := part.To - part.From
		in := concat(d.at.ts[part.From:part.To], gradient.ts[part.From:part.To])
		for s := range slots {
			in = append(in, d.moments.ts[s*n:][part.From:part.To]...)
		}
		in = append(in, m.scalar, m.scalar, m.scalar)
		donate := make([]bool, len(in))
		for i := range len(in) - 3 {
			donate[i] = !recorded && (i >= k || d.owned)
		}
		p, err := m.step(d.at.shapes[part.From:part.To], d.rule)
		out, err := m.run(p, err, in, donate)
		if err != nil {
			return err
		}
		copy(next[part.From:], out[:k])
		for s := range slots {
			copy(moments[s*n:][part.From:], out[(1+s)*k:][:k])
		}
	}
	if recorded {
		d.trail = append(d.trail, footprint{d.at, gradient, d.moments, d.owned})
		if len(d.trail) > d.keep {
			d.trail[0].release(m)
			d.trail = d.trail[1:]
		}
	}
	d.at.ts, d.moments.ts, d.owned = next, moments, true
	return nil
}

func (m *machine) end(d *descent) {
	for _, f := range d.trail {
		f.release(m)
	}
	m.release(d.moments)
	if d.owned {
		m.release(d.at)
	}
}

// metric is denoise.Descent.Metric.
func (m *machine) metricOf(d *descent) (root, inverse vector, err error) {
	n := len(d.at.ts)
	p, err := m.metric(d.at.shapes, d.rule)
	out, err := m.run(p, err, append(concat(d.moments.ts[n:2*n]), m.scalar), nil)
	if err != nil {
		return root, inverse, err
	}
	return vector{d.at.shapes, out[:n:n]}, vector{d.at.shapes, out[n:]}, nil
}

// unroll is denoise.Descent.Unrolled: a derivative is taken back along the recorded steps. each is given the derivative by
// the gradient of a step; curvature makes of it what goes on.
func (m *machine) unroll(d *descent, right vector, clipped bool, curvature func(v vector) (vector, error), each func(v vector) error) (vector, error) {
	n := len(d.at.ts)
	adjoint, err := m.mix(right, right)
	if err != nil {
		return vector{}, err
	}
	moments := vector{shapes: d.moments.shapes}
	for range d.rule.StateSlots() {
		zero, err := m.mix(right, right)
		if err != nil {
			return vector{}, err
		}
		moments.ts = append(moments.ts, zero.ts...)
	}
	defer func() { m.release(moments) }()
	for _, f := range slices.Backward(d.trail) {
		p, err := m.reverse(d.at.shapes, d.rule)
		back, err := m.run(p, err, append(concat(f.at.ts, f.gradient.ts, f.moments.ts, adjoint.ts, moments.ts), m.scalar, m.scalar, m.scalar), nil)
		if err != nil {
			return vector{}, err
		}
		m.release(adjoint, moments)
		adjoint.ts, moments.ts = back[:n:n], back[2*n:]
		byGradient := vector{d.at.shapes, back[n : 2*n : 2*n]}
		if adjoint, err = m.throughLoss(f, adjoint, byGradient, clipped, curvature, each); err != nil {
			return vector{}, err
		}
	}
	return adjoint, nil
}

// throughLoss adds what the adjoint gets by way of a step's gradient. It uses up both vectors.
func (m *machine) throughLoss(f footprint, adjoint, byGradient vector, clipped bool, curvature func(v vector) (vector, error), each func(v vector) error) (vector, error) {
	defer m.release(byGradient)
	if clipped {
		for _, v := range []vector{f.gradient, byGradient} {
			if _, err := m.Dot(f.gradient, v); err != nil {
				return vector{}, err
			}
		}
	}
	unclipped, err := m.mix(byGradient, byGradient)
	if err != nil {
		return vector{}, err
	}
	defer m.release(unclipped)
	if err := each(unclipped); err != nil {
		return vector{}, err
	}
	curved, err := curvature(unclipped)
	if err != nil {
		return vector{}, err
	}
	return m.accumulate(adjoint, curved)
}

func concat[T any](lists ...[]T) []T {
	var out []T
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

// constants are the bytes that a program holds.
func (p *program) constants() int {
	n := 0
	for _, v := range p.values {
		if v.constant {
			n += v.bytes
		}
	}
	return n
}
