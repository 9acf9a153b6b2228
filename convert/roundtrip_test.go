package convert

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

// models are small models of every family, written by diffusers, and what their single files must be given to be read.
var models = map[string]string{
	"sd1-tiny": "../testdata/golden/tiny-sd",
	"sd1":      "../testdata/references/sd1-full/model",
	"sd2":      "../testdata/references/sd2/model",
	"sdxl":     "../testdata/references/sdxl-small/model",
}

func mustConvert(t *testing.T, in, out string, o Options) *Result {
	t.Helper()
	r, err := Convert(t.Context(), in, out, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// refused converts what must not be converted, and leaves nothing behind.
func refused(t *testing.T, in, out string, o Options, parts ...string) {
	t.Helper()
	_, err := Convert(t.Context(), in, out, o)
	if err == nil {
		t.Errorf("%s was converted", in)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("no %q in the error: %v", part, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is not one sentence: %v", err)
	}
	left, err := os.ReadDir(filepath.Dir(out))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range left {
		if strings.Contains(entry.Name(), "partial") {
			t.Errorf("%s stays behind", entry.Name())
		}
	}
}

// tensorsOf reads the tensors of a diffusers directory under today's names.
func tensorsOf(t *testing.T, dir string) map[string]*weights.Tensor {
	t.Helper()
	m, err := read(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	all := map[string]*weights.Tensor{}
	for folder, tensors := range m.tensors {
		for _, d := range tensors {
			if all[folder+"/"+d.Name], err = d.Read(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

func fileTensors(t *testing.T, path string) map[string]*weights.Tensor {
	t.Helper()
	source, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := weights.ReadAll(source)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*weights.Tensor{}
	for _, tensor := range list {
		all[tensor.Name] = tensor
	}
	return all
}

// sameTensors compares types, shapes and every bit.
func sameTensors(t *testing.T, got, want map[string]*weights.Tensor) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d tensors instead of %d", len(got), len(want))
	}
	for name, w := range want {
		g := got[name]
		if g == nil {
			t.Errorf("%s is missing", name)
			continue
		}
		a, err := g.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		b, err := w.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if g.DType != w.DType || !slices.Equal(g.Shape, w.Shape) || !bytes.Equal(a, b) {
			t.Errorf("%s differs: %s %v and %s %v", name, g.DType, g.Shape, w.DType, w.Shape)
		}
	}
}

func TestThereAndBackAgain(t *testing.T) {
	for name, dir := range models {
		t.Run(name, func(t *testing.T) {
			tmp := t.TempDir()
			file, folder, again := filepath.Join(tmp, "a.safetensors"), filepath.Join(tmp, "b"), filepath.Join(tmp, "c.safetensors")
			first := mustConvert(t, dir, file, Options{})
			want := tensorsOf(t, dir)
			back := mustConvert(t, file, folder, Options{Base: dir})
			sameTensors(t, tensorsOf(t, folder), want)
			if back.Tensors != len(want) || first.Tensors > back.Tensors || first.Bytes != back.Bytes || first.Family != back.Family || first.Prediction != back.Prediction {
				t.Errorf("results disagree: %+v and %+v", first, back)
			}
			mustConvert(t, folder, again, Options{})
			sameTensors(t, fileTensors(t, again), fileTensors(t, file))
			a, b := content(t, file), content(t, again)
			if !bytes.Equal(a, b) {
				t.Error("the same model gave two different files")
			}
			pruned := filepath.Join(tmp, "d.safetensors")
			mustConvert(t, file, pruned, Options{Base: dir})
			if !bytes.Equal(a, content(t, pruned)) {
				t.Error("a single file changed on its way to a single file")
			}
			for _, c := range []string{"tokenizer", "scheduler"} {
				if same, err := sd.HashFolder(filepath.Join(dir, c)); err != nil {
					t.Fatal(err)
				} else if got, err := sd.HashFolder(filepath.Join(folder, c)); err != nil || got != same {
					t.Errorf("%s is not the one of the base (%v)", c, err)
				}
			}
		})
	}
}

func content(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
