package engine

import (
	"bytes"
	"os"
	"sync"
	"syscall"
)

// mayReserve tells whether address space can be had for nothing here. Where the system counts every promise of memory
// (vm.overcommit_memory = 2), or the process is limited in address space, asking for more than is used could end it.
var mayReserve = sync.OnceValue(func() bool {
	mode, err := os.ReadFile("/proc/sys/vm/overcommit_memory")
	if err == nil && string(bytes.TrimSpace(mode)) == "2" {
		return false
	}
	var limit syscall.Rlimit
	err = syscall.Getrlimit(syscall.RLIMIT_AS, &limit)
	return err == nil && limit.Cur >= 2*maxHeadroom
})
