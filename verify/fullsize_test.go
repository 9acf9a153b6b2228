package verify

import (
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/weights"
)

// The numbers are those of scripts/full_size.py, with the seed 7.
func TestSketchIsThatOfTheReferences(t *testing.T) {
	gradient := make([]float32, 100)
	for i := range gradient {
		gradient[i] = float32(i - 50)
	}
	want := [sketchNumbers]float64{162, 95, 0, 95, -140, 118, 112, -102, 100, -52, 48, -16, -112, -80, 72, 28}
	if got := sketch(7, "mid_block.resnets.0.norm1.weight", gradient); got != want {
		t.Errorf("sketch %v, want %v", got, want)
	}
}

// A sketch of a difference has its norm, to what sixteen numbers can tell: a relative standard deviation of √(1/32).
func TestSketchKeepsTheNorm(t *testing.T) {
	const n, tries = 5000, 400
	gradient := random.New(3, "gradient").Normals(n)
	mean, square := 0.0, 0.0
	for seed := range tries {
		s := sketch(uint64(seed), "layer.weight", gradient)
		sum := 0.0
		for _, v := range s {
			sum += v * v
		}
		ratio := sum / math.Pow(norm(gradient), 2)
		mean += ratio / tries
		square += ratio * ratio / tries
	}
	// The squared norm has a variance of 2/16.
	deviation := math.Sqrt(square - mean*mean)
	if math.Abs(mean-1) > 5*math.Sqrt(2.0/16/tries) || deviation < 0.28 || deviation > 0.43 {
		t.Errorf("squared norms of sketches are %.3f ± %.3f of the gradient's, want 1 ± 0.354", mean, deviation)
	}
}

