package plan

import "github.com/resalign/resalign/random"

// heap is the memory of a process that computes on the Go engine: what is in use, what the engine's pool holds for the
// next operation, and what waits for the garbage collector. The collector's part is what makes this worth a simulation:
// a heap grows to about twice what was alive at the last collection before anything is used again.
type heap struct {
	addresses addresses
	inUse     int
	garbage   []block
	wasted    int  // bytes of garbage
	pool      pool // free arrays that were put back since the last collection
	victim    pool // those put back before it; the next collection drops them
	alive     int  // what the last collection left
	limit     int  // what is allocated then begins a collection
	goal      int  // what the heap may have grown to when that ends

	trigger float64 // share of the way from what was alive to the goal at which a collection begins

	place  int // the processor that the work is on now
	places int // processors
	moves  *random.Stream

	live int // the largest inUse so far

	collections int
}

// block is memory that was handed out: where it begins, and how long it is.
type block struct{ start, size int }

// The collector of Go at its default setting, GOGC=100.
const (
	minHeap    = 4 << 20
	minTrigger = 0.7 // of the way from what was alive to twice that: the earliest a collection may begin
	maxTrigger = 0.95
	retained   = 1.1 // of the heap's goal: what the runtime gives back to the system is free memory beyond that
)

// moveShare is the share of the operations after which Go's scheduler goes on with another processor, because that is
// where the last part of the operation ended. Above a tenth its value makes no difference that matters.
const moveShare = 0.3

// newHeap is an empty one. What the runtime decides by the clock is drawn by the seed.
func newHeap(places int, seed uint64) *heap {
	moves := random.New(seed, "processor")
	return &heap{
		pool: newPool(places), victim: newPool(places), limit: minHeap, places: places, moves: moves,
		trigger: minTrigger + (maxTrigger-minTrigger)*moves.Float64(),
	}
}

var _ memory = (*heap)(nil)

// What no array accounts for, measured (docs/performance.md): the program itself with the runtime's own tables, and what
// the graph library keeps of an operation of a compiled program, and what it uses beside while it compiles.
const (
	processBytes = 28 << 20
	nodeBytes    = 1000
	nodeGarbage  = 300
)

func (h *heap) taken() int { return processBytes + h.addresses.resident() }

func (h *heap) compile(p *program) {
	kept := nodeBytes*p.nodes + p.constants()
	h.allocate(kept, kept)
	h.transient(nodeGarbage * p.nodes)
}

// settledAfter is how many collections a heap needs until it grows no more.
const settledAfter = 16

func (h *heap) settled() bool { return h.collections >= settledAfter }

// held is everything that waits for nobody but the collector.
func (h *heap) held() int { return h.inUse + h.wasted + h.pool.bytes + h.victim.bytes }

// move takes the work to another processor now and then.
func (h *heap) move() {
	if h.moves.Float64() < moveShare {
		h.place = h.moves.IntN(h.places)
	}
}

// allocate takes memory from the system, of which the first bytes are written to.
func (h *heap) allocate(size, written int) block {
	return h.count(h.addresses.take(size, written))
}

// reserve takes memory that nobody writes to.
func (h *heap) reserve(size int) block { return h.count(h.addresses.reserve(size)) }

// count takes note of memory that was taken, and begins a collection where one is due.
func (h *heap) count(b block) block {
	h.inUse += b.size
	h.live = max(h.live, h.inUse)
	if h.held() >= h.limit {
		h.collect()
	}
	return b
}

// drop leaves memory to the collector.
func (h *heap) drop(b block) {
	h.inUse -= b.size
	h.wasted += b.size
	h.garbage = append(h.garbage, b)
}

// collect is one run of the garbage collector. What lay in the pool through two of them is gone.
func (h *heap) collect() {
	h.addresses.release(int(retained * float64(h.goal))) // what was freed by the last one; it takes its time
	h.garbage = append(h.garbage, h.victim.all()...)
	for _, b := range h.garbage {
		h.addresses.giveBack(b)
	}
	h.garbage, h.wasted = h.garbage[:0], 0
	h.victim, h.pool = h.pool, newPool(h.places)
	h.alive = h.held()
	h.setGoal()
	h.collections++
}

// What engine.Sparing, which runs are under, lets stand of garbage: as much as is in use, but no more than mostGarbage, or a
// small share of a very large heap.
const (
	mostGarbage       = 1 << 30
	leastGarbageShare = 0.05
)

// setGoal says when the next collection is due.
func (h *heap) setGoal() {
	room := max(minHeap, min(h.alive, mostGarbage), int(leastGarbageShare*float64(h.alive)))
	h.limit, h.goal = h.alive+int(h.trigger*float64(room)), h.alive+room
}

// get takes an array from the pool, or makes one.
func (h *heap) get(bytes int) block {
	size := bucket(bytes)
	for _, p := range []*pool{&h.pool, &h.victim} {
		if b, ok := p.take(size, h.place); ok {
			h.inUse += size
			h.live = max(h.live, h.inUse)
			return b
		}
	}
	return h.allocate(size, bytes)
}

// put gives an array back to the pool.
func (h *heap) put(b block) {
	h.pool.put(b, h.place)
	h.inUse -= b.size
}

// The engine keeps address space free behind the heap before every call (engine/headroom.go). Nothing is written to it, but
// the collector sees it.
const (
	minHeadroom  = 1 << 30
	headroomStep = 1 << 30
	maxHeadroom  = 16 << 30

	// scatteredShare is the share of these blocks that find no room in one piece, as small objects lie in between.
	scatteredShare = 0.25
)

func (h *heap) keepHeadroom() {
	free, want := h.addresses.top-h.held(), min(max(minHeadroom, h.held()), maxHeadroom)
	if free >= want {
		return
	}
	var blocks []block
	for missing := want - free + minHeadroom/2; ; missing -= headroomStep {
		size := min(missing, headroomStep)
		if h.moves.Float64() < scatteredShare {
			h.addresses.extend(size)
		}
		blocks = append(blocks, h.reserve(size))
		if missing <= headroomStep {
			break
		}
	}
	for _, b := range blocks {
		h.drop(b)
	}
	h.collect()
}

// keep is memory that the host needs to the end.
func (h *heap) keep(bytes int) { h.allocate(bytes, bytes) }

// transient is memory that the host needs for a moment.
func (h *heap) transient(bytes int) { h.drop(h.allocate(bytes, bytes)) }
