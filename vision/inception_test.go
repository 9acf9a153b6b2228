package vision

import (
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/weights"
)

// draws, parameter and drawing are the functions of the same purpose in scripts/check_fid.py: weights and pictures that
// follow from names.
func draws(name string, count int) []float64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	state := h.Sum64()
	out := make([]float64, count)
	for i := range out {
		state += 0x9e3779b97f4a7c15
		z := (state ^ state>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		out[i] = float64((z^z>>31)>>40) / (1 << 24)
	}
	return out
}

func parameter(s nn.Spec) []float32 {
	u := draws(s.Name, s.Size())
	out := make([]float32, len(u))
	scale := math.Sqrt(6 / float64(s.Size()/s.Shape[0]))
	for i, v := range u {
		switch {
		case strings.HasSuffix(s.Name, "running_var"):
			v = 0.75 + 0.5*v
		case strings.HasSuffix(s.Name, "bn.weight"):
			v = 1 + 0.2*(2*v-1)
		case strings.HasPrefix(s.Name, "lin"):
		case len(s.Shape) >= 2:
			v = (2*v - 1) * scale
		default:
			v = 0.1 * (2*v - 1)
		}
		out[i] = float32(v)
	}
	return out
}

func parameters(specs []nn.Spec) map[string][]float32 {
	out := map[string][]float32{}
	for _, s := range specs {
		out[s.Name] = parameter(s)
	}
	return out
}

func drawing(name string, width, height int) *data.RGB {
	p := data.NewRGB(width, height)
	for i, u := range draws(name, len(p.Pix)) {
		x, y, c := i/3%width, i/3/width, i%3
		p.Pix[i] = uint8(x*(1+c) + 2*y + int(u*64))
	}
	return p
}

func openEngine(t testing.TB) *engine.Engine {
	t.Helper()
	spec := os.Getenv("RESALIGN_TEST_ENGINE")
	if spec == "" {
		spec = "go"
	}
	e, err := engine.Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

func reference(t *testing.T, file, name string) []float32 {
	t.Helper()
	source, err := weights.Open(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	tensor, err := source.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	values, err := tensor.Float32()
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// The expected features were computed by pytorch-fid, with the same weights for the whole network.
func TestInceptionAgainstPytorchFID(t *testing.T) {
	net := newInceptionNet()
	inception, err := newInception(openEngine(t), net, parameters(net.stored()))
	if err != nil {
		t.Fatal(err)
	}
	defer inception.Free()
	var pictures []*data.RGB
	for _, size := range [][2]int{{400, 303}, {96, 130}} {
		pictures = append(pictures, drawing(fmt.Sprintf("picture %dx%d", size[0], size[1]), size[0], size[1]))
	}
	got, err := inception.Features(t.Context(), pictures)
	if err != nil {
		t.Fatal(err)
	}
	want := reference(t, "inception.safetensors", "features")
	largest, worst := 0.0, 0.0
	for i, v := range want {
		largest = max(largest, math.Abs(float64(v)))
		worst = max(worst, math.Abs(float64(v-got[i/InceptionFeatures][i%InceptionFeatures])))
	}
	t.Logf("features up to %.3g, largest difference %.2g of it", largest, worst/largest)
	if worst > 2e-5*largest {
		t.Errorf("features differ by up to %.3g, of %.3g", worst, largest)
	}
}

// fileOf writes parameters as a safetensors file.
func fileOf(t *testing.T, specs []nn.Spec, values map[string][]float32) string {
	t.Helper()
	var all []*weights.Tensor
	for _, s := range specs {
		all = append(all, weights.NewFloat32(s.Name, s.Shape, values[s.Name]))
	}
	path := filepath.Join(t.TempDir(), "weights.safetensors")
	if err := weights.Write(path, all, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenInceptionRefusesOtherFiles(t *testing.T) {
	e := openEngine(t)
	other := []nn.Spec{{Name: "conv_in.weight", Shape: []int{2, 2}}}
	path := fileOf(t, other, parameters(other))
	_, err := OpenInception(e, path)
	if err == nil {
		t.Fatal("another network was taken for Inception")
	}
	for _, part := range []string{path, "Inception v3", "Conv2d_1a_3x3.conv.weight", "conv_in.weight", "and 464 more"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in %v", part, err)
		}
	}
}

func BenchmarkInception(b *testing.B) {
	net := newInceptionNet()
	inception, err := newInception(openEngine(b), net, parameters(net.stored()))
	if err != nil {
		b.Fatal(err)
	}
	defer inception.Free()
	var pictures []*data.RGB
	for range inception.Batch() {
		pictures = append(pictures, drawing("benchmark", 512, 512))
	}
	if _, err := inception.Features(b.Context(), pictures); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := inception.Features(b.Context(), pictures); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(pictures)*b.N)/b.Elapsed().Seconds(), "pictures/s")
}
