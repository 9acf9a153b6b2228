package engine

import (
	"fmt"
	"os"
	"runtime"
	"testing"
)

// resident is the process's memory in bytes.
func resident(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(content), &size, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

// Headroom takes address space and no memory, also where it begins on memory that was used before.
func TestHeadroomIsNotTouched(t *testing.T) {
	if !mayReserve() {
		t.Skip("this system or process is limited in address space, and no headroom is kept")
	}
	// Used memory that is free again, and of which a block that is larger than it takes the end.
	used := make([]byte, 256<<20)
	for i := 0; i < len(used); i += 4096 {
		used[i] = 1
	}
	used = nil
	runtime.GC()
	before := resident(t)
	block := untouched(2 * minHeadroom)
	grown := resident(t) - before
	runtime.KeepAlive(block)
	if grown > 64<<20 {
		t.Errorf("2 GiB of headroom take %d MiB of memory", grown>>20)
	}
}
