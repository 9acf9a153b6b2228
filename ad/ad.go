// Package ad is reverse-mode differentiation that is closed under itself: the derivative of every operation is written
// with the same operations, so gradients of gradients, and with them exact Hessian–vector products, hold by
// construction.
//
// It sits on the engine's graph library, which has a gradient of its own. That one cannot differentiate convolutions
// twice, and the graphs it writes transpose large arrays where a small one would do. Here each operation decides how
// it is lowered to the backend at hand: the Go backend multiplies matrices at 130–150 GFLOP/s but transposes at
// 1–3 GB/s and repeats a row at 2 GB/s, so transposes and broadcasts become products with an identity or a column of
// ones (docs/engine.md has the measurements).
//
// Operations panic on shapes that do not fit; the engine's door turns that into an error.
package ad

import (
	"context"
	"fmt"
	"slices"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/gomlx/core/graph"

	"github.com/resalign/resalign/engine"
)

// Tape is one graph under construction.
type Tape struct {
	g *graph.Graph
	lowering
	next int
	memo map[string]*graph.Node // constants and unfolded pictures that several operations share
}

// Value is an array in the graph. Values are immutable.
type Value struct {
	tape    *Tape
	node    *graph.Node
	id      int
	parents []*Value
	// vjp returns the cotangent of parent i given v, the cotangent of this value; nil where it is identically zero.
	vjp func(v *Value, i int) *Value

	// A joint stands for the results of a checkpoint, its children, and has no node. Its derivative is taken for all
	// needed parents together, from the cotangents of the results, nil where there is none; last says that no derivative
	// is taken of the outcome.
	joint   func(cotangents []*Value, needed []bool, last bool) []*Value
	outputs int // of a joint: the number of results
	output  int // of a result: its position
}

// Compile prepares a function written with this package. See engine.Engine.NewFunction.
func Compile(e *engine.Engine, name string, build func(t *Tape, inputs []*Value) []*Value) (*engine.Function, error) {
	return compile(e, name, loweringFor(e), build)
}

// Shared is Compile for a program that others may need as well: there is one for each key, which must name everything
// that the program depends on but its inputs. See engine.Engine.Shared.
func Shared(e *engine.Engine, key, name string, build func(t *Tape, inputs []*Value) []*Value) (*engine.Function, error) {
	return e.Shared(key, func() (*engine.Function, error) { return Compile(e, name, build) })
}

// Measure compiles a function as Compile does, for inputs without numbers, and says what memory a call takes. See
// engine.Engine.Measure.
func Measure(e *engine.Engine, name string, inputs []engine.Input, build func(t *Tape, inputs []*Value) []*Value) (engine.Footprint, error) {
	return e.Measure(name, inputs, loweringFor(e).graph(build))
}

// Time runs a function on zeros and says how many seconds a call takes. See engine.Engine.Time.
func Time(ctx context.Context, e *engine.Engine, name string, inputs []engine.Input, build func(t *Tape, inputs []*Value) []*Value) (float64, error) {
	return e.Time(ctx, name, inputs, loweringFor(e).graph(build))
}

func compile(e *engine.Engine, name string, l lowering, build func(t *Tape, inputs []*Value) []*Value) (*engine.Function, error) {
	return e.NewFunction(name, l.graph(build))
}

// graph writes a function down for a backend.
func (l lowering) graph(build func(t *Tape, inputs []*Value) []*Value) engine.Build {
	return func(g *graph.Graph, nodes []*graph.Node) []*graph.Node {
		t := newTape(g, l)
		inputs := make([]*Value, len(nodes))
		for i, n := range nodes {
			inputs[i] = t.Input(n)
		}
		return Nodes(build(t, inputs))
	}
}

// NewTape starts a graph. native says that the backend's own convolutions and transposes are fast.
func NewTape(g *graph.Graph, native bool) *Tape { return newTape(g, lowering{native: native}) }

