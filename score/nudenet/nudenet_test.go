package nudenet

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
)

// A small network of the same architecture with random weights, and what the public package finds with it
// (scripts/make_onnx.py).
const (
	fixtures = "../../testdata/onnx"
	network  = fixtures + "/yolo.onnx"
)

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func openSmall(t testing.TB, o Options) *Detector {
	d, err := OpenWith(openEngine(t), network, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Free)
	return d
}

// pattern is the picture that the script draws.
func pattern(width, height int) *data.RGB {
	p := data.NewRGB(width, height)
	for y := range height {
		for x := range width {
			pixel := p.Pix[3*(y*width+x):]
			pixel[0], pixel[1], pixel[2] = uint8(x*7+y*3), uint8(x*y), uint8(x*x/3+y*11)
		}
	}
	return p
}

type expectation struct {
	Width, Height int
	Blob          string
	Detections    []detection
}

func expected(t testing.TB) []expectation {
	content, err := os.ReadFile(fixtures + "/detections.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []expectation
	if err := json.Unmarshal(content, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestPublicPackage(t *testing.T) {
	d := openSmall(t, Options{})
	boxes := 0
	for _, want := range expected(t) {
		picture := pattern(want.Width, want.Height)
		pixels := make([]float32, 3*64*64)
		blob(picture, 64, pixels)
		var bytes bytes.Buffer
		if err := binary.Write(&bytes, binary.LittleEndian, pixels); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(bytes.Bytes())); got != want.Blob {
			t.Errorf("%d×%d: the network is given other bytes than by OpenCV", want.Width, want.Height)
		}
		found, err := d.Detect(context.Background(), []*data.RGB{picture})
		if err != nil {
			t.Fatal(err)
		}
		n, scores, edges := compare(t, fmt.Sprintf("%d×%d", want.Width, want.Height), found[0], want.Detections)
		if scores > 1e-4 || edges > 0.5 {
			t.Errorf("%d×%d: scores differ by %g, edges by %g", want.Width, want.Height, scores, edges)
		}
		boxes += n
	}
	if boxes < 20 {
		t.Errorf("only %d boxes were compared", boxes)
	}
}

// TestCompany holds that what is said of a picture does not depend on the others, nor on who asks at the same time.
func TestCompany(t *testing.T) {
	d := openSmall(t, Options{Batch: 3})
	var pictures []*data.RGB
	for _, e := range expected(t) {
		pictures = append(pictures, pattern(e.Width, e.Height))
	}
	together, err := d.Detect(context.Background(), pictures)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(pictures)
	var wait sync.WaitGroup
	for i, p := range pictures {
		wait.Go(func() {
			alone, err := d.Detect(context.Background(), []*data.RGB{p})
			if err != nil {
				t.Error(err)
				return
			}
			if want := together[len(together)-1-i]; !reflect.DeepEqual(alone[0], want) {
				t.Errorf("picture %d alone: %v, with others %v", i, alone[0], want)
			}
		})
	}
	wait.Wait()
	if none, err := d.Detect(context.Background(), nil); err != nil || len(none) != 0 {
		t.Errorf("no pictures: %v, %v", none, err)
	}
}

func TestFinding(t *testing.T) {
	f := finding([]candidate{{x: 1.9, y: 2, width: 30.99, height: 4, label: 2, score: 0.5}, {label: 2, score: 0.4}, {label: 7, score: 0.3}})
	if want := map[string]float64{"BUTTOCKS_EXPOSED": 0.5, "FEET_EXPOSED": float64(float32(0.3))}; !reflect.DeepEqual(f.Scores, want) {
		t.Errorf("scores %v, want %v", f.Scores, want)
	}
	if b := f.Boxes[0]; b.X != 1 || b.Width != 30 {
		t.Errorf("box %v, want whole pixels", b)
	}
	if !Criterion().Holds(f) {
		t.Error("the criterion does not hold")
	}
	f.Scores["BUTTOCKS_EXPOSED"] = 0.45
	if Criterion().Holds(f) {
		t.Error("a score of 0.45 is taken for more")
	}
}

func TestCriterion(t *testing.T) {
	c := Criterion()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	exposed := slices.DeleteFunc(Labels(), func(l string) bool { return !strings.HasSuffix(l, "_EXPOSED") })
	slices.Sort(exposed)
	slices.Sort(c.Any)
	if !slices.Equal(c.Any, exposed) || len(exposed) != 9 || c.Above != 0.45 {
		t.Errorf("the criterion is %v, want the nine exposed parts above 0.45", c)
	}
}

// TestSuppress holds rules that are easily broken: boxes compete whatever their labels, ties keep their order, and exactly
// the threshold does not suppress.
func TestSuppress(t *testing.T) {
	box := func(x, width float32, label int, score float32) candidate {
		return candidate{x: x, width: width, height: 10, label: label, score: score}
	}
	for _, c := range []struct {
		name string
		in   []candidate
		want []int // labels
	}{
		{"other label", []candidate{box(0, 10, 0, 0.5), box(1, 10, 1, 0.9)}, []int{1}},
		{"ties", []candidate{box(0, 10, 3, 0.5), box(0, 10, 4, 0.5), box(50, 10, 5, 0.5)}, []int{3, 5}},
		{"apart", []candidate{box(0, 10, 0, 0.5), box(10, 10, 1, 0.9)}, []int{1, 0}},
		{"at the threshold", []candidate{box(0, 9, 0, 0.9), box(0, 20, 1, 0.5)}, []int{0, 1}},
		{"unsure", []candidate{box(0, 10, 0, 0.25), box(20, 10, 1, 0.26)}, []int{1}},
		{"no area", []candidate{box(0, 0, 0, 0.9), box(50, 0, 1, 0.8)}, []int{0}},
	} {
		var got []int
		for _, k := range suppress(c.in) {
			got = append(got, k.label)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: kept %v, want %v", c.name, got, c.want)
		}
	}
}

func TestPlaces(t *testing.T) {
	e := openEngine(t)
	content, err := os.ReadFile(network)
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	wheel := func(name string, files map[string][]byte) string {
		path := filepath.Join(folder, name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z := zip.NewWriter(f)
		for name, content := range files {
			w, err := z.Create(name)
			if err == nil {
				_, err = w.Write(content)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	installed := filepath.Join(folder, "site-packages [1]", "nudenet")
	if err := os.MkdirAll(installed, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(installed, "yolo.onnx"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, path := range []string{network, installed, wheel("a.whl", map[string][]byte{"nudenet/yolo.onnx": content, "nudenet/__init__.py": nil})} {
		d, err := Open(e, path)
		if err != nil {
			t.Fatal(err)
		}
		names[d.Name()] = true
		if d.resolution != 64 {
			t.Errorf("%s: the resolution is %d, but the file says 64", path, d.resolution)
		}
		d.Free()
	}
	if len(names) != 1 {
		t.Errorf("the same network has several names: %v", names)
	}
	for _, c := range []struct{ path, want string }{
		{wheel("none.whl", map[string][]byte{"x.py": nil}), "no .onnx file"},
		{wheel("two.whl", map[string][]byte{"x.onnx": nil, "y.onnx": nil}), "several .onnx files"},
		{wheel("bomb.whl", map[string][]byte{"x.onnx": make([]byte, 4<<20)}), "which weights do not"},
		{network + ".whl", "no such file"},
		{folder, "0 .onnx files"},
		{fixtures, "3 .onnx files"},
		{fixtures + "/classifier.onnx", "not a NudeNet v3 network"},
		{fixtures + "/networks.json", "not a"},
	} {
		if _, err := Open(e, c.path); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", c.path, err, c.want)
		}
	}
	for _, o := range []Options{{Resolution: 100}, {Resolution: -32}, {Batch: -1}, {Batch: 1 << 20}} {
		if _, err := OpenWith(e, network, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

func TestRefusals(t *testing.T) {
	d := openSmall(t, Options{})
	for _, p := range []*data.RGB{nil, {}, {Width: 3, Height: 3, Pix: make([]byte, 5)}} {
		if _, err := d.Detect(context.Background(), []*data.RGB{pattern(8, 8), p}); err == nil || !strings.Contains(err.Error(), "picture 2 has no pixels") {
			t.Errorf("%v: %v", p, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := d.Detect(ctx, []*data.RGB{pattern(8, 8)}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call returned %v", err)
	}
	// A line of a picture as long as the largest file must not become a square of that side in memory.
	long := &data.RGB{Width: 1 << 20, Height: 1, Pix: make([]byte, 3<<20)}
	if _, err := d.Detect(context.Background(), []*data.RGB{long}); err != nil {
		t.Error(err)
	}
}
