// Package engine runs computation graphs: it picks a backend, compiles and caches functions, and moves numbers between
// the host and the device. It is the only door through which a panic of the graph library can come; here it becomes an
// error with the name of the function that was being built or run.
package engine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/gomlx/compute"
	_ "github.com/gomlx/compute/gobackend" // the embedded pure-Go backend, "go"

	"github.com/resalign/resalign/engine/plugins"
)

// Engine is an open backend. It is safe for concurrent use.
type Engine struct {
	backend     compute.Backend
	kind        string
	name        string
	description string
	reason      string
	shelf       shelf
	trouble     *trouble
}

// Open returns the engine that spec names:
//
//	go                 the embedded engine, pure Go with SIMD, always there
//	xla                the first XLA plugin found that works (see plugins.Search)
//	xla:PATH           the XLA plugin in the file PATH
//	auto, or nothing   the first plugin found that works, but no plugin for processors unless plugins.Variable names it;
//	                   the embedded engine where there is none. Reason says why
//
// Plugins for processors are not taken unasked: they compile for half a minute before a first step, of small models are
// hardly faster then (docs/performance.md), and what a run would gain depends on its length.
//
// All but go may end in ",tf32": NVIDIA GPUs then round the factors of products and convolutions to 10 bits, which is
// faster.
func Open(spec string) (*Engine, error) {
	name, tf32 := strings.CutSuffix(spec, ",tf32")
	path, isFile := strings.CutPrefix(name, "xla:")
	switch {
	case name == "go" && !tf32:
		return openGo()
	case name == "" || name == "auto":
		return openAuto(tf32)
	case name == "xla":
		e, err := openXLA(plugins.Search(), tf32, true)
		if err != nil {
			return nil, fmt.Errorf("engine %s: %w", spec, err)
		}
		return e, nil
	case isFile:
		e, err := openXLAFile(path, tf32)
		if err != nil {
			return nil, fmt.Errorf("engine %s: %w", name, err)
		}
		e.reason = "chosen by its path"
		return e, nil
	default:
		return nil, fmt.Errorf("engine %q is not known; use auto, go, xla or xla:/path/to/plugin.so", spec)
	}
}

func openGo() (*Engine, error) {
	backend, err := newBackend("go:" + executionMode)
	if err != nil {
		return nil, err
	}
	keepHeadroom()
	return &Engine{
		backend: backend, kind: "go", name: "go", reason: "chosen by its name",
		description: fmt.Sprintf("%s (%s/%s, %d threads, SIMD %s)", backend.Description(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0), SIMD()),
	}, nil
}

func openAuto(tf32 bool) (*Engine, error) {
	why := "this build has no other"
	if HasXLA {
		e, err := openXLA(plugins.Search(), tf32, os.Getenv(plugins.Variable) != "")
		if err == nil {
			return e, nil
		}
		why = err.Error()
	}
	e, err := openGo()
	if err != nil {
		return nil, err
	}
	e.reason = why
	return e, nil
}

var errNoXLA = errors.New("this build of resalign has no XLA, which computes on GPUs; build one that has with `make xla` (Linux, with a C compiler), or use --engine go")

// openXLA opens the first plugin that works; those for processors only if that is wanted.
func openXLA(places []plugins.Place, tf32, processors bool) (*Engine, error) {
	if !HasXLA {
		return nil, errNoXLA
	}
	var passedOver []string
	for _, place := range places {
		for _, path := range place.Found {
			if plugins.Platform(path) == "cpu" && !processors {
				passedOver = append(passedOver, fmt.Sprintf("XLA plugin %s is for processors, and is taken only if asked for (--engine xla): it compiles for long before it is faster", path))
				continue
			}
			e, err := openXLAFile(path, tf32)
			if err != nil {
				passedOver = append(passedOver, err.Error())
				continue
			}
			e.reason = "first working plugin, from " + place.What
			if len(passedOver) > 0 {
				e.reason += "; passed over: " + strings.Join(passedOver, "; ")
			}
			return e, nil
		}
	}
	if len(passedOver) > 0 {
		return nil, errors.New(strings.Join(passedOver, "; "))
	}
	where := make([]string, len(places))
	for i, place := range places {
		where[i] = place.Path
	}
	return nil, fmt.Errorf("no XLA plugin was found in %s; install one with `resalign doctor --install-xla cpu` (or cuda13), or name one in %s", strings.Join(where, " or "), plugins.Variable)
}

func openXLAFile(path string, tf32 bool) (*Engine, error) {
	if !HasXLA {
		return nil, errNoXLA
	}
	if err := plugins.Check(path); err != nil {
		return nil, err
	}
	t := &trouble{}
	backend, description, err := openPlugin(path, tf32, t)
	if err != nil {
		return nil, err
	}
	return &Engine{backend: backend, kind: "xla:" + plugins.Platform(path), name: "xla:" + path, description: description, trouble: t}, nil
}

// executionMode runs the operations of a graph one after the other, each on all threads, in the order that frees
// memory soonest. Running independent operations side by side was no faster on the UNets measured, and its memory use
// depends on timing.
const executionMode = "ops_sequential"

func newBackend(config string) (backend compute.Backend, err error) {
	defer catch("open the "+config+" backend", &err)
	return compute.NewWithConfig(config)
}

// Kind is the engine's short name: "go", or "xla:" and the kind of device, such as "xla:cpu" and "xla:cuda".
func (e *Engine) Kind() string { return e.kind }

// Name is what to give Open for this engine: "go", or "xla:" and the plugin's file.
func (e *Engine) Name() string { return e.name }

// NativeConvolutions tells whether the backend's own convolution is its fastest. The Go backend's is not: unfolding
// the picture into a matrix product is about 30 times faster there.
func (e *Engine) NativeConvolutions() bool { return e.kind != "go" }

// Description says what the engine is and what it runs on, in one line.
func (e *Engine) Description() string { return e.description }

// Reason says why Open took this engine, and which plugins it passed over and why.
func (e *Engine) Reason() string { return e.reason }

// Close releases the backend and everything that lives on its device.
func (e *Engine) Close() {
	e.shelf.free()
	e.backend.Finalize()
}

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
