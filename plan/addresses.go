package plan

import (
	"cmp"
	"slices"
)

// addresses is where Go's runtime puts what is allocated: at the lowest place that is long enough. What was written to
// stays in memory until the runtime gives it back to the system. An array that reaches into memory which was in use before
// is cleared as a whole, and so comes into memory as a whole. That, not the heap's size, is what the system reports as the
// memory of a process.
type addresses struct {
	free  []block // by start, none touching another
	top   int     // where the space ends that was asked of the system
	state []state // by page
	used  int     // pages in the state used or written
	pages int     // pages in the state written

	small, mostSmall int // bytes of small objects, now and at their height
}

// state is what has become of a page.
type state uint8

const (
	fresh   state = iota // the system gives it as zeros
	used                 // it was in use, but not written to
	written              // it is in memory
)

const (
	chunk = 4 << 20  // by which Go's heap grows
	page  = 8 << 10  // of Go's runtime
	large = 32 << 10 // allocations above that take whole pages; others share them with their like

	nowhere = -1 // where small objects begin
)

// take hands out memory, of which the first bytes are written to.
func (a *addresses) take(size, bytes int) block {
	b := a.place(size)
	if b.start == nowhere {
		return b
	}
	length := a.length(size)
	if slices.ContainsFunc(a.state[b.start/page:(b.start+length)/page], func(s state) bool { return s != fresh }) {
		bytes = length
	}
	filled := a.length(bytes)
	a.mark(b.start, b.start+filled, written)
	a.mark(b.start+filled, b.start+length, used)
	return b
}

// reserve hands out memory that nobody writes to, and that is not cleared.
func (a *addresses) reserve(size int) block {
	b := a.place(size)
	if b.start != nowhere {
		a.mark(b.start, b.start+a.length(size), used)
	}
	return b
}

// length is a size in whole pages.
func (*addresses) length(size int) int { return (size + page - 1) / page * page }

// place finds room.
func (a *addresses) place(size int) block {
	if size <= large {
		a.small += size
		a.mostSmall = max(a.mostSmall, a.small)
		return block{start: nowhere, size: size}
	}
	length := a.length(size)
	i := slices.IndexFunc(a.free, func(f block) bool { return f.size >= length })
	if i < 0 {
		a.grow(length)
		i = len(a.free) - 1
	}
	at := a.free[i].start
	a.free[i].start += length
	if a.free[i].size -= length; a.free[i].size == 0 {
		a.free = slices.Delete(a.free, i, i+1)
	}
	return block{start: at, size: size}
}

// grow asks the system for what is missing for so much in one piece at the end.
func (a *addresses) grow(length int) {
	if n := len(a.free); n > 0 && a.free[n-1].start+a.free[n-1].size == a.top {
		length -= a.free[n-1].size
	}
	a.extend(length)
}

// extend asks the system for so much more.
func (a *addresses) extend(length int) {
	length = (length + chunk - 1) / chunk * chunk
	a.state = append(a.state, make([]state, length/page)...)
	a.top += length
	a.insert(block{start: a.top - length, size: length})
}

// mark takes note of what becomes of pages. What is in memory stays there.
func (a *addresses) mark(from, to int, as state) {
	for k := from / page; k*page < to; k++ {
		before := a.state[k]
		if before >= as {
			continue
		}
		if a.state[k] = as; before == fresh {
			a.used++
		}
		if as == written {
			a.pages++
		}
	}
}

// release gives free memory back to the system, from the end on, until no more than so many bytes are kept.
func (a *addresses) release(bytes int) {
	for _, f := range slices.Backward(a.free) {
		for k := (f.start + f.size) / page; k > f.start/page; k-- {
			if a.used*page+a.mostSmall <= bytes {
				return
			}
			switch a.state[k-1] {
			case written:
				a.pages--
				a.used--
			case used:
				a.used--
			}
			a.state[k-1] = fresh
		}
	}
}

// resident is the memory that the system counts.
func (a *addresses) resident() int { return a.pages*page + a.mostSmall }

func (a *addresses) giveBack(b block) {
	if b.start == nowhere {
		a.small -= b.size
		return
	}
	a.insert(block{start: b.start, size: a.length(b.size)})
}

// insert adds a free range and joins it with its neighbours.
func (a *addresses) insert(b block) {
	i, _ := slices.BinarySearchFunc(a.free, b.start, func(f block, start int) int { return cmp.Compare(f.start, start) })
	if i > 0 && a.free[i-1].start+a.free[i-1].size == b.start {
		i--
		a.free[i].size += b.size
	} else {
		a.free = slices.Insert(a.free, i, b)
	}
	if i+1 < len(a.free) && a.free[i].start+a.free[i].size == a.free[i+1].start {
		a.free[i].size += a.free[i+1].size
		a.free = slices.Delete(a.free, i+1, i+2)
	}
}