func newTape(g *graph.Graph, l lowering) *Tape {
	return &Tape{g: g, lowering: l, memo: map[string]*graph.Node{}}
}

// SlicesInPlace tells whether parts of arrays are read where they lie, and need not be copied first.
func (t *Tape) SlicesInPlace() bool { return t.native }

// lowering says how operations are written for a backend.
type lowering struct {
	native    bool // its own convolutions and transposes are fast
	processor bool // native, but on a processor, where some shapes of convolutions and products are not
}

func loweringFor(e *engine.Engine) lowering {
	return lowering{native: e.NativeConvolutions(), processor: e.Kind() == "xla:cpu"}
}

// Input makes a value of a graph node: a leaf, through which no derivative is taken further.
func (t *Tape) Input(n *graph.Node) *Value { return t.value(n, nil) }

// Node gives the graph node of a value.
func (v *Value) Node() *graph.Node { return v.node }

// Tape gives the graph that a value belongs to.
func (v *Value) Tape() *Tape { return v.tape }

// Dims are the value's dimensions.
func (v *Value) Dims() []int { return v.node.Shape().Dimensions }

// Dim is one dimension; negative axes count from the end.
func (v *Value) Dim(axis int) int {
	d := v.Dims()
	if axis < 0 {
		axis += len(d)
	}
	return d[axis]
}

// Rank is the number of axes.
func (v *Value) Rank() int { return len(v.Dims()) }

// Size is the number of elements.
func (v *Value) Size() int { return size(v.Dims()) }

// StopGradient is the same array, taken as a constant by later derivatives.
func StopGradient(v *Value) *Value { return v.tape.Input(v.node) }

// Constant puts float32 numbers into the graph, in the data type of like.
func (t *Tape) Constant(like *Value, values []float32, dims ...int) *Value {
	return t.Input(t.constant(like.node.DType(), values, dims))
}

func (t *Tape) constant(dtype dtypes.DType, values []float32, dims []int) *graph.Node {
	if size(dims) != len(values) {
		panic(fmt.Errorf("ad: %d values do not fill %v", len(values), dims))
	}
	n := graph.Reshape(graph.Const(t.g, values), dims...)
	return graph.ConvertDType(n, dtype)
}

func (t *Tape) value(n *graph.Node, vjp func(v *Value, i int) *Value, parents ...*Value) *Value {
	v := &Value{tape: t, node: n, id: t.next, parents: parents, vjp: vjp}
	t.next++
	return v
}

func (t *Tape) memoize(key string, make func() *graph.Node) *graph.Node {
	if n, ok := t.memo[key]; ok {
		return n
	}
	n := make()
	t.memo[key] = n
	return n
}

// Gradient returns the derivatives of the scalar y with respect to each of wrt, in their shapes. Where y does not
// depend on a value its derivative is zeros.
func Gradient(y *Value, wrt ...*Value) []*Value {
	return gradient(y, wrt, true)
}

func gradient(y *Value, wrt []*Value, last bool) []*Value {
	if y.Size() != 1 {
		panic(fmt.Errorf("ad: gradient of an array of shape %v; only scalars have one", y.Dims()))
	}
	one := y.tape.Input(graph.Ones(y.tape.g, y.node.Shape()))
	return pullback([]*Value{y}, []*Value{one}, wrt, last)
}

// Pullback returns the products of v, an array of y's shape, with the Jacobian of y with respect to each of wrt.
func Pullback(y, v *Value, wrt ...*Value) []*Value {
	return pullback([]*Value{y}, []*Value{v}, wrt, true)
}

