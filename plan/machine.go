package plan

import (
	"context"

	"github.com/resalign/resalign/hypergrad"
	"github.com/resalign/resalign/train"
)

// machine goes through a run without computing: it keeps account of the memory and of the work.
type machine struct {
	*compiler
	heap   *heap
	mapped int // bytes of files that are being read
	code   int // bytes of the programs compiled so far
	known  map[*program]bool
	times  float64 // how often what comes next is done
	work   work
	peak   int // of the process
	scalar *tensor
}

func newMachine(c *compiler, threads int, seed uint64) *machine {
	m := &machine{compiler: c, heap: newHeap(threads, seed), known: map[*program]bool{}, times: 1}
	m.heap.keepHeadroom()
	m.scalar = m.heap.feed(4)
	return m
}

// Memory that no array accounts for, measured (docs/performance.md): the program itself with the runtime's own tables, and
// what the graph library keeps for an operation of a compiled program.
const (
	processBytes = 48 << 20
	nodeBytes    = 1100
)

func (m *machine) note() {
	m.peak = max(m.peak, processBytes+m.code+m.mapped+m.heap.addresses.resident())
}

// run carries out a program whose inputs are those given.
func (m *machine) run(p *program, err error, inputs []*tensor, donate []bool) ([]*tensor, error) {
	if err != nil {
		return nil, err
	}
	if !m.known[p] {
		m.known[p] = true
		m.code += nodeBytes*p.nodes + p.constants()
	}
	m.work.add(p, m.times)
	out := m.heap.run(p, inputs, donate)
	m.note()
	return out, nil
}

// vector is a list of tensors in the shapes of a group of parameters.
type vector struct {
	key    string
	shapes []input
	ts     []*tensor
}

func (m *machine) release(vs ...vector) {
	for _, v := range vs {
		m.heap.free(v.ts...)
	}
}

// zeros is a vector that the host makes.
func (m *machine) zeros(key string, shapes []input) vector {
	v := vector{key: key, shapes: shapes}
	for _, s := range shapes {
		m.heap.transient(s.bytes())
		v.ts = append(v.ts, m.heap.feed(s.bytes()))
	}
	return v
}

// Dot, Combine and Release make the machine a space, in which package hypergrad's own solvers can be run. All inner
// products are 1: a solver then neither ends early nor finds fault.
func (m *machine) Dot(a, b vector) (float64, error) {
	p, err := m.inner(a.key, a.shapes)
	out, err := m.run(p, err, concat(a.ts, b.ts), nil)
	m.heap.free(out...)
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
	d := &descent{at: at, rule: rule, moments: vector{key: at.key}}
	d.moments.ts = m.zeros(at.key, states(rule, at.shapes)).ts
	return d
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

func concat(lists ...[]*tensor) []*tensor {
	var out []*tensor
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

var background = context.Background()
