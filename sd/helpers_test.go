package sd

import (
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/weights"
)

const (
	tinySD   = "../testdata/golden/tiny-sd"
	tinySDXL = "../testdata/references/sdxl-small/model"

	unetFile = "unet/diffusion_pytorch_model.safetensors"
	vaeFile  = "vae/diffusion_pytorch_model.safetensors"
)

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func load(t testing.TB, dir string) *Model {
	t.Helper()
	m, err := Load(openEngine(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return m
}

// copyModel copies a pipeline to a folder of its own.
func copyModel(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rewrite changes the tensors of a weights file.
func rewrite(t *testing.T, path string, edit func(tensors map[string]*weights.Tensor)) {
	t.Helper()
	tensors := readTensors(t, path)
	edit(tensors)
	if err := weights.Write(path, slices.Collect(maps.Values(tensors)), nil); err != nil {
		t.Fatal(err)
	}
}

// readTensors reads all of a file into memory, so that the file may be replaced.
func readTensors(t *testing.T, path string) map[string]*weights.Tensor {
	t.Helper()
	source, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	out := map[string]*weights.Tensor{}
	for _, name := range source.Names() {
		view, err := source.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		data, err := view.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		if out[name], err = weights.New(name, view.DType, view.Shape, data); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// relative is ‖got − want‖/‖want‖.
func relative[T float32 | float64](got, want []T) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	var difference, size float64
	for i, w := range want {
		d := float64(got[i]) - float64(w)
		difference += d * d
		size += float64(w) * float64(w)
	}
	return math.Sqrt(difference / size)
}
