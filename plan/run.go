package plan

import "github.com/gomlx/compute"

// tensor is an array that outlives the call of a program.
type tensor struct {
	bytes int
	at    block
	fed   bool // made by the host: its memory never goes to the pool
	local bool // on the host still, until a program needs it
}

// feed makes a tensor of numbers that the host has.
func (h *heap) feed(bytes int) *tensor {
	return &tensor{bytes: bytes, at: h.allocate(bytes, bytes), fed: true, local: true}
}

// made makes a tensor in the engine's own memory.
func (h *heap) made(bytes int) *tensor { return &tensor{bytes: bytes, at: h.get(bytes), fed: true} }

// free lets go of tensors. Their memory is left to the collector.
func (h *heap) free(ts ...*tensor) {
	for _, t := range ts {
		if t != nil {
			h.drop(t.at)
		}
	}
}

// settle moves a tensor to where programs read it.
func (h *heap) settle(t *tensor) {
	if t.local {
		from := t.at
		t.at, t.local = h.get(t.bytes), false
		h.drop(from)
	}
}

// slot is what is known of a value while a program runs.
type slot struct {
	at    block
	live  bool
	owned bool // the engine may free it or write over it
	fed   bool
	used  int
}

// run goes through a program as the engine would, one operation after the other, and returns its outputs. Inputs for
// which donate is true are used up.
func (h *heap) run(p *program, inputs []*tensor, donate []bool) []*tensor {
	h.keepHeadroom()
	for _, t := range inputs {
		h.settle(t)
	}
	slots := make([]slot, len(p.values))
	given := func(i int) bool { return i < len(donate) && donate[i] }
	needed := make([]bool, len(inputs))
	for k, v := range p.values {
		if i := v.input - 1; i >= 0 {
			needed[i] = v.uses > 0
			slots[k] = slot{at: inputs[i].at, live: v.uses > 0, owned: given(i), fed: inputs[i].fed}
		}
	}
	for i := range inputs {
		if !needed[i] && given(i) {
			h.free(inputs[i])
		}
	}
	for _, o := range p.ops {
		h.carryOut(p, o, slots)
	}
	return h.outputs(p, slots)
}

func (h *heap) carryOut(p *program, o op, slots []slot) {
	if o.shared(p) {
		h.move()
	}
	result := &slots[o.result]
	*result = slot{live: true, owned: true}
	if i := o.reuses(p, slots); i >= 0 {
		from := &slots[o.inputs[i]]
		result.at, result.fed = from.at, from.fed
		from.live = false
	} else {
		result.at = h.get(p.values[o.result].bytes)
	}
	if o.panels {
		h.multiply(o.half)
	}
	for _, k := range o.inputs {
		slots[k].used++
		if slots[k].live && slots[k].owned && slots[k].used == p.values[k].uses {
			h.release(&slots[k])
		}
	}
}

// sharedBytes is from how much on the processors share an elementwise operation (github.com/gomlx/compute, ops).
const sharedBytes = 4096 * 4

// shared tells whether several processors carry the operation out.
func (o op) shared(p *program) bool {
	bytes := p.values[o.result].bytes
	for _, k := range o.inputs {
		bytes = max(bytes, p.values[k].bytes)
	}
	return bytes > sharedBytes
}

// The engine multiplies large matrices panel by panel, which every processor packs into arrays of its own. These are the sizes
// of the AVX-512 code (github.com/gomlx/compute, dot/matmul); other code has smaller ones.
const (
	panelSize  = 4 << 20       // multiplications from which on that is done
	panelQueue = 2000 * 6 << 3 // what tells the processors which panels are theirs
)

// panels are the bytes of a processor's arrays: a panel of either factor, one of the product, and sums.
func panels(half bool) []int {
	if half {
		return []int{2 * 32 * 128, 2 * 128 * 768, 4 * 32 * 768, 64 * 4 * 32 * 768}
	}
	return []int{4 * 32 * 192, 4 * 192 * 512, 4 * 32 * 512, 64 * 4 * 32 * 512}
}

