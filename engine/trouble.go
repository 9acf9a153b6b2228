package engine

import "sync"

// trouble is what goes wrong in an engine without stopping anything, such as a compiled program that cannot be kept.
type trouble struct {
	mu     sync.Mutex
	listen func(error)
}

// OnTrouble has listen told of what goes wrong without stopping anything: a compiled program that cannot be kept or read
// back, and is compiled instead. It may be called from several goroutines.
func (e *Engine) OnTrouble(listen func(error)) {
	if e.trouble == nil {
		return
	}
	e.trouble.mu.Lock()
	defer e.trouble.mu.Unlock()
	e.trouble.listen = listen
}
