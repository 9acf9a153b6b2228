package ad

import (
	"fmt"
	"math"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/random"
)

func open(t testing.TB) *engine.Engine {
	t.Helper()
	e, err := engine.Open(enginetest.Spec())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func normals(s *random.Stream, dims ...int) *engine.Tensor {
	v := make([]float64, size(dims))
	for i := range v {
		v[i] = s.Normal()
	}
	return engine.Float64s(v, dims...)
}

func float64s(t testing.TB, x *engine.Tensor) []float64 {
	t.Helper()
	var out []float64
	if err := x.ConstFlatData(func(flat any) { out = append(out, flat.([]float64)...) }); err != nil {
		t.Fatal(err)
	}
	return out
}

// lowerings are those of the Go backend, of accelerators, and of XLA on processors.
var lowerings = []lowering{{}, {native: true}, {native: true, processor: true}}

// A weighted sum of squares of the result makes a scalar whose first and second derivatives see every element.
func scalar(y *Value) *Value {
	s := random.New(9, "weights")
	w := make([]float32, y.Size())
	for i := range w {
		w[i] = float32(s.Normal())
	}
	weights := y.tape.Constant(y, w, y.Dims()...)
	return Add(SumAll(Mul(y, weights)), Scale(SumAll(Mul(Mul(y, y), weights)), 0.3))
}

var cases = map[string]struct {
	shapes [][]int
	f      func(in []*Value) *Value
}{
	"add broadcast":      {[][]int{{2, 3, 4}, {2, 1, 4}}, func(in []*Value) *Value { return Add(in[0], in[1]) }},
	"sub broadcast":      {[][]int{{1, 3, 1}, {2, 3, 4}}, func(in []*Value) *Value { return Sub(in[0], in[1]) }},
	"mul broadcast both": {[][]int{{2, 1, 4}, {1, 3, 4}}, func(in []*Value) *Value { return Mul(in[0], in[1]) }},
	"exp log":            {[][]int{{5}}, func(in []*Value) *Value { return Log(AddNumber(Exp(in[0]), 1)) }},
	"reciprocal rsqrt": {[][]int{{5}}, func(in []*Value) *Value {
		positive := AddNumber(Square(in[0]), 0.5)
		return Add(Reciprocal(positive), Rsqrt(positive))
	}},
	"sigmoid erf":  {[][]int{{7}}, func(in []*Value) *Value { return Mul(Sigmoid(in[0]), Erf(in[0])) }},
	"minimum":      {[][]int{{9}}, func(in []*Value) *Value { return Minimum(Square(in[0]), 0.7) }},
	"softmax":      {[][]int{{3, 5}}, func(in []*Value) *Value { return Softmax(in[0]) }},
	"transpose":    {[][]int{{2, 3, 4}}, func(in []*Value) *Value { return Transpose(in[0], 2, 0, 1) }},
	"concat slice": {[][]int{{2, 3}, {2, 4}}, func(in []*Value) *Value { return Slice(Concat(-1, in[0], in[1]), 1, 1, 6) }},
	"pad interior": {[][]int{{2, 3}}, func(in []*Value) *Value { return pad(in[0], 1, 2, 1, 1) }},
	"flip":         {[][]int{{2, 3}}, func(in []*Value) *Value { return Flip(in[0], 1) }},
	"broadcast":    {[][]int{{2, 1, 3}}, func(in []*Value) *Value { return BroadcastTo(in[0], 2, 5, 3) }},
	"matmul NN":    {[][]int{{3, 4}, {4, 2}}, func(in []*Value) *Value { return MatMul(in[0], in[1], false, false) }},
	"matmul NT":    {[][]int{{2, 3, 4}, {2, 2, 4}}, func(in []*Value) *Value { return MatMul(in[0], in[1], false, true) }},
	"matmul TN":    {[][]int{{4, 3}, {4, 2}}, func(in []*Value) *Value { return MatMul(in[0], in[1], true, false) }},
	"matmul TT":    {[][]int{{4, 3}, {2, 4}}, func(in []*Value) *Value { return MatMul(in[0], in[1], true, true) }},
	"conv 3x3":     {[][]int{{2, 4, 5, 3}, {2, 3, 3, 3}}, func(in []*Value) *Value { return Conv2D(in[0], in[1], Same(3, 1)) }},
	"conv stride":  {[][]int{{1, 5, 6, 2}, {3, 3, 3, 2}}, func(in []*Value) *Value { return Conv2D(in[0], in[1], Same(3, 2)) }},
	"conv encoder": {[][]int{{1, 6, 6, 2}, {2, 3, 3, 2}}, func(in []*Value) *Value {
		return Conv2D(in[0], in[1], Window{KH: 3, KW: 3, Stride: 2, Bottom: 1, Right: 1})
	}},
	"conv of many channels":        {[][]int{{1, 2, 3, 2}, {7, 3, 3, 2}}, func(in []*Value) *Value { return Conv2D(in[0], in[1], Same(3, 1)) }},
	"conv of many channels stride": {[][]int{{2, 3, 4, 2}, {9, 3, 3, 2}}, func(in []*Value) *Value { return Conv2D(in[0], in[1], Same(3, 2)) }},
	"conv of many channels encoder": {[][]int{{1, 4, 4, 2}, {6, 3, 3, 2}}, func(in []*Value) *Value {
		return Conv2D(in[0], in[1], Window{KH: 3, KW: 3, Stride: 2, Bottom: 1, Right: 1})
	}},
	"conv 1x1":   {[][]int{{2, 2, 3, 3}, {2, 1, 1, 3}}, func(in []*Value) *Value { return Conv2D(in[0], in[1], Same(1, 1)) }},
	"upsample":   {[][]int{{2, 2, 3, 2}}, func(in []*Value) *Value { return Upsample2(in[0]) }},
	"sum blocks": {[][]int{{1, 4, 6, 2}}, func(in []*Value) *Value { return SumBlocks2(in[0]) }},
	"gather rows": {[][]int{{5, 3}}, func(in []*Value) *Value {
		return GatherRows(in[0], in[0].tape.Indices([]int32{4, 0, 4, 2}, 2, 2))
	}},
}

// First derivatives are held against central differences of the value, second ones against central differences of the
// gradient, all in float64. All lowerings are tried: the Go backend runs those of XLA too, only slowly.
func TestDerivativesOfEveryOperation(t *testing.T) {
	for name, c := range cases {
		for _, l := range lowerings {
			t.Run(fmt.Sprintf("%s/%+v", name, l), func(t *testing.T) { checkDerivatives(t, c.shapes, c.f, l) })
		}
	}
}

func checkDerivatives(t *testing.T, shapes [][]int, f func(in []*Value) *Value, l lowering) {
	e := open(t)
	defer e.Close()
	n := len(shapes)
	fn, err := compile(e, "case", l, func(_ *Tape, in []*Value) []*Value {
		y := scalar(f(in[:n]))
		return append(append([]*Value{y}, Gradient(y, in[:n]...)...), HessianProduct(y, in[:n], in[n:])...)
	})
	if err != nil {
		t.Fatal(err)
	}
	s := random.New(1, "point")
	inputs := make([]*engine.Tensor, 2*n)
	for i := range inputs {
		inputs[i] = normals(s, shapes[i%n]...)
	}
	eval := func(shift float64) (float64, [][]float64, [][]float64) {
		moved := append([]*engine.Tensor(nil), inputs...)
		for i := range n {
			p, v := float64s(t, inputs[i]), float64s(t, inputs[n+i])
			for k := range p {
				p[k] += shift * v[k]
			}
			moved[i] = engine.Float64s(p, shapes[i]...)
		}
		out, err := fn.Call(moved...)
		if err != nil {
			t.Fatal(err)
		}
		value := float64s(t, out[0])[0]
		var g, h [][]float64
		for i := range n {
			g, h = append(g, float64s(t, out[1+i])), append(h, float64s(t, out[1+n+i]))
		}
		return value, g, h
	}
	const step = 1e-4
	_, g, h := eval(0)
	up, gUp, _ := eval(step)
	down, gDown, _ := eval(-step)
	directional := 0.0
	for i := range n {
		for k, v := range float64s(t, inputs[n+i]) {
			directional += g[i][k] * v
		}
	}
	if want := (up - down) / (2 * step); math.Abs(directional-want) > 1e-5*(1+math.Abs(want)) {
		t.Errorf("directional derivative %v, central difference %v", directional, want)
	}
	for i := range n {
		for k := range h[i] {
			want := (gUp[i][k] - gDown[i][k]) / (2 * step)
			if math.Abs(h[i][k]-want) > 1e-5*(1+math.Abs(want)) {
				t.Fatalf("Hessian product of input %d at %d: %v, central difference of the gradient %v", i, k, h[i][k], want)
			}
		}
	}
}

// Sizes at which the faster lowerings of broadcasts and transposes are chosen, held against the backend's own.
func TestLoweringsAgree(t *testing.T) {
	shapes := map[string]struct {
		shapes [][]int
		f      func(in []*Value) *Value
	}{
		"broadcast middle":  {[][]int{{4, 1, 64}}, func(in []*Value) *Value { return BroadcastTo(in[0], 4, 128, 64) }},
		"broadcast leading": {[][]int{{1, 64}}, func(in []*Value) *Value { return BroadcastTo(in[0], 512, 64) }},
		"broadcast last":    {[][]int{{512, 1}}, func(in []*Value) *Value { return BroadcastTo(in[0], 512, 64) }},
		"add middle":        {[][]int{{4, 128, 64}, {4, 1, 64}}, func(in []*Value) *Value { return Add(in[0], in[1]) }},
		"AᵀB tall A":        {[][]int{{512, 16}, {512, 48}}, func(in []*Value) *Value { return MatMul(in[0], in[1], true, false) }},
		"AᵀB wide A":        {[][]int{{512, 300}, {512, 8}}, func(in []*Value) *Value { return MatMul(in[0], in[1], true, false) }},
		"AᵀB broad":         {[][]int{{2, 12, 520}, {2, 12, 3}}, func(in []*Value) *Value { return MatMul(in[0], in[1], true, false) }},
		"ABᵀ broad":         {[][]int{{2, 12, 3}, {2, 520, 3}}, func(in []*Value) *Value { return MatMul(in[0], in[1], false, true) }},
		"AᵀB batched":       {[][]int{{2, 64, 48}, {2, 64, 8}}, func(in []*Value) *Value { return MatMul(in[0], in[1], true, false) }},
	}
	e := open(t)
	defer e.Close()
	for name, c := range shapes {
		t.Run(name, func(t *testing.T) {
			results := make([][]float64, len(lowerings))
			for k, l := range lowerings {
				fn, err := compile(e, name, l, func(_ *Tape, in []*Value) []*Value { return []*Value{c.f(in)} })
				if err != nil {
					t.Fatal(err)
				}
				s := random.New(2, name)
				var in []*engine.Tensor
				for _, d := range c.shapes {
					in = append(in, normals(s, d...))
				}
				out, err := fn.Call(in...)
				if err != nil {
					t.Fatal(err)
				}
				results[k] = float64s(t, out[0])
			}
			for k, l := range lowerings {
				for i, want := range results[0] {
					if math.Abs(results[k][i]-want) > 1e-12*(1+math.Abs(want)) {
						t.Fatalf("%+v: element %d is %v, not %v", l, i, results[k][i], want)
					}
				}
			}
		})
	}
}

func TestStripsOfALargePictureEqualTheWhole(t *testing.T) {
	e := open(t)
	defer e.Close()
	for _, w := range []Window{Same(3, 1), Same(3, 2)} {
		fn, err := compile(e, "strips", lowering{}, func(_ *Tape, in []*Value) []*Value {
			tape := in[0].tape
			whole := Conv2D(in[0], in[1], w)
			return []*Value{whole, tape.Input(tape.convStrips(in[0].node, in[1].node, in[1].DType(), w, 3))}
		})
		if err != nil {
			t.Fatal(err)
		}
		s := random.New(3, "strips")
		out, err := fn.Call(normals(s, 2, 8, 6, 3), normals(s, 4, 3, 3, 3))
		if err != nil {
			t.Fatal(err)
		}
		whole, strips := float64s(t, out[0]), float64s(t, out[1])
		for i := range whole {
			if math.Abs(whole[i]-strips[i]) > 1e-12 {
				t.Fatalf("stride %d, element %d: %v and %v", w.Stride, i, whole[i], strips[i])
			}
		}
	}
}

func TestShapesThatDoNotFitAreErrors(t *testing.T) {
	e := open(t)
	defer e.Close()
	fn, err := Compile(e, "misfit", func(_ *Tape, in []*Value) []*Value { return []*Value{Add(in[0], in[1])} })
	if err != nil {
		t.Fatal(err)
	}
	s := random.New(4, "misfit")
	if _, err := fn.Call(normals(s, 2, 3), normals(s, 2, 4)); err == nil {
		t.Fatal("adding [2 3] and [2 4] gave no error")
	}
}
