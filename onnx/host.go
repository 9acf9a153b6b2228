package onnx

import (
	"math"
	"slices"
)

// strides are the steps between neighbours along each axis.
func strides(dims []int) []int {
	out := make([]int, len(dims))
	step := 1
	for i := len(dims) - 1; i >= 0; i-- {
		out[i] = step
		step *= dims[i]
	}
	return out
}

// checked makes sure that a computed array stays small, before it is made.
func checked(dims []int) int {
	n := 1
	if len(dims) > maxRank {
		fail("makes an array of %d dimensions; at most %d are supported", len(dims), maxRank)
	}
	for _, d := range dims {
		if d < 0 || d > 0 && n > maxHost/d {
			fail("makes an array of shape %v; at most %d elements are computed from shapes and weights", dims, maxHost)
		}
		n *= d
	}
	return n
}

// pick makes an array of the given shape from elements of a: element i of the result is element from(place of i).
func (a *array) pick(dims []int, from func(place []int) int) *array {
	n := checked(dims)
	out := &array{dtype: a.dtype, dims: dims}
	if a.dtype.IsFloat() {
		out.floats = make([]float32, n)
	} else {
		out.ints = make([]int64, n)
	}
	place := make([]int, len(dims))
	for i := range n {
		if a.dtype.IsFloat() {
			out.floats[i] = a.floats[from(place)]
		} else {
			out.ints[i] = a.ints[from(place)]
		}
		for k := len(place) - 1; k >= 0; k-- {
			if place[k]++; place[k] < dims[k] {
				break
			}
			place[k] = 0
		}
	}
	return out
}

// walk makes an array of the given shape from elements of a that are a fixed step apart along each axis.
func (a *array) walk(dims []int, start int, steps []int) *array {
	return a.pick(dims, func(place []int) int {
		at := start
		for k, p := range place {
			at += p * steps[k]
		}
		return at
	})
}

// transposeArray puts axes in an order: axis p of the result is axis order[p] of a.
func transposeArray(a *array, order []int) *array {
	sorted := true
	for p, axis := range order {
		sorted = sorted && p == axis
	}
	if sorted {
		return a
	}
	dims, steps, from := make([]int, len(order)), make([]int, len(order)), strides(a.dims)
	n := 1
	for p, axis := range order {
		dims[p], steps[p] = a.dims[axis], from[axis]
		n *= dims[p]
	}
	// Weights may be larger than what pick makes.
	out := &array{dtype: a.dtype, dims: dims}
	if !a.dtype.IsFloat() {
		return a.walk(dims, 0, steps)
	}
	out.floats = make([]float32, 0, n)
	var copyAxis func(k, at int)
	copyAxis = func(k, at int) {
		if k == len(dims) {
			out.floats = append(out.floats, a.floats[at])
			return
		}
		for range dims[k] {
			copyAxis(k+1, at)
			at += steps[k]
		}
	}
	copyAxis(0, 0)
	return out
}

// broadcastDims combines shapes as numpy does.
func broadcastDims(shapes ...[]int) []int {
	rank := 0
	for _, s := range shapes {
		rank = max(rank, len(s))
	}
	out := slices.Repeat([]int{1}, rank)
	for _, s := range shapes {
		for i, d := range s {
			at := rank - len(s) + i
			if d != 1 && out[at] != 1 && d != out[at] {
				fail("combines arrays of shapes %v, which do not fit", shapes)
			}
			if out[at] == 1 {
				out[at] = d
			}
		}
	}
	return out
}

// broadcastArray repeats axes of one.
func broadcastArray(a *array, dims []int) *array {
	if slices.Equal(a.dims, dims) {
		return a
	}
	steps, from := make([]int, len(dims)), strides(a.dims)
	for i, d := range a.dims {
		at := len(dims) - len(a.dims) + i
		if at < 0 || d != 1 && d != dims[at] {
			fail("cannot repeat an array of shape %v to %v", a.dims, dims)
		}
		if d != 1 {
			steps[at] = from[i]
		}
	}
	return a.walk(dims, 0, steps)
}

// hostBinary computes elementwise, on float32 or whole numbers.
func hostBinary(floats func(x, y float32) float32, ints func(x, y int64) int64) func(n *node, in []*array) []*array {
	return func(_ *node, in []*array) []*array {
		out := in[0]
		for _, b := range in[1:] {
			a := out
			if a.dtype.IsFloat() != b.dtype.IsFloat() {
				fail("combines %s with %s", a.dtype, b.dtype)
			}
			dims := broadcastDims(a.dims, b.dims)
			checked(dims)
			a, b = broadcastArray(a, dims), broadcastArray(b, dims)
			out = &array{dtype: a.dtype, dims: dims}
			for i := range a.floats {
				out.floats = append(out.floats, floats(a.floats[i], b.floats[i]))
			}
			for i := range a.ints {
				out.ints = append(out.ints, ints(a.ints[i], b.ints[i]))
			}
		}
		return []*array{out}
	}
}

// hostCompare computes truths.
func hostCompare(holds func(x, y float64) bool) func(n *node, in []*array) []*array {
	return func(_ *node, in []*array) []*array {
		dims := broadcastDims(in[0].dims, in[1].dims)
		checked(dims)
		a, b := broadcastArray(in[0], dims), broadcastArray(in[1], dims)
		out := &array{dtype: Bool, dims: dims, ints: make([]int64, product(dims))}
		for i := range out.ints {
			if holds(a.float(i), b.float(i)) {
				out.ints[i] = 1
			}
		}
		return []*array{out}
	}
}

func (a *array) float(i int) float64 {
	if a.dtype.IsFloat() {
		return float64(a.floats[i])
	}
	return float64(a.ints[i])
}

