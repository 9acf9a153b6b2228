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
