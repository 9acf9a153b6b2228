package diffusion

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/resalign/resalign/weights"
)

const goldenFile = "../testdata/golden/schedulers.safetensors"

// goldenTensors reads the reference file; replace may change the values of a tensor.
func goldenTensors(t testing.TB, replace func(name string, values []float32)) func(string) ([]float32, []int, error) {
	t.Helper()
	source, err := weights.Open(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = source.Close() })
	return func(name string) ([]float32, []int, error) {
		tensor, err := source.Tensor(name)
		if err != nil {
			return nil, nil, err
		}
		values, err := numbers(tensor)
		if err != nil {
			return nil, nil, err
		}
		if replace != nil {
			replace(name, values)
		}
		return values, tensor.Shape, nil
	}
}

// numbers reads a tensor of floating-point numbers or of whole ones.
func numbers(tensor *weights.Tensor) ([]float32, error) {
	if tensor.DType != weights.I64 {
		return tensor.Float32()
	}
	data, err := tensor.Bytes()
	values := make([]float32, len(data)/8)
	for i := range values {
		values[i] = float32(int64(binary.LittleEndian.Uint64(data[8*i:])))
	}
	return values, err
}

func TestReference(t *testing.T) {
	checks, err := VerifyGolden(goldenTensors(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	if len(checks) != 3+3*20 {
		t.Errorf("%d checks", len(checks))
	}
	for _, c := range checks {
		if !c.OK() {
			t.Errorf("%s: relative error %.2g, tolerance %.0g", c.Group, c.RelErr, c.Tolerance)
		} else {
			t.Logf("%s: %.2g", c.Group, c.RelErr)
		}
	}
}

func TestReferenceCheckCanFail(t *testing.T) {
	checks, err := VerifyGolden(goldenTensors(t, func(name string, values []float32) {
		if name == "pndm.epsilon.7.x_final" {
			values[0] += 0.01
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		if c.OK() != (c.Group != "pndm.epsilon.7") {
			t.Errorf("%s: relative error %.2g", c.Group, c.RelErr)
		}
	}
	missing := errors.New("not there")
	get := goldenTensors(t, nil)
	_, err = VerifyGolden(func(name string) ([]float32, []int, error) {
		if name == "euler.v_prediction.30.x_init" {
			return nil, nil, missing
		}
		return get(name)
	})
	if !errors.Is(err, missing) || !strings.Contains(err.Error(), "euler.v_prediction.30.x_init") {
		t.Errorf("a missing tensor gives the error %v", err)
	}
}
