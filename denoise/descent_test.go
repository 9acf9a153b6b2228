package denoise

import (
	"slices"
	"testing"

	"github.com/resalign/resalign/train"
)

// A step in parts, as XLA takes it, moves to the same bits as one at once, and covers every parameter once.
func TestStepsInParts(t *testing.T) {
	m := loadTiny(t)
	n, p := adapted(t, m, 1)
	b := newBatch(t, m, samples(m, "parts", 1))
	for _, name := range []string{train.AdamW, train.SGD, train.Adafactor} {
		o, err := train.DefaultOptimizer(name, 1e-2)
		if err != nil {
			t.Fatal(err)
		}
		s := n.Group(1)
		var want [][]float64
		for _, limit := range []int{0, 1, 4 << 10} {
			d, err := NewDescent(n, s, o, p)
			if err != nil {
				t.Fatal(err)
			}
			d.partBytes = limit
			parts := d.parts()
			for i, part := range parts {
				if part.From >= part.To || i == 0 && part.From != 0 || i > 0 && part.From != parts[i-1].To || i == len(parts)-1 && part.To != s.Len() {
					t.Fatalf("%d bytes a part: %v", limit, parts)
				}
			}
			if limit == 1 && len(parts) != s.Len() || limit > 1 && (len(parts) < 2 || len(parts) >= s.Len()) {
				t.Errorf("%d bytes a part: %d parts of %d parameters", limit, len(parts), s.Len())
			}
			for range 2 {
				_, g, err := n.Gradient(t.Context(), d.Point(), s, Loss{}, b)
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Step(t.Context(), g, 0.5, 1); err != nil {
					t.Fatal(err)
				}
			}
			got := [][]float64{numbers(t, d.Selected()), numbers(t, d.moments)}
			if want == nil {
				want = got
			}
			for i := range want {
				if !slices.Equal(got[i], want[i]) {
					t.Errorf("%s with %d bytes a part ends elsewhere", name, limit)
				}
			}
			d.Free()
		}
	}
}
