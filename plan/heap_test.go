package plan

import "testing"

// What the pool hands out is a power of two or halfway between; what lay unused through two collections goes back.
func TestHeap(t *testing.T) {
	for bytes, want := range map[int]int{1: 1, 5: 6, 6: 6, 7: 8, 4096: 4096, 4097: 6144, 6145: 8192} {
		if got := bucket(bytes); got != want {
			t.Errorf("bucket(%d) = %d, want %d", bytes, got, want)
		}
	}
	h := newHeap(1, 0)
	b := h.get(1 << 20)
	h.put(b)
	if again := h.get(1 << 20); again != b {
		t.Errorf("the pool gave %v, not %v", again, b)
	}
	h.put(b)
	h.collect()
	if h.held() != 1<<20 {
		t.Errorf("after one collection %d bytes are held, not the pool's array", h.held())
	}
	h.collect()
	if h.held() != 0 {
		t.Errorf("after two collections %d bytes are held", h.held())
	}
	if at := h.allocate(3<<20, 3<<20); at.start != 0 {
		t.Errorf("memory was not reused, but taken at %d", at.start)
	}
	if want := 3 << 20; h.addresses.resident() != want {
		t.Errorf("%d bytes are resident, not %d", h.addresses.resident(), want)
	}
}

// What is kept free behind the heap costs no memory, until it is used.
func TestHeadroomIsNotTouched(t *testing.T) {
	h := newHeap(1, 0)
	h.keepHeadroom()
	if got := h.addresses.resident(); got != 0 {
		t.Errorf("%d bytes are resident before anything was written", got)
	}
	if h.addresses.top < minHeadroom {
		t.Errorf("%d bytes of addresses are kept", h.addresses.top)
	}
	// What was kept free is cleared as a whole when it is used before the system has it back.
	h.allocate(8<<20, 4<<20)
	if got := h.addresses.resident(); got != 8<<20 {
		t.Errorf("%d bytes are resident, not the whole array", got)
	}
	h.collect()
	h.collect()
	h.allocate(16<<20, 4<<20)
	if got := h.addresses.resident(); got != 12<<20 {
		t.Errorf("%d bytes are resident, where the system gave zeros for all but 4 MiB", got)
	}
}

// Small objects share pages; what they took once stays.
func TestSmallObjects(t *testing.T) {
	var a addresses
	var all []block
	for range 1000 {
		all = append(all, a.take(100, 100))
	}
	for _, b := range all {
		a.giveBack(b)
	}
	a.take(100, 100)
	if a.resident() != 100_000 || a.top != 0 {
		t.Errorf("%d bytes are resident in %d, not 100000 in none", a.resident(), a.top)
	}
}

// A large product borrows panels for every processor, and gives them back.
func TestPanels(t *testing.T) {
	h := newHeap(2, 0)
	h.multiply(false)
	sum := 0
	for _, bytes := range panels(false) {
		sum += 2 * bucket(bytes)
	}
	if h.inUse != 0 || h.pool.bytes != sum {
		t.Errorf("%d bytes are in use and %d in the pool, not %d", h.inUse, h.pool.bytes, sum)
	}
}
