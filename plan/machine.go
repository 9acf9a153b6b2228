package plan

import (
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
	// free lets go of tensors; nil ones are skipped.
	free(ts ...*tensor)
	// transient is memory that the host needs for a moment.
	transient(bytes int)
	// compile takes what a program itself needs.
	compile(p *program)
	// run goes through a program and returns its outputs. Inputs for which donate is true are used up.
	run(p *program, inputs []*tensor, donate []bool) []*tensor
	// settled tells whether the memory is what it will be in a while, too.
	settled() bool
	// sparing says whether the collector is asked to let little garbage stand (engine.Sparing).
	sparing(on bool)
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
	m.work.add(p, m.times)
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
	key    string // of the shapes
	shapes []input
	ts     []*tensor
}

func newVector(shapes []input, ts []*tensor) vector {
	return vector{key: shapesKey(shapes), shapes: shapes, ts: ts}
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
	p, err := m.inner(a.key, a.shapes)
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
	p, err := m.combination(first.key, first.shapes, len(terms))
	out, err := m.run(p, err, in, nil)
	return vector{first.key, first.shapes, out}, err
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
	p, err := m.multiplied(a.key, a.shapes)
	out, err := m.run(p, err, concat(a.ts, b.ts), nil)
	return vector{a.key, a.shapes, out}, err
}

// descent is denoise.Descent.
type descent struct {
	at, moments vector // moments: slot by slot
	rule        train.Optimizer
	owned       bool
	keep        int // steps that are recorded
	trail       []vector
}

func (m *machine) newDescent(at vector, rule train.Optimizer) *descent {
	return &descent{at: at, rule: rule, moments: vector{ts: m.feed(states(rule, at.shapes)...)}}
}

// step uses up the gradient.
func (m *machine) descend(d *descent, gradient vector) error {
	n, recorded := len(d.at.ts), d.keep > 0
	in := append(concat(d.at.ts, gradient.ts, d.moments.ts), m.scalar, m.scalar, m.scalar)
	donate := make([]bool, len(in))
	for i := range len(in) - 3 {
		donate[i] = !recorded && (i >= n || d.owned)
	}
	p, err := m.step(d.at.key, d.at.shapes, d.rule)
	out, err := m.run(p, err, in, donate)
	if err != nil {
		return err
	}
	if recorded {
		used := vector{ts: concat(gradient.ts, d.moments.ts)}
		if d.owned {
			used.ts = append(used.ts, d.at.ts...)
		}
		if d.trail = append(d.trail, used); len(d.trail) > d.keep {
			m.release(d.trail[0])
			d.trail = d.trail[1:]
		}
	}
	d.at.ts, d.moments.ts, d.owned = out[:n:n], out[n:], true
	return nil
}

func (m *machine) end(d *descent) {
	m.release(d.trail...)
	m.release(d.moments)
	if d.owned {
		m.release(d.at)
	}
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
