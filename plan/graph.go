package plan

import (
	"context"
	"fmt"
	"reflect"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
)

// program is a compiled graph that is never run: its operations in the order in which the Go engine carries them out.
type program struct {
	name    string
	ops     []op
	inputs  []int   // bytes of each input; 0: not used
	outputs []int   // position in values of each output
	values  []value // what operations make and take: inputs, constants and results
	nodes   int     // of the graph, before what no output needs was left out
	load    *work

	shapes   []input
	build    func(t *ad.Tape, in []*ad.Value) []*ad.Value
	measured *int    // bytes that it holds beside its inputs, as the device's compiler says; nil: not known
	seconds  float64 // that a call takes, by the timer; 0: not known
}

// value is an array in a program.
type value struct {
	bytes    int
	uses     int  // by operations, and by being an output
	input    int  // position in the inputs, counted from 1; 0: none
	constant bool // part of the program
}

// op is one operation of a program.
type op struct {
	kind    compute.OpType
	inputs  []int // positions in values
	result  int
	flops   float64 // of a matrix product or a convolution
	half    bool    // matrix product: of factors of half precision
	panels  bool    // matrix product: large enough to be taken panel by panel
	inner   int     // matrix product: the length of the sums
	rows    int     // matrix product: rows of the left matrix
	columns int
}

// compiler compiles graphs on the Go engine's backend, by shapes alone, and keeps the results.
type compiler struct {
	backend  compute.Backend
	native   bool            // graphs are written for an engine whose own convolutions and transposes are fast
	device   *engine.Engine  // which says what a program takes; nil: none
	timer    *engine.Engine  // which says how long one lasts; nil: none
	ctx      context.Context // of timing
	programs map[string]*program
}

func newCompiler(native bool) (*compiler, error) {
	backend, err := compute.NewWithConfig("go:ops_sequential")
	if err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	return &compiler{backend: backend, native: native, programs: map[string]*program{}}, nil
}

// program is a compiled graph; key tells it from all others.
func (c *compiler) program(name, key string, inputs []input, build func(t *ad.Tape, in []*ad.Value) []*ad.Value) (*program, error) {
	if p, ok := c.programs[key]; ok {
		return p, nil
	}
	p, err := c.compile(name, inputs, build)
	if err == nil {
		p.shapes, p.build = inputs, build
		c.programs[key] = p
	}
	return p, err
}

// spy is the backend, but for remembering the builder of the last graph, which the graph library keeps to itself.
type spy struct {
	compute.Backend
	builder compute.Builder
}

func (s *spy) Builder(name string) compute.Builder {
	s.builder = s.Backend.Builder(name)
	return s.builder
}

// input describes an input of a program.
type input struct {
	dims    []int
	integer bool
}

// compile builds a graph from inputs of the given shapes and reads from the compiled result what will be executed when.
func (c *compiler) compile(name string, inputs []input, build func(t *ad.Tape, in []*ad.Value) []*ad.Value) (p *program, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("plan: %s: %v", name, r)
		}
	}()
	backend := &spy{Backend: c.backend}
	built := graph.NewGraph(backend, name)
	defer built.Finalize()
	tape := ad.NewTape(built, c.native)
	in := make([]*ad.Value, len(inputs))
	for i, x := range inputs {
		dtype := dtypes.Float32
		if x.integer {
			dtype = dtypes.Int32
		}
		in[i] = tape.Input(graph.Parameter(built, fmt.Sprintf("input %d", i), shapes.Make(dtype, x.dims...)))
	}
	if err := built.Compile(ad.Nodes(build(tape, in))...); err != nil {
		return nil, fmt.Errorf("plan: %s: %w", name, err)
	}
	return readProgram(name, reflect.ValueOf(backend.builder))
}

// readProgram takes the schedule out of the Go backend's compiled function. Its types are internal to the library, but
// their fields are exported; reflection reads them, and a version that names them otherwise panics here, which the tests
// notice before a user does.
func readProgram(name string, builder reflect.Value) (*program, error) {
	main := builder.Elem().FieldByName("MainFn").Elem()
	compiled := main.FieldByName("Compiled").Elem()
	nodes := main.FieldByName("Nodes")
	uses := compiled.FieldByName("NumUses").Interface().([]int)
	schedule := compiled.FieldByName("Schedule").Interface().([]int)
	p := &program{name: name, values: make([]value, len(uses)), nodes: nodes.Len()}
	index := func(node reflect.Value) int { return int(node.Elem().FieldByName("Index").Int()) }
	shape := func(node reflect.Value) shapes.Shape {
		return node.Elem().FieldByName("Shape").Interface().(shapes.Shape)
	}
	for i := range uses {
		node := nodes.Index(i)
		p.values[i] = value{uses: uses[i], bytes: int(shape(node).ByteSize())}
	}
	parameters := main.FieldByName("Parameters")
	for i := range parameters.Len() {
		k := index(parameters.Index(i))
		bytes := int(shape(parameters.Index(i)).ByteSize())
		p.inputs = append(p.inputs, bytes)
		if k < len(p.values) {
			p.values[k].input = i + 1
		}
	}
	for _, k := range schedule {
		node := nodes.Index(k)
		kind := node.Elem().FieldByName("OpType").Interface().(compute.OpType)
		if kind == compute.OpTypeParameter || uses[k] == 0 {
			continue
		}
		if kind == compute.OpTypeConstant {
			p.values[k].constant = true
			continue
		}
		o := op{kind: kind, result: k}
		list := node.Elem().FieldByName("Inputs")
		for i := range list.Len() {
			o.inputs = append(o.inputs, index(list.Index(i)))
		}
		if kind == compute.OpTypeDotGeneral {
			data := node.Elem().FieldByName("Data").Elem().Elem()
			size := func(field string) int { return int(data.FieldByName(field).Int()) }
			o.inner, o.rows, o.columns = size("ContractingSize"), size("LHSCrossSize"), size("RHSCrossSize")
			o.half = shape(list.Index(0)).DType.IsHalfPrecision()
			o.flops = 2 * float64(size("BatchSize")) * float64(o.inner) * float64(o.rows) * float64(o.columns)
			o.panels = o.flops >= 2*panelSize
		}
		if kind == compute.OpTypeConvGeneral {
			kernel := shape(list.Index(1))
			axes := node.Elem().FieldByName("Data").Elem().Elem().FieldByName("axes")
			o.columns = kernel.Dimensions[axes.FieldByName("KernelOutputChannels").Int()]
			o.inner, o.rows = kernel.Size()/o.columns, shape(node).Size()/o.columns
			o.flops = 2 * float64(o.inner) * float64(o.rows) * float64(o.columns)
		}
		p.ops = append(p.ops, o)
	}
	outputs := compiled.FieldByName("OutputNodes")
	for i := range outputs.Len() {
		p.outputs = append(p.outputs, index(outputs.Index(i)))
	}
	return p, nil
}