// sketchCase makes a unet-sketches case of the golden unet case, whose gradients are there to the last number. edit may
// change its tensors.
func sketchCase(t *testing.T, edit func(tensors map[string]*weights.Tensor, metadata map[string]string)) string {
	t.Helper()
	var names []string
	dir := copyReference(t, golden, []string{"unet"}, func(_ string, tensors map[string]*weights.Tensor, metadata map[string]string) {
		var norms, sketches []float32
		for _, tensor := range slices.Sorted(maps.Keys(tensors)) {
			name, ok := strings.CutPrefix(tensor, "grad.")
			if !ok {
				continue
			}
			gradient, err := tensors[tensor].Float32()
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
			norms = append(norms, float32(norm(gradient)))
			for _, v := range sketch(5, name, gradient) {
				sketches = append(sketches, float32(v))
			}
		}
		for name := range tensors {
			derivative := strings.HasPrefix(name, "grad.") || strings.HasPrefix(name, "hvp.") || strings.HasPrefix(name, "v.")
			if derivative && !strings.HasPrefix(name, "grad.conv_out.") {
				delete(tensors, name)
			}
		}
		tensors["grad_norms"] = weights.NewFloat32("grad_norms", []int{len(names)}, norms)
		tensors["grad_sketches"] = weights.NewFloat32("grad_sketches", []int{len(names), sketchNumbers}, sketches)
		metadata["sketch_seed"] = "5"
		if edit != nil {
			edit(tensors, metadata)
		}
	})
	list, err := json.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, "unet-tiny-sd.names.json"), string(list))
	writeFile(t, filepath.Join(dir, "index.json"), `{"cases": [{"kind": "unet-sketches", "model": "tiny-sd", "tensors": "unet-tiny-sd.safetensors"}]}`)
	for _, unused := range []string{"vae", "text_encoder", "tokenizer", "model_index.json"} {
		if err := os.RemoveAll(filepath.Join(dir, "tiny-sd", unused)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestSketches(t *testing.T) {
	e := openEngine(t)
	checks, result := groups(t, sketchCase(t, nil), e)
	for _, c := range result.Checks {
		t.Logf("%-20s %8.2g of %5g  %3d tensors", c.Group, c.Error, c.Tolerance, c.Tensors)
	}
	if !result.OK() || len(result.Unchecked) > 0 {
		t.Errorf("OK is %v, unchecked are %v", result.OK(), result.Unchecked)
	}
	for group, tensors := range map[string]int{"pred": 1, "loss": 1, "noisy": 1, "grad": 2, "grad_norms": 208, "grad_sketches": 208, "grad, all as one": 1} {
		if got := checks["unet-sketches "+group].Tensors; got != tensors {
			t.Errorf("%s compares %d tensors instead of %d", group, got, tensors)
		}
	}
}

// Gradients by a few parameters at a time are those by all of them.
func TestSketchesInGroups(t *testing.T) {
	dir := sketchCase(t, nil)
	cases, err := readIndex(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &run{dir: dir, engine: openEngine(t), cases: cases, references: map[string]*reference{}}
	defer r.close()
	if err := (&caseRun{run: r, entry: cases[0]}).compareSketches(t.Context(), 256<<10); err != nil {
		t.Fatal(err)
	}
	if !r.result.OK() || len(r.result.Checks) != 8 {
		t.Errorf("checks %+v", r.result.Checks)
	}
}

func TestGroupsOfParameters(t *testing.T) {
	specs := []nn.Spec{{Shape: []int{10}}, {Shape: []int{2, 10}}, {Shape: []int{100}}, {Shape: []int{5}}, {Shape: []int{25}}, {Shape: []int{1}}}
	want := [][2]int{{0, 2}, {2, 3}, {3, 5}, {5, 6}}
	if got := parameterGroups(specs, 4*30); !slices.Equal(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
	if got := parameterGroups(specs, 4*1000); !slices.Equal(got, [][2]int{{0, 6}}) {
		t.Errorf("groups %v, want one", got)
	}
}

func TestSketchesSeeAWrongGradient(t *testing.T) {
	dir := sketchCase(t, func(tensors map[string]*weights.Tensor, _ map[string]string) {
		s := tensors["grad_sketches"]
		values, err := s.Float32()
		if err != nil {
			t.Fatal(err)
		}
		for i := range values {
			values[i] *= 1.001
		}
		tensors[s.Name] = weights.NewFloat32(s.Name, s.Shape, values)
	})
	_, result := groups(t, dir, openEngine(t))
	var failed []string
	for _, c := range result.Checks {
		if !c.OK() {
			failed = append(failed, c.Group)
		}
	}
	if want := []string{"grad_sketches", "grad, all as one"}; !slices.Equal(failed, want) {
		t.Errorf("failed are %q, want %q", failed, want)
	}
}

func TestBadSketchesAreClearErrors(t *testing.T) {
	e := openEngine(t)
	for name, test := range map[string]struct {
		edit func(tensors map[string]*weights.Tensor, metadata map[string]string)
		want []string
	}{
		"no seed":     {func(_ map[string]*weights.Tensor, m map[string]string) { delete(m, "sketch_seed") }, []string{`"sketch_seed"`, "safetensors"}},
		"wrong seed":  {func(_ map[string]*weights.Tensor, m map[string]string) { m["sketch_seed"] = "-1" }, []string{`"sketch_seed"`, "-1"}},
		"no norms":    {func(x map[string]*weights.Tensor, _ map[string]string) { delete(x, "grad_norms") }, []string{`"grad_norms"`}},
		"no sketches": {func(x map[string]*weights.Tensor, _ map[string]string) { delete(x, "grad_sketches") }, []string{`"grad_sketches"`}},
		"shape": {func(x map[string]*weights.Tensor, _ map[string]string) {
			x["grad_sketches"] = weights.NewFloat32("grad_sketches", []int{208, 3}, make([]float32, 3*208))
		}, []string{`"grad_sketches"`, "[208 3]", "[208 16]"}},
	} {
		_, err := Run(t.Context(), sketchCase(t, test.edit), e, nil)
		if err == nil {
			t.Errorf("%s: no error", name)
			continue
		}
		for _, part := range test.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: error %q does not say %q", name, err, part)
			}
		}
	}
	dir := sketchCase(t, nil)
	if err := os.RemoveAll(filepath.Join(dir, "tiny-sd/unet")); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), dir, e, nil); err == nil || !strings.Contains(err.Error(), filepath.Join("unet", "config.json")) {
		t.Errorf("a model without a UNet gives %v", err)
	}
}
