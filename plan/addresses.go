package plan

import (
	"cmp"
	"slices"
)

// addresses is where Go's runtime puts what is allocated: at the lowest place that is long enough. What was written to
// once stays in memory; so does all of an array that reaches into such memory, since Go clears it as a whole. That, not the heap's size, is what the system reports as the memory of a process.
type addresses struct {
	free    []block // by start, none touching another
	top     int     // where the space ends that was asked of the system
	written []bool  // by page
	pages   int     // written ones
}

const (
	chunk = 4 << 20 // by which Go's heap grows
	page  = 8 << 10 // of Go's runtime: allocations above 32 KiB take whole ones
)

// take hands out memory, of which the first bytes are written to.
func (a *addresses) take(size, written int) block {
	length := (size + page - 1) / page * page
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
	if a.dirty(at, at+length) {
		written = length
	}
	a.write(at, at+written)
	return block{start: at, size: size}
}

// grow asks the system for at least so much more at the end.
func (a *addresses) grow(length int) {
	if n := len(a.free); n > 0 && a.free[n-1].start+a.free[n-1].size == a.top {
		length -= a.free[n-1].size
	}
	length = (length + chunk - 1) / chunk * chunk
	a.written = append(a.written, make([]bool, length/page)...)
	a.top += length
	a.insert(block{start: a.top - length, size: length})
}

// dirty tells whether any of a range was written to before.
func (a *addresses) dirty(from, to int) bool {
	for k := from / page; k*page < to; k++ {
		if a.written[k] {
			return true
		}
	}
	return false
}

func (a *addresses) write(from, to int) {
	for k := from / page; k*page < to; k++ {
		if !a.written[k] {
			a.written[k] = true
			a.pages++
		}
	}
}

// resident is the memory that the system counts.
func (a *addresses) resident() int { return a.pages * page }

func (a *addresses) giveBack(b block) {
	a.insert(block{start: b.start, size: (b.size + page - 1) / page * page})
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
