// Package engine runs computation graphs: it picks a backend, compiles and caches functions, and moves numbers between
// the host and the device. It is the only door through which a panic of the graph library can come; here it becomes an
// error with the name of the function that was being built or run.
package engine

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/gomlx/compute"
	_ "github.com/gomlx/compute/gobackend" // the embedded pure-Go backend, "go"
)

// Engine is an open backend. It is safe for concurrent use.
type Engine struct {
	backend compute.Backend
	kind    string
}

// Open returns the engine that spec names: "go" is the embedded engine, pure Go with SIMD, always there; "auto" takes
// the fastest one found. Specs that start with "xla" ask for an XLA plugin.
func Open(spec string) (*Engine, error) {
	switch {
	case spec == "" || spec == "auto" || spec == "go":
		backend, err := newBackend("go:" + executionMode)
		if err != nil {
			return nil, err
		}
		keepHeadroom()
		return &Engine{backend: backend, kind: "go"}, nil
	case spec == "xla" || strings.HasPrefix(spec, "xla:"):
		return nil, fmt.Errorf("engine %q: this build of resalign carries no XLA support; use --engine go", spec)
	default:
		return nil, fmt.Errorf("engine %q is not known; use auto or go", spec)
	}
}

// executionMode runs the operations of a graph one after the other, each on all threads, in the order that frees
// memory soonest. Running independent operations side by side was no faster on the UNets measured, and its memory use
// depends on timing.
const executionMode = "ops_sequential"

func newBackend(config string) (backend compute.Backend, err error) {
	defer catch("open the "+config+" backend", &err)
	return compute.NewWithConfig(config)
}

// Kind is the engine's short name: "go".
func (e *Engine) Kind() string { return e.kind }

// NativeConvolutions tells whether the backend's own convolution is its fastest. The Go backend's is not: unfolding
// the picture into a matrix product is about 30 times faster there.
func (e *Engine) NativeConvolutions() bool { return e.kind != "go" }

// Description says what the engine is and what it runs on, in one line.
func (e *Engine) Description() string {
	return fmt.Sprintf("%s (%s/%s, %d threads, SIMD %s)", e.backend.Description(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), SIMD())
}

// Close releases the backend and everything that lives on its device.
func (e *Engine) Close() { e.backend.Finalize() }

// SIMD tells whether this program was built with the vector instructions of the Go backend.
func SIMD() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "GOEXPERIMENT" && strings.Contains(s.Value, "simd") {
				return "on"
			}
		}
	}
	if strings.Contains(runtime.Version(), "simd") {
		return "on"
	}
	return "off"
}

// ErrInternal marks failures inside the graph library: a bug, here or there, not bad input.
var ErrInternal = errors.New("internal error")

// catch turns a panic into an error that says what was being done.
func catch(doing string, err *error) {
	r := recover()
	if r == nil {
		return
	}
	if cause, ok := r.(error); ok {
		if runtimeErr, isRuntime := cause.(runtime.Error); isRuntime {
			*err = fmt.Errorf("%w: %s: %w\n%s", ErrInternal, doing, runtimeErr, debug.Stack())
			return
		}
		*err = fmt.Errorf("%s: %s", doing, firstLine(cause.Error()))
		return
	}
	*err = fmt.Errorf("%s: %s", doing, firstLine(fmt.Sprint(r)))
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
