package plan

import (
	"fmt"
	"hash/fnv"
	"reflect"
	"sync"
	"testing"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/gobackend"
	"github.com/gomlx/compute/shapes"

	"github.com/resalign/resalign/engine"
)

// witness is the Go backend, but for telling which programs were compiled and how often each was run.
type witness struct {
	compute.Backend

	mu       sync.Mutex
	programs map[string]*program // by signature
	runs     map[string]int
}

// openWitnessed opens the Go engine on a witness.
func openWitnessed(t *testing.T) (*engine.Engine, *witness) {
	t.Helper()
	w := &witness{programs: map[string]*program{}, runs: map[string]int{}}
	compute.Register("go", func(config string) (compute.Backend, error) {
		var err error
		w.Backend, err = gobackend.New(config)
		return w, err
	})
	defer compute.Register("go", gobackend.New)
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	return e, w
}

func (w *witness) Builder(name string) compute.Builder {
	return &witnessedBuilder{w.Backend.Builder(name), w}
}

func (w *witness) BufferFromFlatData(device compute.DeviceNum, flat any, shape shapes.Shape) (compute.Buffer, error) {
	b, err := w.Backend.BufferFromFlatData(device, flat, shape)
	return w.wrapped(b), err
}

func (w *witness) NewSharedBuffer(device compute.DeviceNum, shape shapes.Shape) (compute.Buffer, any, error) {
	b, flat, err := w.Backend.NewSharedBuffer(device, shape)
	return w.wrapped(b), flat, err
}

func (w *witness) wrapped(b compute.Buffer) compute.Buffer { return &witnessedBuffer{b, w} }

// witnessedBuffer says that it is the witness's: the graph library compares.
type witnessedBuffer struct {
	compute.Buffer
	w *witness
}

func (b *witnessedBuffer) Backend() compute.Backend { return b.w }

type witnessedBuilder struct {
	compute.Builder
	w *witness
}

func (b *witnessedBuilder) Compile() (compute.Executable, error) {
	executable, err := b.Builder.Compile()
	if err != nil {
		return nil, err
	}
	p, err := readProgram(b.Name(), reflect.ValueOf(b.Builder))
	if err != nil {
		return nil, err
	}
	key := p.signature()
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.programs[key] = p
	return &witnessedExecutable{executable, key, b.w}, nil
}

type witnessedExecutable struct {
	compute.Executable
	key string
	w   *witness
}

func (e *witnessedExecutable) Execute(inputs []compute.Buffer, donate []bool, device compute.DeviceNum) ([]compute.Buffer, error) {
	e.w.mu.Lock()
	e.w.runs[e.key]++
	e.w.mu.Unlock()
	inner := make([]compute.Buffer, len(inputs))
	for i, b := range inputs {
		inner[i] = b.(*witnessedBuffer).Buffer
	}
	out, err := e.Executable.Execute(inner, donate, device)
	for i, b := range out {
		out[i] = e.w.wrapped(b)
	}
	return out, err
}

// signature names what a program does: the operations in their order, and how large what they make is.
func (p *program) signature() string {
	h := fnv.New64a()
	flops := 0.0
	for _, o := range p.ops {
		fmt.Fprint(h, o.kind, o.inputs, p.values[o.result].bytes, o.flops, " ")
		flops += o.flops
	}
	fmt.Fprint(h, p.inputs, p.outputs)
	return fmt.Sprintf("%d operations on %d inputs, %s in products, %x", len(p.ops), len(p.inputs), FormatFLOPs(flops), h.Sum64())
}
