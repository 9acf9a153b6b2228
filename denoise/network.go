// Package denoise is the training problem of diffusion models: a UNet with adapters at some point of parameter space,
// batches of noisy latents, and the derivatives of the denoising loss there. Unlearning and fine-tuning are both made of
// it, and every loss of either is one form: the squared distance of a prediction to a target.
package denoise

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/resalign/resalign/ad"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// Network is a model's UNet with adapters on top: an ordered list of parameters, the UNet's first. It holds no numbers;
// each evaluation is given a Point. It may be used concurrently.
type Network struct {
	Model    *sd.Model
	Adapters []*sd.Adapter

	checkpoints  bool // derivatives compute the UNet's blocks again
	compute      nn.Compute
	architecture string // of all that a program depends on but its inputs: equal ones share compiled programs

	text     *textPart     // nil: batches hold what the text encoder made
	spectral *spectralPart // nil: the weights are what they are
	dropout  float64       // share of the adapters' inputs that batches with a seed drop

	specs  []nn.Spec
	starts []int // where each group of parameters begins: the UNet, then the adapters; and the end

	mu        sync.Mutex
	functions map[string]*engine.Function
	exact     *Network // see Exact; nil: not needed yet
}

// Point is a place in parameter space: one tensor for each parameter of a Network. Points share tensors freely; whoever
// made a tensor frees it.
type Point []*engine.Tensor

// NewNetwork puts adapters on a model's UNet. Its derivatives are computed with gradient checkpointing if
// m.GradientCheckpointing says so now, or [Network.CheckpointGradients] later; it computes in m.Compute, or as
// [Network.ComputeIn] says later.
func NewNetwork(m *sd.Model, adapters ...*sd.Adapter) *Network {
	n := &Network{Model: m, Adapters: adapters, functions: map[string]*engine.Function{}}
	n.starts = []int{0}
	n.specs = m.UNet.Specs()
	for i, a := range adapters {
		n.starts = append(n.starts, len(n.specs))
		for _, s := range a.Specs() {
			s.Name = fmt.Sprintf("adapter%d.%s", i, s.Name)
			n.specs = append(n.specs, s)
		}
	}
	n.starts = append(n.starts, len(n.specs))
	n.architecture = fmt.Sprintf("%t %+v\n", m.XL, m.UNet.Config)
	for _, a := range adapters {
		n.architecture += fmt.Sprintf("%d %g %+v\n", a.Rank, a.Scale, a.Layers)
	}
	if m.GradientCheckpointing {
		n.CheckpointGradients()
	}
	n.ComputeIn(m.Compute)
	return n
}

// CheckpointGradients makes derivatives keep only the inputs of the UNet's blocks in memory and compute the rest again,
// with the same results to rounding. It must come before the first evaluation.
func (n *Network) CheckpointGradients() {
	if !n.checkpoints {
		n.checkpoints = true
		n.architecture += "checkpoints\n"
	}
}

// ComputeIn makes predictions and first derivatives be computed in a type of numbers; second derivatives stay in float32,
// see [Network.Exact]. It must come before the first evaluation.
func (n *Network) ComputeIn(c nn.Compute) {
	if c == nn.BFloat16 && n.compute != c {
		n.compute = c
		n.architecture += "bfloat16\n"
	}
}

// Exact is the network with all its evaluations in float32: itself where they are so anyway. What takes differences of
// gradients, or derivatives of them, needs it: they are smaller than what bfloat16 rounds off. It is freed with n.
func (n *Network) Exact() *Network {
	if n.compute != nn.BFloat16 {
		return n
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.exact == nil {
		n.exact = &Network{
			Model: n.Model, Adapters: n.Adapters, checkpoints: n.checkpoints, text: n.text, spectral: n.spectral, dropout: n.dropout, specs: n.specs, starts: n.starts,
			architecture: strings.Replace(n.architecture, "bfloat16\n", "", 1), functions: map[string]*engine.Function{},
		}
	}
	return n.exact
}

// DropAdapterInputs makes the adapters lose a share of their inputs, from 0 up to but not 1, on batches that hold a seed for
// it: each number is replaced by zero with that probability, and the others are scaled up to make up for it, as PEFT does.
// It must come before the first evaluation.
func (n *Network) DropAdapterInputs(share float64) {
	n.dropout = share
	n.architecture += fmt.Sprintf("dropout %g\n", share)
}

// Free releases the compiled functions.
func (n *Network) Free() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.exact != nil {
		n.exact.Free()
		n.exact = nil
	}
	for _, f := range n.functions {
		f.Free()
	}
	clear(n.functions)
}

// Specs describes the parameters in order. Those of adapter i are called adapteri.MODULE….
func (n *Network) Specs() []nn.Spec { return slices.Clone(n.specs) }

// Point joins the UNet's tensors and those of each adapter.
func (n *Network) Point(groups ...[]*engine.Tensor) (Point, error) {
	if len(groups) != len(n.starts)-1 {
		return nil, fmt.Errorf("denoise: %d groups of parameters for a network of %d", len(groups), len(n.starts)-1)
	}
	var p Point
	for i, g := range groups {
		if len(g) != n.starts[i+1]-n.starts[i] {
			return nil, fmt.Errorf("denoise: group %d has %d parameters, not %d", i, len(g), n.starts[i+1]-n.starts[i])
		}
		p = append(p, g...)
	}
	return p, nil
}

