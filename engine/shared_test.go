package engine

import (
	"fmt"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
)

// A shared program is prepared once, serves users of one key only, outlives them, and goes when too many are idle.
func TestShared(t *testing.T) {
	e, err := Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	prepared := 0
	take := func(key string, factor float64) *Function {
		t.Helper()
		f, err := e.Shared(key, func() (*Function, error) {
			prepared++
			return e.NewFunction(key, func(_ *graph.Graph, in []*graph.Node) []*graph.Node {
				return []*graph.Node{graph.MulScalar(in[0], factor)}
			})
		})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	value := func(f *Function) float64 {
		t.Helper()
		x := Scalar(3)
		defer Free(x)
		out, err := f.Call(x)
		if err != nil {
			t.Fatal(err)
		}
		defer Free(out...)
		v, err := ScalarValue(out[0])
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	a, b, other := take("double", 2), take("double", 2), take("triple", 3)
	if prepared != 2 || a != b || value(a) != 6 || value(other) != 9 {
		t.Fatalf("%d programs were prepared", prepared)
	}
	a.Free()
	if value(b) != 6 {
		t.Error("a program that is still in use does not work")
	}
	b.Free()
	if again := take("double", 2); prepared != 2 || value(again) != 6 {
		t.Error("an idle program was prepared again")
	} else {
		again.Free()
	}
	for i := range maxIdle {
		take(fmt.Sprint(i), float64(i)).Free()
	}
	take("double", 2).Free()
	if prepared != 2+maxIdle+1 {
		t.Errorf("%d programs were prepared; the one left longest should have gone", prepared)
	}
	if value(other) != 9 {
		t.Error("a program in use went with the idle ones")
	}
	other.Free()
	if _, err := e.Shared("broken", func() (*Function, error) { return nil, fmt.Errorf("no") }); err == nil {
		t.Error("a program that cannot be prepared is no error")
	}
}
