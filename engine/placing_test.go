package engine

import (
	"runtime/debug"
	"slices"
	"testing"
)

func TestPlaceKeepsTheNumbers(t *testing.T) {
	e, err := Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	x := Float32s([]float32{1, 2, 3, 4, 5, 6}, 2, 3)
	defer Free(x)
	for range 2 { // what is there already stays
		if err := e.Place(x); err != nil {
			t.Fatal(err)
		}
	}
	if !x.IsShared() {
		t.Error("the tensor is not where the engine computes")
	}
	if got, err := Values(x); err != nil || !slices.Equal(got, []float32{1, 2, 3, 4, 5, 6}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestSparingIsUndoneByTheLastOfAll(t *testing.T) {
	now := func() int { p := debug.SetGCPercent(100); debug.SetGCPercent(p); return p }
	before := now()
	a := Sparing()
	b := Sparing()
	a()
	a()
	if now() != sparingPercent {
		t.Errorf("at %d %% while one still asks for little", now())
	}
	b()
	if now() != before {
		t.Errorf("at %d %%, not %d %%", now(), before)
	}
}