// multiply takes the arrays that a product of large matrices needs beside its result, and gives them back.
func (h *heap) multiply(half bool) {
	before := h.place
	defer func() { h.place = before }()
	if h.places == 1 { // sums of fewer panels, and no queue
		sizes := panels(half)
		sizes[3] /= 4
		h.borrow(sizes)()
		return
	}
	h.transient(panelQueue)
	var back []func()
	for h.place = range h.places {
		back = append(back, h.borrow(panels(half)))
	}
	for _, giveBack := range back {
		giveBack()
	}
}

// borrow takes arrays of the pool for the processor at work.
func (h *heap) borrow(sizes []int) (giveBack func()) {
	place := h.place
	taken := make([]block, len(sizes))
	for i, bytes := range sizes {
		taken[i] = h.get(bytes)
	}
	return func() {
		h.place = place
		for _, b := range taken {
			h.put(b)
		}
	}
}

func (h *heap) release(s *slot) {
	if s.fed {
		h.drop(s.at)
	} else {
		h.put(s.at)
	}
	s.live = false
}

func (h *heap) outputs(p *program, slots []slot) []*tensor {
	out := make([]*tensor, len(p.outputs))
	for i, k := range p.outputs {
		out[i] = &tensor{bytes: p.values[k].bytes, at: slots[k].at, fed: slots[k].fed}
		if slots[k].owned {
			slots[k].live = false
		} else { // an input or a constant is copied
			out[i].at, out[i].fed = h.get(p.values[k].bytes), false
		}
	}
	for k := range slots {
		if slots[k].live && slots[k].owned {
			h.release(&slots[k])
		}
	}
	return out
}

// reuses is the position of the input whose memory the result takes over, or −1.
func (o op) reuses(p *program, slots []slot) int {
	var candidates []int
	switch o.class() {
	case unary, relabel, reduction: // a reduction, where there is nothing to sum and only the shape changes
		candidates = []int{0}
	case binary:
		candidates = []int{1, 0} // the order in which the engine asks
	case choice:
		candidates = []int{1, 2}
	}
	for _, i := range candidates {
		k := o.inputs[i]
		last := slots[k].owned && p.values[k].uses-slots[k].used == 1
		if last && p.values[k].bytes == p.values[o.result].bytes {
			return i
		}
	}
	return -1
}

// class is how the engine carries out an operation.
type class int

const (
	product   class = iota // of matrices
	unary                  // elementwise
	binary                 // elementwise
	relabel                // of axes; the numbers stay where they are, if they may
	reduction              // sums and maxima
	choice                 // elementwise, of two arrays by a third
	movement               // transposes, slices, gathers, copies
	classes   = iota
)

func (o op) class() class {
	switch o.kind {
	case compute.OpTypeDotGeneral, compute.OpTypeConvGeneral:
		return product
	case compute.OpTypeReshape, compute.OpTypeIdentity, compute.OpTypeBitcast, compute.OpTypeSchedulingBarrier:
		return relabel
	case compute.OpTypeReduceSum, compute.OpTypeReduceMax, compute.OpTypeReduceMin, compute.OpTypeReduceProduct:
		return reduction
	case compute.OpTypeWhere:
		return choice
	case compute.OpTypeAbs, compute.OpTypeCeil, compute.OpTypeCos, compute.OpTypeErf, compute.OpTypeExp, compute.OpTypeExpm1, compute.OpTypeFloor,
		compute.OpTypeLog, compute.OpTypeLog1p, compute.OpTypeLogistic, compute.OpTypeNeg, compute.OpTypeRound, compute.OpTypeRsqrt,
		compute.OpTypeSign, compute.OpTypeSin, compute.OpTypeSqrt, compute.OpTypeTanh:
		return unary
	case compute.OpTypeAdd, compute.OpTypeDiv, compute.OpTypeMax, compute.OpTypeMin, compute.OpTypeMul, compute.OpTypePow, compute.OpTypeRem,
		compute.OpTypeSub:
		return binary
	}
	return movement
}
