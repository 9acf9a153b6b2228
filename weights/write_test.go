package weights

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// everyType returns one tensor of each dtype with arbitrary bytes, NaNs among them.
func everyType(t *testing.T) []*Tensor {
	t.Helper()
	var tensors []*Tensor
	for d := I64; d.valid(); d++ {
		data := make([]byte, 3*d.Size())
		for i := range data {
			data[i] = byte(0xff - 37*i)
		}
		tensor, err := New("of "+d.String(), d, []int{3, 1}, data)
		if err != nil {
			t.Fatal(err)
		}
		tensors = append(tensors, tensor)
	}
	return tensors
}

func TestWriteThenOpenIsBitExact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	tensors := everyType(t)
	metadata := map[string]string{"format": "pt", `quote " <&> é`: "line\nbreak"}
	if err := Write(path, tensors, metadata); err != nil {
		t.Fatal(err)
	}
	source, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if len(source.Names()) != len(tensors) {
		t.Fatalf("names %q", source.Names())
	}
	for key, want := range metadata {
		if got := source.Metadata()[key]; got != want {
			t.Errorf("metadata %q is %q, not %q", key, got, want)
		}
	}
	for _, want := range tensors {
		got, err := source.Tensor(want.Name)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := got.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if got.DType != want.DType || !slices.Equal(got.Shape, want.Shape) || !bytes.Equal(raw, want.data) {
			t.Errorf("%s %v %x came back as %s %v %x", want.DType, want.Shape, want.data, got.DType, got.Shape, raw)
		}
	}
}

func TestWriteIsDeterministicAndAligned(t *testing.T) {
	dir := t.TempDir()
	tensors := append(everyType(t), NewFloat32("z", []int{1}, []float32{1}), NewFloat32("a", nil, []float32{2}))
	first, second := filepath.Join(dir, "1"), filepath.Join(dir, "2")
	if err := Write(first, tensors, map[string]string{"b": "1", "a": "2"}); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(tensors)
	if err := Write(second, tensors, map[string]string{"a": "2", "b": "1"}); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(first)
	b, _ := os.ReadFile(second)
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("the order of the tensors changed the file")
	}
	if n := binary.LittleEndian.Uint64(a); n%8 != 0 {
		t.Errorf("the header has %d bytes", n)
	}
	source, err := Parse(a, first)
	if err != nil {
		t.Fatal(err)
	}
	for name, e := range source.(*safetensorsFile).entries {
		if e.begin%uint64(e.dtype.Size()) != 0 {
			t.Errorf("%q of %s starts at byte %d", name, e.dtype, e.begin)
		}
	}
}

func TestWriteRefusesBadTensors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "w.safetensors")
	one := NewFloat32("a", []int{1}, []float32{1})
	for name, tensors := range map[string][]*Tensor{
		"two of one name": {one, one},
		"reserved name":   {one.Renamed("__metadata__")},
		"name not UTF-8":  {one.Renamed("\xff")},
		"wrong shape":     {NewFloat32("a", []int{2}, []float32{1})},
		"no dtype":        {{Name: "a"}},
	} {
		if err := Write(path, tensors, nil); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: error %v does not name the file", name, err)
		}
	}
	if err := Write(path, nil, map[string]string{"\xff": ""}); err == nil {
		t.Error("metadata that is not UTF-8 was written")
	}
	if err := Write(filepath.Join(path, "absent", "w"), nil, nil); err == nil {
		t.Error("a file was written into a folder that does not exist")
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("%v stays behind", left)
	}
}

func TestAFailedWriteLeavesWhatWasThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "w.safetensors")
	inside := filepath.Join(path, "file")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(inside, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err := Write(path, []*Tensor{NewFloat32("a", []int{1}, []float32{1})}, nil)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "make sure that the folder exists") {
		t.Errorf("a file in the place of a folder: error %v", err)
	}
	if _, err := os.Stat(inside); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v stays behind", left)
	}
}

func TestFloat64RoundsToNearest(t *testing.T) {
	v := []float64{1 + 0x1p-24, 1 + 0x1.8p-24, -math.Pi, 1e300}
	data := make([]byte, 8*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint64(data[8*i:], math.Float64bits(x))
	}
	tensor, err := New("a", F64, []int{4}, data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tensor.Float32()
	want := []float32{1, 1 + 0x1p-23, -math.Pi, float32(math.Inf(1))}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v became %v, not %v (%v)", v, got, want, err)
	}
}
