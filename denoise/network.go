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

	checkpoints  bool   // derivatives compute the UNet's blocks again
	architecture string // of all that a program depends on but its inputs: equal ones share compiled programs

	text *textPart // nil: batches hold what the text encoder made

	specs  []nn.Spec
	starts []int // where each group of parameters begins: the UNet, then the adapters; and the end

	mu        sync.Mutex
	functions map[string]*engine.Function
}

// Point is a place in parameter space: one tensor for each parameter of a Network. Points share tensors freely; whoever
// made a tensor frees it.
type Point []*engine.Tensor

// NewNetwork puts adapters on a model's UNet. Its derivatives are computed with gradient checkpointing if
// m.GradientCheckpointing says so now, or [Network.CheckpointGradients] later.
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

// Free releases the compiled functions.
func (n *Network) Free() {
	n.mu.Lock()
	defer n.mu.Unlock()
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
func (n *Network) Named(parts ...string) (Selection, error) {
	s := Selection{name: "named " + strings.Join(parts, ",")}
	matched := map[string]bool{}
	for k := range n.starts[1] {
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
			return s, fmt.Errorf("%q matches no parameter of the UNet; parameters are called like %s", part, n.specs[0].Name)
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
	if n.checkpoints {
		w = w.WithCheckpoints()
	}
	return w
}

func (n *Network) function(name string, build func(t *ad.Tape, in []*ad.Value) []*ad.Value) (*engine.Function, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f, ok := n.functions[name]; ok {
		return f, nil
	}
	f, err := ad.Shared(n.Model.Engine, n.architecture+name, name, build)
	if err == nil {
		n.functions[name] = f
	}
	return f, err
}

// predict is the UNet in a graph, on the inputs of Batch.conditions.
func (n *Network) predict(p []*ad.Value, b []*ad.Value) *ad.Value {
	c := sd.Conditions{Timesteps: b[1], Context: b[2]}
	if n.text != nil {
		c.Context = n.text.encode(p, b[2])
	}
	if n.Model.XL {
		c.Pooled, c.TimeIDs = b[3], b[4]
	}
	return n.Model.UNet.Forward(n.weights(p), b[0], c)
}

// Predict runs the UNet on a batch of noisy latents: noise or velocity, in their shape. The batch needs no target.
func (n *Network) Predict(ctx context.Context, p Point, b *Batch) (*engine.Tensor, error) {
	out, err := n.call(ctx, "prediction", p, nil, b.conditions(n.Model.XL), func(p, _, b []*ad.Value) []*ad.Value {
		return []*ad.Value{n.predict(p, b)}
	})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// call compiles (once) and runs a function of a point, a list of directions and a batch.
func (n *Network) call(ctx context.Context, name string, p Point, v Vector, b []*engine.Tensor, build func(p, v, b []*ad.Value) []*ad.Value) ([]*engine.Tensor, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	np, nv := len(p), len(v)
	f, err := n.function(name, func(_ *ad.Tape, in []*ad.Value) []*ad.Value {
		return build(in[:np], in[np:np+nv], in[np+nv:])
	})
	if err != nil {
		return nil, err
	}
	inputs := make([]*engine.Tensor, 0, np+nv+len(b))
	inputs = append(append(append(inputs, p...), v...), b...)
	return f.Call(inputs...)
}