// pullback is Pullback of several results, summed. last says that no derivative will be taken of the outcome, and is no
// more than a hint to the order of computation.
func pullback(ys, vs, wrt []*Value, last bool) []*Value {
	reachable := collect(ys)
	useful := markUseful(reachable, wrt)
	cotangents := map[*Value]*Value{}
	joints := map[*Value][]*Value{}
	add := func(p, contribution *Value) {
		if !slices.Equal(contribution.Dims(), p.Dims()) {
			panic(fmt.Errorf("ad: derivative of shape %v for an array of shape %v", contribution.Dims(), p.Dims()))
		}
		if sum := cotangents[p]; sum != nil {
			contribution = Add(sum, contribution)
		}
		cotangents[p] = contribution
	}
	for i, y := range ys {
		add(y, vs[i])
	}
	for _, n := range slices.Backward(reachable) {
		if !useful[n] {
			continue
		}
		if c := joints[n]; c != nil {
			needed := make([]bool, len(n.parents))
			for i, p := range n.parents {
				needed[i] = useful[p]
			}
			for i, contribution := range n.joint(c, needed, last) {
				if contribution != nil {
					add(n.parents[i], contribution)
				}
			}
			continue
		}
		c := cotangents[n]
		if c == nil || n.vjp == nil {
			continue
		}
		for i, p := range n.parents {
			if !useful[p] {
				continue
			}
			if p.joint != nil {
				if joints[p] == nil {
					joints[p] = make([]*Value, p.outputs)
				}
				joints[p][n.output] = c
				continue
			}
			if contribution := n.vjp(c, i); contribution != nil {
				add(p, contribution)
			}
		}
	}
	out := make([]*Value, len(wrt))
	for i, w := range wrt {
		if out[i] = cotangents[w]; out[i] == nil {
			out[i] = w.tape.Input(graph.ZerosLike(w.node))
		}
	}
	return out
}

// HessianProduct returns H·v for the Hessian H of the scalar y with respect to wrt; v has one array for each of wrt.
// It is the gradient of ⟨∇y, v⟩: exact, at about three times the cost of a gradient.
func HessianProduct(y *Value, wrt, v []*Value) []*Value {
	return Gradient(Dot(gradient(y, wrt, false), v), wrt...)
}

// Dot is the inner product of two lists of arrays, a scalar.
func Dot(a, b []*Value) *Value {
	if len(a) != len(b) || len(a) == 0 {
		panic(fmt.Errorf("ad: inner product of lists of %d and %d arrays", len(a), len(b)))
	}
	var total *Value
	for i := range a {
		s := SumAll(Mul(a[i], b[i]))
		if total == nil {
			total = s
		} else {
			total = Add(total, s)
		}
	}
	return total
}

// collect returns every value that ys depend on, and ys, in order of creation.
func collect(ys []*Value) []*Value {
	seen := map[*Value]bool{}
	var list []*Value
	for _, y := range ys {
		if !seen[y] {
			seen[y] = true
			list = append(list, y)
		}
	}
	for i := 0; i < len(list); i++ {
		for _, p := range list[i].parents {
			if !seen[p] {
				seen[p] = true
				list = append(list, p)
			}
		}
	}
	slices.SortFunc(list, func(a, b *Value) int { return a.id - b.id })
	return list
}

// markUseful tells which of the values, given in order of creation, depend on one of wrt.
func markUseful(values, wrt []*Value) map[*Value]bool {
	useful := make(map[*Value]bool, len(values))
	for _, w := range wrt {
		useful[w] = true
	}
	for _, v := range values {
		if v.vjp == nil && v.joint == nil {
			continue
		}
		for _, p := range v.parents {
			if useful[p] {
				useful[v] = true
				break
			}
		}
	}
	return useful
}

func size(dims []int) int {
	n := 1
	for _, d := range dims {
		n *= d
	}
	return n
}

// Indices puts int32 numbers into the graph.
func (t *Tape) Indices(values []int32, dims ...int) *Value {
	return t.Input(graph.Reshape(graph.Const(t.g, values), dims...))
}

// Nodes gives the graph nodes of several values.
func Nodes(values []*Value) []*graph.Node {
	out := make([]*graph.Node, len(values))
	for i, v := range values {
		out[i] = v.node
	}
	return out
}
