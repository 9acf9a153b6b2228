package engine

import (
	"errors"
	"runtime"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/gomlx/gomlx/core/graph"
)

func openGoEngine(t *testing.T) *Engine {
	t.Helper()
	e, err := Open("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func TestPlaceKeepsTheNumbers(t *testing.T) {
	e := openGoEngine(t)
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

// A tensor that was made in place is an input as any other, and one that is given up holds the result.
func TestMade(t *testing.T) {
	e := openGoEngine(t)
	next, err := e.NewFunction("next", func(_ *graph.Graph, in []*graph.Node) []*graph.Node {
		return []*graph.Node{graph.OnePlus(in[0])}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Free()
	for name, on := range map[string]*Engine{"engine": e, "host": nil} {
		var array []float32
		x, err := on.Made(func(values []float32) error {
			copy(values, []float32{1, 2, 3, 4, 5, 6})
			array = values
			return nil
		}, 2, 3)
		if err != nil {
			t.Fatal(err)
		}
		if onDevice := x.IsOnAnyDevice(); onDevice != (on != nil) {
			t.Errorf("%s: on the device: %v", name, onDevice)
		}
		if got, err := Values(x); err != nil || !slices.Equal(got, []float32{1, 2, 3, 4, 5, 6}) || !slices.Equal(Shape(x), []int{2, 3}) {
			t.Errorf("%s: %v %v, %v", name, Shape(x), got, err)
		}
		out, err := next.CallDonating([]bool{true}, x)
		if err != nil {
			t.Fatal(err)
		}
		if err := Read(out[0], func(values []float32) error {
			if !slices.Equal(values, []float32{2, 3, 4, 5, 6, 7}) {
				t.Errorf("%s: the numbers after are %v", name, values)
			}
			if in := &values[0] == &array[0]; in != (on != nil) {
				t.Errorf("%s: the result lies in the input's array: %v", name, in)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		Free(out...)
	}
	wrong := errors.New("wrong")
	if _, err := e.Made(func([]float32) error { return wrong }, 2); !errors.Is(err, wrong) {
		t.Errorf("a failing writer: %v", err)
	}
	if x, err := e.Made(func([]float32) error { return nil }, 0, 3); err != nil || x.Size() != 0 {
		t.Errorf("no numbers: %v, %v", x, err)
	}
}

// Arrays are used again, with whatever they hold.
func TestZerosAreZeros(t *testing.T) {
	e := openGoEngine(t)
	add, err := e.NewFunction("one more", func(_ *graph.Graph, in []*graph.Node) []*graph.Node {
		return []*graph.Node{graph.ReduceAllSum(graph.OnePlus(in[0]))}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer add.Free()
	for range 3 {
		x, err := e.Zeros(64, 64)
		if err != nil {
			t.Fatal(err)
		}
		out, err := add.Call(x)
		if err != nil {
			t.Fatal(err)
		}
		if sum, err := ScalarValue(out[0]); err != nil || sum != 64*64 {
			t.Errorf("%v, %v", sum, err)
		}
		Free(x, out[0])
	}
}

// Reading what was computed leaves no copy behind.
func TestReadingCopiesNothing(t *testing.T) {
	e := openGoEngine(t)
	f, err := e.NewFunction("sum", func(_ *graph.Graph, in []*graph.Node) []*graph.Node {
		return []*graph.Node{graph.Add(in[0], in[1])}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Free()
	a, b := Float32s([]float32{1, 2}, 2), Float32s([]float32{10, 20}, 2)
	defer Free(a, b)
	out, err := f.Call(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Values(out[0]); err != nil || !slices.Equal(got, []float32{11, 22}) {
		t.Errorf("%v, %v", got, err)
	}
	if out[0].HasLocal() {
		t.Error("the tensor holds its numbers twice")
	}
	wrong := errors.New("wrong")
	if err := Read(out[0], func([]float32) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("an error of the reader became %v", err)
	}
	Free(out[0])
	for name, x := range map[string]*Tensor{"freed": out[0], "none": nil, "integers": Int32s([]int32{1}, 1)} {
		if values, err := Values(x); err == nil {
			t.Errorf("%s: %v was read", name, values)
		}
	}
}

func collectorSetting() int {
	p := debug.SetGCPercent(settingOfNobody)
	debug.SetGCPercent(p)
	return p
}

func TestSparingIsUndoneByTheLastOfAll(t *testing.T) {
	before := debug.SetGCPercent(80)
	defer debug.SetGCPercent(before)
	a := Sparing()
	b := Sparing()
	a()
	a()
	if sparing.users != 1 {
		t.Errorf("%d ask for little", sparing.users)
	}
	b()
	if got := collectorSetting(); got != 80 {
		t.Errorf("at %d %%, not 80 %%", got)
	}
}

// What may stand shrinks as more is in use.
func TestSparingFollowsTheHeap(t *testing.T) {
	end := Sparing()
	defer end()
	live := untouched(4 << 30) // the test needs no memory
	runtime.GC()
	for range 200 {
		if p := collectorSetting(); p <= 25 {
			break
		}
		time.Sleep(10 * time.Millisecond) // the collector's clean-up runs by itself
	}
	if p := collectorSetting(); p < 20 || p > 25 {
		t.Errorf("with 4 GiB in use %d %% of garbage may stand", p)
	}
	runtime.KeepAlive(live)
}

func TestGarbagePercent(t *testing.T) {
	for _, c := range []struct {
		live      uint64
		set, want int
	}{
		{0, 100, 100},
		{1 << 20, 100, 100},
		{1 << 30, 100, 100},
		{4 << 30, 100, 25},
		{16 << 30, 100, 6},
		{1 << 40, 100, leastGarbageShare},
		{1 << 30, 400, 100},
		{4 << 30, 20, 20},
		{1 << 40, 2, 2},
		{4 << 30, -1, -1},
		{1 << 20, 400, 400},
	} {
		if got := garbagePercent(c.live, c.set); got < c.want-1 || got > c.want {
			t.Errorf("%d bytes in use, set to %d: %d %%, not %d", c.live, c.set, got, c.want)
		}
	}
}
