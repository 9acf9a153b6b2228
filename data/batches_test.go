package data

import (
	"math"
	"reflect"
	"testing"
)

func newBatches(t *testing.T, seed uint64, purpose string, size int, flip bool, sources ...Source) *Batches {
	t.Helper()
	b, err := NewBatches(seed, purpose, size, flip, sources...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBatchesArePureFunctionsOfTheStep(t *testing.T) {
	sources := []Source{{7, 2}, {5, 1}}
	forward := newBatches(t, 3, "fine-tuning", 4, true, sources...)
	var steps [][]Draw
	for s := range 50 {
		steps = append(steps, forward.At(s))
	}
	backward := newBatches(t, 3, "fine-tuning", 4, true, sources...)
	for s := 49; s >= 0; s-- {
		if got := backward.At(s); !reflect.DeepEqual(got, steps[s]) {
			t.Fatalf("step %d is %v when visited backwards, %v forwards", s, got, steps[s])
		}
	}
	single := newBatches(t, 3, "fine-tuning", 1, true, sources...)
	for s := range 50 {
		if got := single.At(s)[0]; got != steps[s/4][s%4] {
			t.Fatalf("draw %d depends on the batch size", s)
		}
	}
	for name, other := range map[string]*Batches{"seed": newBatches(t, 4, "fine-tuning", 4, true, sources...), "purpose": newBatches(t, 3, "retain", 4, true, sources...)} {
		same := 0
		for s := range 50 {
			if reflect.DeepEqual(other.At(s), steps[s]) {
				same++
			}
		}
		if same > 5 {
			t.Errorf("another %s gives %d of 50 batches the same", name, same)
		}
	}
}

func TestEveryEpochShowsEveryPictureOnce(t *testing.T) {
	const size = 11
	b := newBatches(t, 1, "x", 3, false, Source{size, 1})
	var orders [][size]int
	for epoch := range 3 {
		var order [size]int
		seen := map[int]bool{}
		for i := range size {
			number := epoch*size + i
			d := b.At(number / 3)[number%3]
			if d.Flip || d.Source != 0 || seen[d.Index] || d.Index < 0 || d.Index >= size {
				t.Fatalf("draw %d is %+v", number, d)
			}
			seen[d.Index] = true
			order[i] = d.Index
		}
		orders = append(orders, order)
	}
	if orders[0] == orders[1] || orders[1] == orders[2] {
		t.Errorf("epochs repeat their order: %v", orders)
	}
}

func TestSharesAreExact(t *testing.T) {
	for _, weights := range [][]float64{{0.8, 0.2}, {0, 1}, {1, 0}, {3, 2, 5}, {0.5, 0.3, 0, 0.2}, {1, 1e-3}} {
		var sources []Source
		total := 0.0
		for _, w := range weights {
			sources = append(sources, Source{9, w})
			total += w
		}
		b := newBatches(t, 5, "x", 1, false, sources...)
		counts := make([]int, len(weights))
		for n := 1; n <= 3000; n++ {
			d := b.At(n - 1)[0]
			source, turn := b.source(n - 1)
			if source != d.Source || turn != counts[source] {
				t.Fatalf("weights %v: draw %d is turn %d of source %d, counted %d", weights, n, turn, source, counts[source])
			}
			counts[source]++
			for i, w := range weights {
				if want := float64(n) * w / total; math.Abs(float64(counts[i])-want) > float64(len(weights)) {
					t.Fatalf("weights %v: after %d draws source %d had %d, want %.1f", weights, n, i, counts[i], want)
				}
			}
		}
	}
}

func TestFlipsAreFair(t *testing.T) {
	b := newBatches(t, 2, "x", 4, true, Source{10, 1})
	flips, n := 0, 4000
	for s := range n / 4 {
		for _, d := range b.At(s) {
			if d.Flip {
				flips++
			}
		}
	}
	if sigma := math.Sqrt(float64(n)) / 2; math.Abs(float64(flips)-float64(n)/2) > 4*sigma {
		t.Errorf("%d of %d are flipped", flips, n)
	}
}

func TestNewBatchesRefuses(t *testing.T) {
	for name, sources := range map[string][]Source{
		"none": nil, "no weight": {{3, 0}}, "empty": {{0, 1}}, "negative": {{3, -1}, {3, 2}}, "NaN": {{3, math.NaN()}},
		"infinite": {{3, math.Inf(1)}}, "sum": {{3, math.MaxFloat64}, {3, math.MaxFloat64}},
	} {
		if _, err := NewBatches(1, "x", 1, false, sources...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := NewBatches(1, "x", 0, false, Source{1, 1}); err == nil {
		t.Error("batch size 0 is accepted")
	}
}

func TestContaminated(t *testing.T) {
	clean, harmful := &Folder{Pictures: make([]Picture, 6)}, &Folder{Pictures: make([]Picture, 3)}
	m, err := Contaminated(clean, harmful, 0.4)
	if err != nil {
		t.Fatal(err)
	}
	b := newBatches(t, 1, "x", 10, false, m.Sources()...)
	n := 0
	for _, d := range append(b.At(0), b.At(1)...) {
		if m.Folder(d) == harmful {
			n++
		}
		if d.Index >= m.Folder(d).Len() {
			t.Errorf("%+v is outside its folder", d)
		}
	}
	if n != 8 {
		t.Errorf("%d of 20 draws are harmful, want 8", n)
	}
	if m, err := Contaminated(clean, nil, 0); err != nil {
		t.Error(err)
	} else {
		newBatches(t, 1, "x", 1, false, m.Sources()...)
	}
	for _, ratio := range []float64{-0.1, 1.1, math.NaN()} {
		if _, err := Contaminated(clean, harmful, ratio); err == nil {
			t.Errorf("ratio %v is accepted", ratio)
		}
	}
}
