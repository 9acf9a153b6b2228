package unlearn

import (
	"context"
	"math"
	"slices"
	"testing"

	"github.com/resalign/resalign/random"
)

func randomTokens(s *random.Stream, n, width int) [][]float64 {
	out := make([][]float64, n)
	for i := range out {
		for range width {
			out[i] = append(out[i], s.Normal())
		}
	}
	return out
}

func randomLayers(s *random.Stream, width int, rows ...int) []*matrix {
	var out []*matrix
	for _, r := range rows {
		out = append(out, newMatrix(s.Normals(r*width), r, width))
	}
	return out
}

// inverse is the inverse of a small matrix by elimination, an independent check of the factorisation.
func inverse(a [][]float64) [][]float64 {
	n := len(a)
	work := make([][]float64, n)
	for i := range a {
		work[i] = append(slices.Clone(a[i]), make([]float64, n)...)
		work[i][n+i] = 1
	}
	for c := range n {
		pivot := c
		for r := c; r < n; r++ {
			if math.Abs(work[r][c]) > math.Abs(work[pivot][c]) {
				pivot = r
			}
		}
		work[c], work[pivot] = work[pivot], work[c]
		for k, d := 0, work[c][c]; k < 2*n; k++ {
			work[c][k] /= d
		}
		for r := range n {
			if r != c {
				axpy(-work[r][c], slices.Clone(work[c]), work[r])
			}
		}
	}
	for i := range work {
		work[i] = work[i][n:]
	}
	return work
}

func TestCholesky(t *testing.T) {
	const n = 13
	s := random.New(1, "cholesky")
	m := scaledIdentity(n, 0.1)
	full := make([][]float64, n)
	for i := range full {
		full[i] = make([]float64, n)
		full[i][i] = 0.1
	}
	for _, x := range randomTokens(s, 20, n) {
		m.addOuter(0.7, x)
		for i := range n {
			axpy(0.7*x[i], x, full[i])
		}
	}
	if err := m.factor(); err != nil {
		t.Fatal(err)
	}
	want := randomTokens(s, 1, n)[0]
	b := make([]float64, n)
	for i := range b {
		b[i] = dot(full[i], want)
	}
	m.solve(b)
	for i := range b {
		if math.Abs(b[i]-want[i]) > 1e-12 {
			t.Errorf("x[%d] = %v, not %v", i, b[i], want[i])
		}
	}
	for _, bad := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		if err := scaledIdentity(3, bad).factor(); err == nil {
			t.Errorf("%v·I was factored", bad)
		}
	}
}

// The edit against its equation with an explicit inverse.
func TestClosedFormEditIsTheMinimiser(t *testing.T) {
	const width, lambda, a, b = 9, 0.3, 1.5, 0.4
	s := random.New(2, "edit")
	from, to, keep := randomTokens(s, 4, width), randomTokens(s, 4, width), randomTokens(s, 3, width)
	layers := randomLayers(s, width, 5, 7)
	var pairs []pair
	for i := range from {
		pairs = append(pairs, pair{from[i], to[i]})
	}
	edited, err := closedFormEdit(context.Background(), layers, pairs, keep, lambda, a, b)
	if err != nil {
		t.Fatal(err)
	}
	right, left := make([][]float64, width), make([][]float64, width)
	for i := range width {
		right[i], left[i] = make([]float64, width), make([]float64, width)
		right[i][i], left[i][i] = lambda, lambda
	}
	for i := range width {
		for _, p := range pairs {
			axpy(a*p.from[i], p.from, right[i])
			axpy(a*p.to[i], p.from, left[i])
		}
		for _, k := range keep {
			axpy(b*k[i], k, right[i])
			axpy(b*k[i], k, left[i])
		}
	}
	inv := inverse(right)
	for l, w := range layers {
		for r := range w.rows {
			first := make([]float64, width)
			for i, x := range w.row(r) {
				axpy(x, left[i], first)
			}
			want := make([]float64, width)
			for i, x := range first {
				axpy(x, inv[i], want)
			}
			for i, x := range edited[l].row(r) {
				if math.Abs(x-want[i]) > 1e-6*(1+math.Abs(want[i])) { // rounded to float32
					t.Fatalf("layer %d, row %d: %v, not %v", l, r, x, want[i])
				}
			}
		}
	}
}

