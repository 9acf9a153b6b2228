package sd

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/weights"
)

// mixed copies the tiny model with some of the UNet's tensors in half precision.
func mixed(t *testing.T) string {
	dir := copyModel(t, tinySD)
	rewrite(t, filepath.Join(dir, unetFile), func(tensors map[string]*weights.Tensor) {
		for i, name := range slices.Sorted(maps.Keys(tensors)) {
			dtype := []weights.DType{weights.F32, weights.F16, weights.BF16}[i%3]
			values, err := tensors[name].Float32()
			if err != nil {
				t.Fatal(err)
			}
			if tensors[name], err = weights.FromFloat32(name, dtype, tensors[name].Shape, values); err != nil {
				t.Fatal(err)
			}
		}
	})
	return dir
}

func TestSaveKeepsNamesShapesTypesAndFiles(t *testing.T) {
	dir := mixed(t)
	m := load(t, dir)
	target := filepath.Join(t.TempDir(), "new", "saved")

	// Other numbers in one parameter, a convolution, whose layout differs between engine and file.
	at := slices.Index(m.UNetParams.Names(), "conv_in.weight")
	values, err := engine.Values(m.UNetParams.Tensors[at])
	if err != nil {
		t.Fatal(err)
	}
	for i := range values {
		values[i] *= 2 // exact in every type
	}
	tensors := slices.Clone(m.UNetParams.Tensors)
	tensors[at] = engine.Float32s(values, engine.Shape(tensors[at])...)
	if err := m.Save(target, m.UNetParams.WithTensors(tensors)); err != nil {
		t.Fatal(err)
	}

	before, after := readTensors(t, filepath.Join(dir, unetFile)), readTensors(t, filepath.Join(target, unetFile))
	if len(before) != len(after) {
		t.Errorf("%d tensors became %d", len(before), len(after))
	}
	for name, x := range before {
		y := after[name]
		if y == nil || y.DType != x.DType || !slices.Equal(y.Shape, x.Shape) {
			t.Errorf("%s was %s %v and is %v", name, x.DType, x.Shape, y)
			continue
		}
		a, err := x.Float32()
		if err != nil {
			t.Fatal(err)
		}
		b, err := y.Float32()
		if err != nil {
			t.Fatal(err)
		}
		if name == "conv_in.weight" {
			for i := range a {
				a[i] *= 2
			}
		}
		if !slices.Equal(a, b) {
			t.Errorf("%s changed", name)
		}
	}
	files := sameFiles(t, dir, target)
	if files < 10 {
		t.Errorf("only %d files were copied", files)
	}
	load(t, target)
	if entries, err := os.ReadDir(filepath.Dir(target)); err != nil || len(entries) != 1 {
		t.Errorf("beside the saved model there is %v (%v)", entries, err)
	}
}

// Merging each weight when it is written makes the bytes that merging all of them before does.
func TestSaveMergedIsMergeAndSave(t *testing.T) {
	m := load(t, mixed(t))
	layers, err := m.AttentionLayers("attention", Convolution)
	if err != nil {
		t.Fatal(err)
	}
	adapter, err := NewAdapter(layers, 2, 0.5)
	if err != nil {
		t.Fatal(err)
	}
	factors := adapter.Draw(1, 0.1, 0.1)
	defer factors.Free()
	merged, made, err := m.Merge(m.UNetParams, adapter, factors)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Free(made...)
	together, oneByOne, plain := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "c")
	for _, err := range []error{m.Save(together, merged), m.SaveMerged(oneByOne, m.UNetParams, adapter, factors), m.Save(plain, m.UNetParams)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sameFiles(t, together, oneByOne)
	read := func(dir string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, unetFile))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	if !bytes.Equal(read(together), read(oneByOne)) {
		t.Error("the merged weights differ")
	}
	if bytes.Equal(read(together), read(plain)) {
		t.Error("the adapter changes nothing")
	}
	adapter.Layers[0].Path = "elsewhere"
	gone := filepath.Join(t.TempDir(), "gone")
	if err := m.SaveMerged(gone, m.UNetParams, adapter, factors); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("a layer that is not there: %v", err)
	}
	if _, err := os.Stat(gone); err == nil {
		t.Error("a model was left behind")
	}
}

// Weights are read to where the engine computes: their first use takes no copy.
func TestLoadPlacesTheWeights(t *testing.T) {
	m := load(t, tinySD)
	all := slices.Concat(m.UNetParams.Tensors, m.VAEParams.Tensors)
	for _, tower := range m.Towers {
		all = append(all, tower.Params.Tensors...)
	}
	for i, x := range all {
		if m.Engine.Kind() == "go" && (!x.IsOnAnyDevice() || x.HasLocal()) {
			t.Fatalf("tensor %d of %d lies on the host", i, len(all))
		}
	}
}

// sameFiles compares all files but the UNet's weights, both ways.
func sameFiles(t *testing.T, dir, target string) int {
	t.Helper()
	list := func(root string) map[string][]byte {
		out := map[string][]byte{}
		err := fs.WalkDir(os.DirFS(root), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || path == unetFile {
				return err
			}
			out[path], err = os.ReadFile(filepath.Join(root, path))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	a, b := list(dir), list(target)
	if !maps.EqualFunc(a, b, bytes.Equal) {
		t.Errorf("the files %q became %q, or their contents differ", slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
	}
	return len(a)
}

func TestSaveRefusesAFullFolder(t *testing.T) {
	m := load(t, tinySD)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := m.Save(full, m.UNetParams)
	if err == nil || !strings.Contains(err.Error(), full) || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("error %v", err)
	}
	if entries, err := os.ReadDir(full); err != nil || len(entries) != 1 {
		t.Errorf("the folder now holds %v (%v)", entries, err)
	}
	if err := m.Save(t.TempDir(), m.UNetParams); err != nil {
		t.Errorf("an empty folder is refused: %v", err)
	}
}
