package engine

import (
	"slices"
	"sync"
)

// maxIdle is how many functions that nobody uses any more are kept for the next one who wants them. A model has some ten.
const maxIdle = 64

// shelf holds functions that are shared by everyone who would compile the same program: a model that is fine-tuned ten
// times, or ten models of one architecture, need each program once.
type shelf struct {
	mu      sync.Mutex
	entries map[string]*shelved
	idle    []string // keys without users, the one left longest first
}

type shelved struct {
	function *Function
	users    int
}

// Shared returns the function of a key, preparing it if there is none. The key must name everything that the program
// depends on but its inputs: what is computed, and the architecture that it is computed with. Free the function as one's
// own; it stays for others.
func (e *Engine) Shared(key string, prepare func() (*Function, error)) (*Function, error) {
	s := &e.shelf
	s.mu.Lock()
	defer s.mu.Unlock()
	if found, ok := s.entries[key]; ok {
		if found.users == 0 {
			s.idle = slices.DeleteFunc(s.idle, func(k string) bool { return k == key })
		}
		found.users++
		return found.function, nil
	}
	f, err := prepare()
	if err != nil {
		return nil, err
	}
	f.key = key
	if s.entries == nil {
		s.entries = map[string]*shelved{}
	}
	s.entries[key] = &shelved{function: f, users: 1}
	return f, nil
}

// giveBack notes that a user of a shared function is done with it.
func (e *Engine) giveBack(key string) {
	s := &e.shelf
	s.mu.Lock()
	defer s.mu.Unlock()
	found, ok := s.entries[key]
	if !ok || found.users == 0 {
		return
	}
	if found.users--; found.users > 0 {
		return
	}
	s.idle = append(s.idle, key)
	for len(s.idle) > maxIdle {
		s.entries[s.idle[0]].function.exec.Finalize()
		delete(s.entries, s.idle[0])
		s.idle = s.idle[1:]
	}
}

// free releases the programs that nobody uses.
func (s *shelf) free() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range s.idle {
		s.entries[key].function.exec.Finalize()
		delete(s.entries, key)
	}
	s.idle = nil
}