// Selection is a set of parameters to differentiate with respect to: their positions in the list.
type Selection struct {
	name  string
	index []int
}

// Len is the number of selected parameters (tensors).
func (s Selection) Len() int { return len(s.index) }

// Indices are the positions of the selected parameters in the network's list.
func (s Selection) Indices() []int { return slices.Clone(s.index) }

// Of takes the selected tensors out of a point.
func (s Selection) Of(p Point) Vector {
	v := make(Vector, len(s.index))
	for i, k := range s.index {
		v[i] = p[k]
	}
	return v
}

// Put returns the point with the selected tensors replaced.
func (s Selection) Put(p Point, v Vector) Point {
	q := slices.Clone(p)
	for i, k := range s.index {
		q[k] = v[i]
	}
	return q
}

func (s Selection) values(p []*ad.Value) []*ad.Value {
	out := make([]*ad.Value, len(s.index))
	for i, k := range s.index {
		out[i] = p[k]
	}
	return out
}

// Group selects all parameters of a group: 0 is the UNet, i the adapter i−1.
func (n *Network) Group(i int) Selection {
	s := Selection{name: fmt.Sprintf("group %d", i)}
	for k := n.starts[i]; k < n.starts[i+1]; k++ {
		s.index = append(s.index, k)
	}
	return s
}

// And selects what either of two selections without a parameter in common does, in this order.
func (s Selection) And(other Selection) Selection {
	return Selection{name: s.name + " and " + other.name, index: slices.Concat(s.index, other.index)}
}

// Named selects the UNet's parameters whose names contain one of the given parts. A part that matches nothing is an
// error.
func (n *Network) Named(parts ...string) (Selection, error) { return n.NamedOf(0, parts...) }

// NamedOf is Named for the parameters of any group: 0 is the UNet, as in Group.
func (n *Network) NamedOf(group int, parts ...string) (Selection, error) {
	s := Selection{name: "named " + strings.Join(parts, ",")}
	what := "the UNet"
	if group > 0 {
		s.name += fmt.Sprintf(" of group %d", group)
		what = fmt.Sprintf("group %d", group)
	}
	matched := map[string]bool{}
	for k := n.starts[group]; k < n.starts[group+1]; k++ {
		take := false
		for _, part := range parts {
			if strings.Contains(n.specs[k].Name, part) {
				take, matched[part] = true, true
			}
		}
		if take {
			s.index = append(s.index, k)
		}
	}
	for _, part := range parts {
		if !matched[part] {
			return s, fmt.Errorf("%q matches no parameter of %s; parameters are called like %s", part, what, n.specs[n.starts[group]].Name)
		}
	}
	return s, nil
}

// Specs describes the selected parameters of a network.
func (s Selection) Specs(n *Network) []nn.Spec {
	out := make([]nn.Spec, len(s.index))
	for i, k := range s.index {
		out[i] = n.specs[k]
	}
	return out
}

// weights gives the parameters their values in a graph.
func (n *Network) weights(p []*ad.Value) *nn.Weights {
	names := make([]string, n.starts[1])
	for i := range names {
		names[i] = n.specs[i].Name
	}
	w := nn.NewWeights(names, p[:n.starts[1]])
	for i, a := range n.Adapters {
		w = w.WithAdapter(a.Factors(p[n.starts[i+1]:n.starts[i+2]]))
	}
	if n.spectral != nil {
		w = n.spectral.apply(w, p)
	}
	if n.checkpoints {
		w = w.WithCheckpoints()
	}
	return w.ComputeIn(n.compute)
}

// function is a compiled graph, which is the network's until it is freed.
func (n *Network) function(g Graph) (*engine.Function, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f, ok := n.functions[g.Key]; ok {
		return f, nil
	}
	f, err := g.shared(n.Model.Engine)
	if err == nil {
		n.functions[g.Key] = f
	}
	return f, err
}

// predict is the UNet in a graph, on the inputs of Batch.conditions.
func (n *Network) predict(p []*ad.Value, b []*ad.Value) *ad.Value {
	c, rest := sd.Conditions{Timesteps: b[1], Context: b[2]}, b[3:]
	if n.text != nil && b[2].Rank() == 2 { // ids, not embeddings
		c.Context, c.Pooled = n.text.encode(p, b[2])
	}
	if n.Model.XL && c.Pooled == nil {
		c.Pooled, rest = rest[0], rest[1:]
	}
	if n.Model.XL {
		c.TimeIDs, rest = rest[0], rest[1:]
	}
	w := n.weights(p)
	if len(rest) > 0 && rest[0].Rank() == 1 { // a seed; targets have more axes
		w = w.WithDropout(n.dropout, rest[0])
	}
	return n.Model.UNet.Forward(w, b[0], c)
}

// Predict runs the UNet on a batch of noisy latents: noise or velocity, in their shape. The batch needs no target.
func (n *Network) Predict(ctx context.Context, p Point, b *Batch) (*engine.Tensor, error) {
	out, err := n.call(ctx, n.PredictionGraph(), p, nil, b.conditions(n.Model.XL))
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// call compiles (once) and runs a graph at a point, with a list of directions and a batch.
func (n *Network) call(ctx context.Context, g Graph, p Point, v Vector, b []*engine.Tensor) ([]*engine.Tensor, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	f, err := n.function(g)
	if err != nil {
		return nil, err
	}
	return f.Call(slices.Concat(p, Point(v), b)...)
}
