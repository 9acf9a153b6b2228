package onnx

import (
	"math"
	"slices"

	"github.com/gomlx/compute"
)

// fused is a network made ready for lowering: only what its outputs need, with fewer and larger operators.
type fused struct {
	nodes   []*node
	weights map[string]*array
}

// fuse draws batch normalisations into the convolutions before them, and activations into what they are applied to: the
// engine multiplies, adds the bias and activates in one pass over the memory.
func (m *Model) fuse() fused {
	f := fused{weights: make(map[string]*array, len(m.weights))}
	for name, a := range m.weights {
		f.weights[name] = a
	}
	for _, n := range m.needed() {
		if a := f.constant(n); a != nil {
			f.weights[n.outputs[0]] = a
			continue
		}
		f.nodes = append(f.nodes, n)
	}
	uses := map[string]int{}
	for _, p := range m.Outputs {
		uses[p.Name] += 2 // never drawn into another
	}
	for _, n := range f.nodes {
		for _, name := range n.inputs {
			uses[name]++
		}
	}
	maker := map[string]*node{} // of outputs, where something may be drawn into it
	sigmoids := map[string]*node{}
	gone := map[*node]bool{}
	for i, n := range f.nodes {
		into := func(name string, uses int, used map[string]int) *node {
			if target := maker[name]; target != nil && used[name] == uses && target.activation == compute.ActivationNone {
				return target
			}
			return nil
		}
		first := ""
		if len(n.inputs) > 0 {
			first = n.inputs[0]
		}
		adopt := func(target *node) {
			delete(maker, target.outputs[0])
			target.outputs = n.outputs[:1]
			maker[target.outputs[0]] = target
			gone[n] = true
		}
		switch {
		case !standardDomain(n.domain) || len(n.outputs) != 1:
		case n.op == "BatchNormalization":
			if target := into(first, 1, uses); target != nil && target.op == "Conv" && f.fold(target, n) {
				adopt(target)
				continue
			}
			fallthrough
		case n.op == "Conv" || n.op == "Gemm":
			own := *n
			own.inputs = slices.Clone(n.inputs)
			f.nodes[i] = &own
			maker[own.outputs[0]] = &own
		case n.op == "Relu":
			if target := into(first, 1, uses); target != nil {
				target.activation = compute.ActivationRelu
				adopt(target)
			}
		case n.op == "Sigmoid":
			sigmoids[n.outputs[0]] = n
		case n.op == "Mul" && len(n.inputs) == 2:
			x, s := n.inputs[0], n.inputs[1]
			if sigmoids[s] == nil {
				x, s = s, x
			}
			sigmoid := sigmoids[s]
			if sigmoid == nil || sigmoid.inputs[0] != x || uses[s] != 1 {
				continue
			}
			if target := into(x, 2, uses); target != nil {
				target.activation = compute.ActivationSilu
				adopt(target)
				gone[sigmoid] = true
			}
		}
	}
	f.nodes = slices.DeleteFunc(f.nodes, func(n *node) bool { return gone[n] })
	return f
}

// needed are the operators that the outputs depend on, in their order.
func (m *Model) needed() []*node {
	wanted := map[string]bool{}
	for _, p := range m.Outputs {
		wanted[p.Name] = true
	}
	var out []*node
	for _, n := range slices.Backward(m.nodes) {
		if !slices.ContainsFunc(n.outputs, func(name string) bool { return name != "" && wanted[name] }) {
			continue
		}
		out = append(out, n)
		for _, name := range n.inputs {
			wanted[name] = true
		}
	}
	slices.Reverse(out)
	return out
}

// constant returns what an operator gives that only hands a weight on, or nil.
func (f *fused) constant(n *node) *array {
	if !standardDomain(n.domain) || len(n.outputs) != 1 {
		return nil
	}
	switch {
	case n.op == "Constant" && len(n.inputs) == 0:
		if a := n.attributes["value"]; a != nil {
			return a.tensor
		}
	case n.op == "Identity" && len(n.inputs) == 1:
		return f.weights[n.inputs[0]]
	}
	return nil
}

// normalisation turns the numbers of a batch normalisation into a gain and a shift for each channel; nil if they are not
// weights that fit.
func normalisation(n *node, in []*array) (gain, shift []float32) {
	for _, a := range in[1:] {
		if a == nil || !a.dtype.IsFloat() || a.size() != in[1].size() {
			fail("needs four weights of one length: scale, bias, mean and variance")
		}
	}
	if n.int("training_mode", 0) != 0 || n.int("spatial", 1) == 0 {
		fail("is set up for training, or not by channel; export the model for inference")
	}
	epsilon := float64(n.float("epsilon", 1e-5))
	for i := range in[1].floats {
		g := float64(in[1].floats[i]) / math.Sqrt(float64(in[4].floats[i])+epsilon)
		gain = append(gain, float32(g))
		shift = append(shift, float32(float64(in[2].floats[i])-float64(in[3].floats[i])*g))
	}
	return gain, shift
}

// fold multiplies the gains of a batch normalisation into the kernels before it. It returns false if not all of it are
// weights; the normalisation then stays, or says what is wrong when it is written.
func (f *fused) fold(conv, norm *node) bool {
	if len(norm.inputs) != 5 || len(conv.inputs) < 2 || len(conv.inputs) > 3 || norm.int("training_mode", 0) != 0 || norm.int("spatial", 1) == 0 {
		return false
	}
	in := make([]*array, 5)
	for i, name := range norm.inputs[1:] {
		in[i+1] = f.weights[name]
	}
	kernel := f.weights[conv.inputs[1]]
	if kernel == nil || !kernel.dtype.IsFloat() || len(kernel.dims) == 0 {
		return false
	}
	channels := kernel.dims[0]
	for _, a := range in[1:] {
		if a == nil || !a.dtype.IsFloat() || a.size() != channels || channels == 0 {
			return false
		}
	}
	before := make([]float32, channels)
	if len(conv.inputs) == 3 && conv.inputs[2] != "" {
		bias := f.weights[conv.inputs[2]]
		if bias == nil || !bias.dtype.IsFloat() || bias.size() != channels {
			return false
		}
		before = bias.floats
	}
	gain, shift := normalisation(norm, in)
	each := kernel.size() / channels
	scaled := make([]float32, len(kernel.floats))
	for i, v := range kernel.floats {
		scaled[i] = v * gain[i/each]
	}
	for i, b := range before {
		shift[i] += b * gain[i]
	}
	// A name with a line break is no file's: readers take names as they are, and none writes such.
	name := norm.outputs[0] + "\nfolded"
	f.weights[name+" kernel"] = floatArray(scaled, kernel.dims...)
	f.weights[name+" bias"] = floatArray(shift, channels)
	conv.inputs = []string{conv.inputs[0], name + " kernel", name + " bias"}
	return true
}
