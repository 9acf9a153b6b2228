package engine

import (
	"runtime"
	"runtime/metrics"
	"strings"
)

// The vector code of the Go backend reads the last, partial vector of an array as a whole one and masks it afterwards, so
// it looks up to 63 bytes past the array's end (Go 1.27, simd.LoadFloat32x16Part and its kin). Inside the heap that is
// harmless. At the very end of the memory that Go has mapped it is a fault that kills the process, and no recover can
// catch it. The Go heap is filled from low addresses, so it is enough to keep mapped, unused memory behind it: a large
// block that is allocated and dropped untouched costs address space only.
const (
	minHeadroom  = 1 << 30
	headroomStep = 1 << 30
	// maxHeadroom bounds what is asked of systems that refuse to promise more memory than they have.
	maxHeadroom = 16 << 30
)

// keepHeadroom sees to it that at least as much mapped memory is free as is in use, and never less than minHeadroom.
func keepHeadroom() {
	if !mayReserve() {
		return
	}
	free, used := heap()
	want := min(max(minHeadroom, used), maxHeadroom)
	if free >= want {
		return
	}
	var blocks []*strings.Builder // all at once: a block that was dropped would be handed out again
	for missing := want - free + minHeadroom/2; ; missing -= headroomStep {
		blocks = append(blocks, untouched(min(missing, headroomStep)))
		if missing <= headroomStep {
			break
		}
	}
	runtime.KeepAlive(blocks)

	runtime.GC() // gives the untouched blocks back to the heap, not to the system
}

// untouched is a block of memory that nothing was written to. The runtime clears the whole of an array that begins on
// memory which was used before, and a headroom block often does, at the end of the heap: made as a slice it took up to
// its size in real memory. What a builder grows by is not cleared.
func untouched(size uint64) *strings.Builder {
	b := new(strings.Builder)
	b.Grow(int(size))
	return b
}

// heap returns how many bytes of the mapped heap are free and how many hold objects.
func heap() (free, used uint64) {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
	}
	metrics.Read(samples)
	return samples[0].Value.Uint64() + samples[1].Value.Uint64(), samples[2].Value.Uint64()
}
