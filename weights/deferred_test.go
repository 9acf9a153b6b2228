package weights

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestWriteDeferredIsWrite(t *testing.T) {
	dir := t.TempDir()
	tensors := []*Tensor{NewFloat32("b", []int{2, 2}, []float32{1, 2, 3, 4}), NewFloat32("a", nil, []float32{5}), NewFloat32("empty", []int{0, 3}, nil)}
	half, err := FromFloat32("h", F16, []int{3}, []float32{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	tensors = append(tensors, half)
	plain, deferred := filepath.Join(dir, "plain"), filepath.Join(dir, "deferred")
	if err := Write(plain, tensors, map[string]string{"k": "v"}); err != nil {
		t.Fatal(err)
	}
	source, err := Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	var list []Deferred
	for _, name := range slices.Backward(source.Names()) {
		d, err := Defer(source, name)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	if err := WriteDeferred(deferred, list, source.Metadata()); err != nil {
		t.Fatal(err)
	}
	a, b := readFile(t, plain), readFile(t, deferred)
	if !bytes.Equal(a, b) {
		t.Errorf("%d and %d bytes differ", len(a), len(b))
	}
	if _, err := Defer(source, "absent"); err == nil {
		t.Error("an absent tensor is described")
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	if err := WriteDeferred(filepath.Join(dir, "closed"), list, nil); !errors.Is(err, errClosed) {
		t.Errorf("a closed source: %v", err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDeferInMemory(t *testing.T) {
	memory, err := NewSource([]*Tensor{NewFloat32("a", []int{1}, []float32{1})}, nil)
	if err != nil {
		t.Fatal(err)
	}
	d, err := Defer(memory, "a")
	if err != nil || d.DType != F32 || !slices.Equal(d.Shape, []int{1}) || d.Bytes() != 4 {
		t.Errorf("%+v (%v)", d, err)
	}
}

func TestWriteDeferredFails(t *testing.T) {
	wrong := errors.New("wrong")
	one := NewFloat32("x", []int{1}, []float32{1})
	for name, test := range map[string]struct {
		list []Deferred
		want string
	}{
		"unreadable": {[]Deferred{{Name: "x", DType: F32, Shape: []int{1}, Read: func() (*Tensor, error) { return nil, wrong }}}, "wrong"},
		"another shape": {
			[]Deferred{{Name: "x", DType: F32, Shape: []int{2}, Read: func() (*Tensor, error) { return one, nil }}},
			`"x" was announced as F32 [2] but is F32 [1]`,
		},
		"another type": {
			[]Deferred{{Name: "x", DType: F16, Shape: []int{1}, Read: func() (*Tensor, error) { return one, nil }}},
			`"x" was announced as F16 [1] but is F32 [1]`,
		},
		"no type":     {[]Deferred{{Name: "x", Shape: []int{1}}}, "no valid type"},
		"bad shape":   {[]Deferred{{Name: "x", DType: F32, Shape: []int{-1}}}, "no valid type"},
		"twice":       {[]Deferred{{Name: "x", DType: F32}, {Name: "x", DType: F32}}, "the name is taken"},
		"huge header": {[]Deferred{{Name: strings.Repeat("x", maxHeader), DType: F32}}, "names and metadata take"},
	} {
		dir := t.TempDir()
		if err := WriteDeferred(filepath.Join(dir, "f"), test.list, nil); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %.200v", name, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v stays behind (%v)", name, left, err)
		}
	}
	err := WriteDeferred(filepath.Join(t.TempDir(), "absent", "f"), nil, nil)
	if err == nil || !strings.Contains(err.Error(), "has room") {
		t.Errorf("an absent folder: %v", err)
	}
}

func TestRearrange(t *testing.T) {
	m := NewFloat32("m", []int{2, 3}, []float32{1, 2, 3, 4, 5, 6})
	values := func(x *Tensor, err error) []float32 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		v, err := x.Float32()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	transposed, err := m.Transposed()
	if got := values(transposed, err); !slices.Equal(got, []float32{1, 4, 2, 5, 3, 6}) || !slices.Equal(transposed.Shape, []int{3, 2}) {
		t.Errorf("transposed: %v %v", got, transposed.Shape)
	}
	if got := values(m.Rows(1, 2)); !slices.Equal(got, []float32{4, 5, 6}) {
		t.Errorf("rows: %v", got)
	}
	if got := values(m.Rows(1, 1)); len(got) != 0 {
		t.Errorf("no rows: %v", got)
	}
	first, err := m.Rows(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := values(Stacked("s", m, first)); !slices.Equal(got, []float32{1, 2, 3, 4, 5, 6, 1, 2, 3}) {
		t.Errorf("stacked: %v", got)
	}
	reshaped, err := m.Reshaped(3, 2, 1)
	if got := values(reshaped, err); !slices.Equal(got, []float32{1, 2, 3, 4, 5, 6}) || !slices.Equal(reshaped.Shape, []int{3, 2, 1}) {
		t.Errorf("reshaped: %v %v", got, reshaped.Shape)
	}
	half, err := m.As(F16)
	if got := values(half, err); !slices.Equal(got, []float32{1, 2, 3, 4, 5, 6}) || half.DType != F16 {
		t.Errorf("as F16: %v", got)
	}
	// Halfway between two numbers and a little more, which float32 cannot hold, must round up.
	for dtype, step := range map[DType]float64{F16: 0x1p-10, BF16: 0x1p-7} {
		for _, sign := range []float64{1, -1} {
			wide, err := fromFloats("w", F64, []int{3}, []float64{sign * (1 + step/2 + 0x1p-40), sign * (1 + step/2), sign * (1 + step/2 - 0x1p-40)})
			if err != nil {
				t.Fatal(err)
			}
			narrow, err := wide.As(dtype)
			if got := values(narrow, err); !slices.Equal(got, []float32{float32(sign * (1 + step)), float32(sign), float32(sign)}) {
				t.Errorf("as %s: %v", dtype, got)
			}
		}
	}
	row := NewFloat32("r", []int{3}, []float32{1, 2, 3})
	for name, err := range map[string]error{
		"rows": second(m.Rows(1, 3)), "negative": second(m.Rows(-1, 1)), "scalar": second(NewFloat32("s", nil, []float32{1}).Rows(0, 0)),
		"vector": second(row.Transposed()), "shape": second(m.Reshaped(4)), "stack": second(Stacked("s", m, row)), "nothing": second(Stacked("s")),
		"types": second(Stacked("s", m, half)), "integer": second(m.As(I32)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second(_ *Tensor, err error) error { return err }
