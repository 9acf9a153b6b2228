package onnx

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
)

// TestHostile gives operators numbers, shapes and texts that no exporter would, and holds that they are computed or refused
// in words: no index out of range, no array that nobody has room for, no hour of work.
func TestHostile(t *testing.T) {
	var cases []struct {
		Name  string
		Model []byte
	}
	if err := json.Unmarshal(readFixture(t, "operators.json"), &cases); err != nil {
		t.Fatal(err)
	}
	e := openEngine(t)
	draw := random.New(11, "hostile")
	ints := []int64{-3, -2, -1, 0, 1, 2, 3, 4, 5, 7, 1000, 1 << 20, 1 << 31, -1 << 31, math.MaxInt64, math.MinInt64}
	floats := []float32{-2, -1, 0, 0.3, 1, 3, 1e30, float32(math.Inf(1)), float32(math.NaN())}
	start, computed := time.Now(), 0
	rounds := 25
	for _, c := range cases {
		for range rounds {
			m, err := Parse(c.Model, "hostile.onnx")
			if err != nil {
				t.Fatal(err)
			}
			n := m.nodes[0]
			for range 1 + draw.IntN(3) {
				disturb(draw, m, n, ints, floats)
			}
			p, err := Compile(e, m, Options{ChannelsLast: draw.IntN(2) == 0})
			if err != nil {
				continue
			}
			inputs := make([]*engine.Tensor, len(m.Inputs))
			for i, port := range m.Inputs {
				dims := slices.Clone(port.Shape)
				size := 1
				for k := range dims {
					if dims[k] = []int{2, 4, 7, 5}[min(k, 3)]; draw.IntN(3) == 0 {
						dims[k] = 1 + draw.IntN(6)
					}
					size *= dims[k]
				}
				inputs[i] = engine.Float32s(make([]float32, size), dims...)
			}
			if _, err := p.Run(inputs...); err == nil {
				computed++
			} else if strings.Contains(err.Error(), "internal error") || strings.Contains(err.Error(), "runtime error") || !strings.HasPrefix(err.Error(), "hostile.onnx: ") {
				t.Errorf("%s: %v", c.Name, err)
			}
			p.Free()
		}
	}
	if computed == 0 || computed == rounds*len(cases) {
		t.Errorf("%d of %d disturbed models were computed; the test shows nothing", computed, rounds*len(cases))
	}
	if took := time.Since(start); took > time.Minute {
		t.Errorf("took %v", took)
	}
}

// disturb changes one thing about an operator.
func disturb(draw *random.Stream, m *Model, n *node, ints []int64, floats []float32) {
	oneInt := func() int64 { return ints[draw.IntN(len(ints))] }
	switch draw.IntN(6) {
	case 0, 1: // a number of an attribute
		for _, a := range n.attributes {
			switch {
			case len(a.ints) > 0:
				a.ints = slices.Clone(a.ints)
				a.ints[draw.IntN(len(a.ints))] = oneInt()
			case len(a.floats) > 0:
				a.floats[0] = floats[draw.IntN(len(floats))]
			default:
				a.i, a.f = oneInt(), floats[draw.IntN(len(floats))]
			}
		}
	case 2: // an attribute that only others have
		names := []string{"axis", "axes", "group", "strides", "pads", "dilations", "kernel_shape", "ceil_mode", "perm", "split", "num_outputs", "keepdims", "start", "to"}
		list := make([]int64, draw.IntN(5))
		for i := range list {
			list[i] = oneInt()
		}
		if n.attributes == nil {
			n.attributes = map[string]*attribute{}
		}
		n.attributes[names[draw.IntN(len(names))]] = &attribute{i: oneInt(), ints: list}
	case 3: // a number of a weight
		for _, w := range m.weights {
			if len(w.ints) > 0 {
				w.ints[draw.IntN(len(w.ints))] = oneInt()
			} else if len(w.floats) > 0 {
				w.floats[draw.IntN(len(w.floats))] = floats[draw.IntN(len(floats))]
			}
		}
	case 4: // the shape of a weight
		for name, w := range m.weights {
			size := 1 + draw.IntN(4)
			other := &array{dtype: w.dtype, dims: [][]int{{size}, {}, {1, size, 1}, {0}, {size, 1, 1, 1}}[draw.IntN(5)]}
			if w.dtype.IsFloat() {
				other.floats = make([]float32, other.size())
			} else {
				other.ints = make([]int64, other.size())
			}
			m.weights[name] = other
		}
	default: // the inputs
		if len(n.inputs) == 0 {
			return
		}
		switch draw.IntN(3) {
		case 0:
			n.inputs = append(slices.Clone(n.inputs), n.inputs[draw.IntN(len(n.inputs))])
		case 1:
			n.inputs = n.inputs[:len(n.inputs)-1]
		default:
			n.inputs = slices.Clone(n.inputs)
			n.inputs[draw.IntN(len(n.inputs))] = m.Inputs[0].Name
		}
	}
}
