package onnx

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/engine"
)

func addModels(f *testing.F) {
	for _, name := range []string{"classifier.onnx", "transformer.onnx"} {
		f.Add(readFixture(f, name))
	}
	var cases []struct{ Model []byte }
	if err := json.Unmarshal(readFixture(f, "operators.json"), &cases); err != nil {
		f.Fatal(err)
	}
	for _, c := range cases {
		f.Add(c.Model)
	}
}

// FuzzParse holds that no file makes the reader panic, or keep more than a multiple of its size.
func FuzzParse(f *testing.F) {
	addModels(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		m, err := Parse(content, "fuzz.onnx")
		if err != nil {
			if !strings.HasPrefix(err.Error(), "fuzz.onnx: ") {
				t.Error(err)
			}
			return
		}
		size := 0
		for _, w := range m.weights {
			size += 4*len(w.floats) + 8*len(w.ints)
		}
		if size > 8*len(content) {
			t.Errorf("%d bytes of weights from a file of %d", size, len(content))
		}
	})
}

// FuzzRun holds that a model that can be read is computed or refused in words.
func FuzzRun(f *testing.F) {
	addModels(f)
	e := openEngine(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		m, err := Parse(content, "fuzz.onnx")
		if err != nil || len(m.Inputs) > 4 {
			return
		}
		p, err := Compile(e, m, Options{})
		if err != nil {
			return
		}
		defer p.Free()
		inputs := make([]*engine.Tensor, len(m.Inputs))
		for i, port := range m.Inputs {
			dims, total := slices.Clone(port.Shape), 1
			for k, d := range dims {
				if d < 0 || d > 32 {
					dims[k] = []int{2, 4, 7, 5, 3, 2, 2, 2}[k]
				}
				total *= dims[k]
			}
			if total > 1<<16 {
				return
			}
			inputs[i] = engine.Float32s(make([]float32, total), dims...)
		}
		if _, err := p.Run(inputs...); err != nil && (strings.Contains(err.Error(), "internal error") || !strings.HasPrefix(err.Error(), "fuzz.onnx: ")) {
			t.Error(err)
		}
	})
}
