package verify

import (
	"fmt"
	"math"
)

// smallTensor is the part of a group's root mean square norm that a tensor must reach to be measured against its own
// norm. What float32 rounding leaves of a gradient that cancels to nothing is proportional to the terms that cancel, not
// to the result.
const smallTensor = 1e-3

// group collects the comparisons of tensors that belong together.
type group struct {
	name      string
	tolerance float64
	tensors   []comparison
}

type comparison struct {
	name       string
	difference float64 // ‖ours − reference‖
	size       float64 // ‖reference‖
}

func newGroup(name string, tolerance float64) *group { return &group{name: name, tolerance: tolerance} }

// add compares one tensor. Tensors of different lengths are infinitely far apart.
func (g *group) add(name string, got, want []float32) {
	c := comparison{name: name}
	if len(got) != len(want) {
		c.name = fmt.Sprintf("%s (%d numbers instead of %d)", name, len(got), len(want))
		c.difference = math.Inf(1)
	}
	for i, w := range want {
		if i < len(got) {
			d := float64(got[i]) - float64(w)
			c.difference += d * d
		}
		c.size += float64(w) * float64(w)
	}
	c.difference, c.size = math.Sqrt(c.difference), math.Sqrt(c.size)
	g.tensors = append(g.tensors, c)
}

// addNumber compares a single number.
func (g *group) addNumber(name string, got, want float64) {
	g.tensors = append(g.tensors, comparison{name: name, difference: math.Abs(got - want), size: math.Abs(want)})
}

// check sums the group up.
func (g *group) check() Check {
	square := 0.0
	for _, c := range g.tensors {
		square += c.size * c.size
	}
	least := smallTensor * math.Sqrt(square/float64(len(g.tensors)))
	out := Check{Group: g.name, Tolerance: g.tolerance, Tensors: len(g.tensors), Error: -1}
	for _, c := range g.tensors {
		e := 0.0
		if c.difference != 0 {
			e = c.difference / max(c.size, least)
		}
		if math.IsNaN(out.Error) || e <= out.Error { // NaN, once met, stays
			continue
		}
		out.Error, out.Worst = e, c.name
	}
	return out
}
