package ad

import (
	"fmt"
	"slices"

	"github.com/gomlx/gomlx/core/graph"
)

// broadcastPair brings two nodes to shapes that the backend combines quickly. Repeating along leading or trailing axes
// is fast inside the Go backend's own operations (50 and 23 GB/s measured); in between it falls to scalar loops
// (4 GB/s), and the small operand is written out first.
func broadcastPair(a, b *Value) (x, y *graph.Node) {
	da, db := a.Dims(), b.Dims()
	if slices.Equal(da, db) {
		return a.node, b.node
	}
	if len(da) != len(db) {
		panic(fmt.Errorf("ad: shapes %v and %v do not combine: ranks differ", da, db))
	}
	full := make([]int, len(da))
	for i := range da {
		if da[i] != db[i] && da[i] != 1 && db[i] != 1 {
			panic(fmt.Errorf("ad: shapes %v and %v do not combine", da, db))
		}
		full[i] = max(da[i], db[i])
	}
	return a.tape.fit(a.node, full), b.tape.fit(b.node, full)
}

func (t *Tape) fit(n *graph.Node, full []int) *graph.Node {
	dims := n.Shape().Dimensions
	if slices.Equal(dims, full) || t.native {
		return n
	}
	if _, inner, _ := runs(dims, full); inner {
		return t.broadcast(n, full)
	}
	return n
}

// runs describes how dims must be repeated to become full. Neighbouring axes that are alike are merged; inner says that
// a repeated axis stands between two kept ones, and middle is then [outer, repeat, rest] if that is the whole story.
func runs(dims, full []int) (kinds []bool, inner bool, middle []int) {
	var sizes []int
	for i := range dims {
		if full[i] == 1 {
			continue
		}
		repeated := dims[i] != full[i]
		if len(kinds) > 0 && kinds[len(kinds)-1] == repeated {
			sizes[len(sizes)-1] *= full[i]
			continue
		}
		kinds = append(kinds, repeated)
		sizes = append(sizes, full[i])
	}
	for i, repeated := range kinds {
		if repeated && i > 0 && i < len(kinds)-1 {
			inner = true
		}
	}
	if len(kinds) == 3 && inner {
		middle = sizes
	}
	return kinds, inner, middle
}

// broadcast writes the repeated array out. A product with a column of ones does it at memory speed on the Go backend,
// whose own broadcast copies element by element (2–3 GB/s).
func (t *Tape) broadcast(n *graph.Node, full []int) *graph.Node {
	dims := n.Shape().Dimensions
	if t.native || size(full) < 1<<14 {
		return graph.BroadcastToDims(n, full...)
	}
	kinds, _, middle := runs(dims, full)
	switch {
	case middle != nil: // [A, 1, C] → [A, N, C]
	case len(kinds) == 2 && kinds[0]: // [1, C] → [N, C]
		c := size(dims)
		middle = []int{1, size(full) / c, c}
	case len(kinds) == 2: // [A, 1] → [A, N]: ones on the other side
		a := size(dims)
		row := t.ones(n, 1, size(full)/a)
		product := graph.DotGeneral(graph.Reshape(n, a, 1), []int{1}, nil, row, []int{0}, nil)
		return graph.Reshape(product, full...)
	default:
		return graph.BroadcastToDims(n, full...)
	}
	outer, repeat, rest := middle[0], middle[1], middle[2]
	column := t.ones(n, outer, repeat, 1)
	product := graph.DotGeneral(column, []int{2}, []int{0}, graph.Reshape(n, outer, 1, rest), []int{1}, []int{0})
	return graph.Reshape(product, full...)
}

func (t *Tape) ones(like *graph.Node, dims ...int) *graph.Node {
	key := fmt.Sprintf("ones %s %v", like.DType(), dims)
	return t.memoize(key, func() *graph.Node {
		values := make([]float32, size(dims))
		for i := range values {
			values[i] = 1
		}
		return t.constant(like.DType(), values, dims)
	})
}