// hostUnary computes elementwise.
func hostUnary(floats func(x float32) float32, ints func(x int64) int64) func(n *node, in []*array) []*array {
	return func(_ *node, in []*array) []*array {
		a := in[0]
		out := &array{dtype: a.dtype, dims: a.dims}
		if len(a.ints) > 0 && ints == nil {
			fail("needs numbers of type float, not %s", a.dtype)
		}
		for _, v := range a.floats {
			out.floats = append(out.floats, floats(v))
		}
		for _, v := range a.ints {
			out.ints = append(out.ints, ints(v))
		}
		return []*array{out}
	}
}

func hostWhere(_ *node, in []*array) []*array {
	if in[1].dtype.IsFloat() != in[2].dtype.IsFloat() || in[0].dtype.IsFloat() {
		fail("chooses between %s and %s by %s", in[1].dtype, in[2].dtype, in[0].dtype)
	}
	dims := broadcastDims(in[0].dims, in[1].dims, in[2].dims)
	checked(dims)
	condition, yes, no := broadcastArray(in[0], dims), broadcastArray(in[1], dims), broadcastArray(in[2], dims)
	out := &array{dtype: yes.dtype, dims: dims, floats: slices.Clone(no.floats), ints: slices.Clone(no.ints)}
	for i, c := range condition.ints {
		switch {
		case c == 0:
		case yes.dtype.IsFloat():
			out.floats[i] = yes.floats[i]
		default:
			out.ints[i] = yes.ints[i]
		}
	}
	return []*array{out}
}

// hostCast converts between kinds of numbers.
func hostCast(n *node, in []*array) []*array {
	a, to := in[0], DType(n.int("to", 0))
	if _, ok := dtypes[to]; !ok {
		fail("casts to %s, which is not supported", to)
	}
	out := &array{dtype: to, dims: a.dims}
	for i := range a.size() {
		v := a.float(i)
		switch {
		case to.IsFloat():
			out.floats = append(out.floats, float32(v))
		case to == Bool && v != 0:
			out.ints = append(out.ints, 1)
		case a.dtype.IsFloat():
			if v != v || math.Abs(v) >= 1<<62 {
				fail("casts %v to %s", v, to)
			}
			out.ints = append(out.ints, int64(v))
		default:
			out.ints = append(out.ints, a.ints[i])
		}
	}
	return []*array{out}
}

func hostRange(_ *node, in []*array) []*array {
	for _, a := range in {
		if a.size() != 1 || a.dtype.IsFloat() != in[0].dtype.IsFloat() {
			fail("needs three single numbers of one type")
		}
	}
	start, limit, delta := in[0].float(0), in[1].float(0), in[2].float(0)
	count := math.Ceil((limit - start) / delta)
	if delta == 0 || count != count || count > maxHost {
		fail("counts from %v to %v by %v; at most %d steps are allowed", start, limit, delta, maxHost)
	}
	out := &array{dtype: in[0].dtype, dims: []int{max(0, int(count))}}
	for i := range out.dims[0] {
		if out.dtype.IsFloat() {
			out.floats = append(out.floats, float32(start)+float32(i)*float32(delta))
		} else {
			out.ints = append(out.ints, in[0].ints[0]+int64(i)*in[2].ints[0])
		}
	}
	return []*array{out}
}

func hostConstantOfShape(n *node, in []*array) []*array {
	dims := whole(in, 0, "shape")
	for _, d := range dims {
		if d < 0 {
			fail("has the shape %v", dims)
		}
	}
	fill := floatArray([]float32{0}, 1)
	if a := n.attributes["value"]; a != nil && a.tensor != nil {
		if fill = a.tensor; fill.size() != 1 {
			fail("fills with an array of shape %v instead of a number", fill.dims)
		}
	}
	return []*array{fill.pick(dims, func([]int) int { return 0 })}
}

func hostConstant(n *node, _ []*array) []*array {
	for name, a := range n.attributes {
		switch name {
		case "value":
			if a.tensor != nil {
				return []*array{a.tensor}
			}
		case "value_float":
			return []*array{floatArray([]float32{a.f})}
		case "value_floats":
			return []*array{floatArray(a.floats, len(a.floats))}
		case "value_int":
			return []*array{intArray([]int64{a.i})}
		case "value_ints":
			return []*array{intArray(a.ints, len(a.ints))}
		}
	}
	fail("has no value of a supported kind")
	return nil
}

// hostReduce folds axes of whole numbers and floats.
func hostReduce(start float64, fold func(sum, v float64) float64) func(n *node, in []*array) []*array {
	return func(n *node, in []*array) []*array {
		a := in[0]
		which := reduceAxes(n, in, len(a.dims))
		kept := slices.Clone(a.dims)
		for _, k := range which {
			kept[k] = 1
		}
		steps := strides(kept)
		sums := make([]float64, product(kept))
		for i := range sums {
			sums[i] = start
		}
		from := strides(a.dims)
		for i := range a.size() {
			at := 0
			for k, d := range a.dims {
				if p := i / from[k] % d; kept[k] != 1 {
					at += p * steps[k]
				}
			}
			sums[at] = fold(sums[at], a.float(i))
		}
		out := &array{dtype: a.dtype, dims: reducedDims(n, a.dims, which)}
		for _, v := range sums {
			if a.dtype.IsFloat() {
				out.floats = append(out.floats, float32(v))
			} else {
				if v != v || math.Abs(v) >= 1<<62 {
					fail("gives %v, which is no whole number", v)
				}
				out.ints = append(out.ints, int64(v))
			}
		}
		return []*array{out}
	}
}
