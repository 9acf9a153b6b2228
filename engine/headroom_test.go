package engine

import (
	"testing"
)

func TestHeadroomGrowsWithTheHeap(t *testing.T) {
	if !mayReserve() {
		t.Skip("this system or process is limited in address space, and no headroom is kept")
	}
	e, err := Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if free, _ := heap(); free < minHeadroom/2 {
		t.Fatalf("%d bytes of mapped memory are free behind the heap", free)
	}
	// Untouched, so that the test needs no memory.
	live := make([]byte, 3<<29)
	keepHeadroom()
	if free, used := heap(); free < used {
		t.Fatalf("%d bytes are free for %d in use", free, used)
	}
	live[0] = 1
}

func BenchmarkHeadroomCheck(b *testing.B) {
	keepHeadroom()
	for b.Loop() {
		keepHeadroom()
	}
}