// With little weight on the old weights the tokens mean what they shall mean, and what is kept is kept; what lies at right
// angles to all that is forgotten and kept never changes.
func TestEditErasesAndPreserves(t *testing.T) {
	const width = 24
	ctx, s := context.Background(), random.New(4, "erase")
	layers := randomLayers(s, width, 6, 10)
	tokens := randomTokens(s, 8, width)
	for _, x := range tokens { // the last four places belong to nobody
		clear(x[width-4:])
	}
	pairs := []pair{{tokens[0], tokens[3]}, {tokens[1], tokens[4]}}
	keep := tokens[5:]
	edited, err := closedFormEdit(ctx, layers, pairs, keep, 1e-9, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	for what, pairs := range map[string][]pair{"erased": pairs, "preserved": identical(keep)} {
		if off, err := relativeError(ctx, edited, layers, pairs); err != nil || off > 1e-6 {
			t.Errorf("%s tokens are off by %v (%v)", what, off, err)
		}
	}
	for l, w := range edited {
		for r := range w.rows {
			if !slices.Equal(w.row(r)[width-4:], layers[l].row(r)[width-4:]) {
				t.Fatal("what nobody asked for changed")
			}
		}
	}
	same, err := closedFormEdit(ctx, layers, identical(tokens), nil, 0.1, 1, 1)
	if err != nil || relativeChange(same, layers) != 0 {
		t.Errorf("an edit of nothing changes the weights by %v (%v)", relativeChange(same, layers), err)
	}
}

// A derived embedding is where the gradient of its objective vanishes, brings the concept back as far as the edited
// weights can, and is what the next edit takes away.
func TestDerivedEmbeddings(t *testing.T) {
	const width = 12
	ctx, s := context.Background(), random.New(5, "derive")
	e := &editor{width: width, original: randomLayers(s, width, 9, 11)}
	e.recipe.Edit = Edit{Regularization: 1e-6, Lambda: 0.1, EraseScale: 1}
	tokens := randomTokens(s, 2, width)
	pairs := []pair{{tokens[0], tokens[1]}}
	var err error
	if e.current, err = closedFormEdit(ctx, e.original, pairs, nil, 1, 1, 1); err != nil {
		t.Fatal(err)
	}
	derived, err := e.derive(ctx, tokens[:1])
	if err != nil {
		t.Fatal(err)
	}
	c := derived[0]
	gradient := make([]float64, width)
	axpy(e.recipe.Edit.Regularization, c, gradient)
	for l, w := range e.current {
		off := w.apply(c)
		axpy(-1, e.original[l].apply(tokens[0]), off)
		w.addTransposed(off, gradient)
	}
	if norm := math.Sqrt(dot(gradient, gradient)); norm > 1e-9 {
		t.Errorf("the gradient at the derived embedding is %v", norm)
	}
	regenerates := func(layers []*matrix, c []float64) float64 {
		off, whole := 0.0, 0.0
		for l, w := range layers {
			want := e.original[l].apply(tokens[0])
			whole += dot(want, want)
			for i, x := range w.apply(c) {
				off += (x - want[i]) * (x - want[i])
			}
		}
		return ratio(off, whole)
	}
	if plain, found := regenerates(e.current, tokens[0]), regenerates(e.current, c); !(found < plain/2) {
		t.Errorf("the derived embedding is off by %v, the prompt by %v", found, plain)
	}
	next, err := closedFormEdit(ctx, e.current, []pair{{c, tokens[1]}}, nil, 0.1, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if now, before := regenerates(next, c), regenerates(e.current, c); !(now > 2*before) {
		t.Errorf("after the next edit the derived embedding is off by %v, before it by %v", now, before)
	}
}

func TestTokensAreAlignedAtTheLastWord(t *testing.T) {
	tokens := func(first float64) [][]float64 {
		var out [][]float64
		for i := range 6 {
			out = append(out, []float64{first + float64(i)})
		}
		return out
	}
	got := aligned(prompt{tokens: tokens(0), last: 3}, prompt{tokens: tokens(10), last: 1})
	want := []pair{{[]float64{3}, []float64{11}}, {[]float64{4}, []float64{12}}, {[]float64{5}, []float64{13}}}
	if !slices.EqualFunc(got, want, func(a, b pair) bool { return slices.Equal(a.from, b.from) && slices.Equal(a.to, b.to) }) {
		t.Errorf("pairs are %v", got)
	}
}
