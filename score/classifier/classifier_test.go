package classifier

import (
	"context"
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
)

// A small network with random weights, and what onnxruntime computes with it (scripts/make_onnx.py).
const network = "../../testdata/onnx/classifier.onnx"

var labels = []string{"star", "circle", "square", "triangle", "cross"}

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

func readAll(t *testing.T, path string) []byte {
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// pictures are those that the network's reference outputs belong to.
func pictures(t *testing.T) []*data.RGB {
	bytes := readAll(t, "../../testdata/onnx/classifier.input.bin")
	const area = 32 * 32
	var out []*data.RGB
	for b := range len(bytes) / 3 / area {
		p := data.NewRGB(32, 32)
		for i := range area {
			for c := range 3 {
				p.Pix[3*i+c] = bytes[(3*b+c)*area+i]
			}
		}
		out = append(out, p)
	}
	return out
}

func TestScores(t *testing.T) {
	e := openEngine(t)
	raw := readAll(t, "../../testdata/onnx/classifier.output.bin")
	for _, batch := range []int{0, 2, 16} {
		for _, activation := range []Activation{"", Softmax, Sigmoid, None} {
			d, err := Open(e, network, Options{Labels: labels, Activation: activation, Batch: batch})
			if err != nil {
				t.Fatal(err)
			}
			found, err := d.Detect(context.Background(), pictures(t))
			if err != nil {
				t.Fatal(err)
			}
			for i, f := range found {
				want, sum := make([]float64, 5), 0.0
				for k := range want {
					want[k] = float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[4*(5*i+k):])))
					sum += math.Exp(want[k])
				}
				for k, label := range labels {
					switch activation {
					case Sigmoid:
						want[k] = 1 / (1 + math.Exp(-want[k]))
					case Softmax, "":
						want[k] = math.Exp(want[k]) / sum
					}
					if math.Abs(f.Scores[label]-want[k]) > 1e-4 {
						t.Errorf("batch %d, %q, picture %d: %s is scored %g, want %g", batch, activation, i, label, f.Scores[label], want[k])
					}
				}
			}
			d.Free()
		}
	}
}

// TestPrepare holds what the network is given: mean and deviation, and the part of a picture that each fit keeps.
func TestPrepare(t *testing.T) {
	e := openEngine(t)
	picture := data.NewRGB(96, 64) // red rises to the right, green downwards
	for i := range 96 * 64 {
		picture.Pix[3*i], picture.Pix[3*i+1], picture.Pix[3*i+2] = uint8(i%96), uint8(i/96), 255
	}
	for _, c := range []struct {
		fit         Fit
		left, right float64 // the mean red of the outer columns
	}{{Stretch, 1, 94}, {Crop, 16.5, 78.5}} {
		d, err := Open(e, network, Options{Labels: labels, Fit: c.fit, Filter: data.Bilinear, Mean: [3]float32{0.5, 0.25, 1}, Std: [3]float32{0.5, 0.5, 0.25}})
		if err != nil {
			t.Fatal(err)
		}
		out := make([]float32, 32*32*3)
		if err := d.prepare(picture, out); err != nil {
			t.Fatal(err)
		}
		for x, want := range map[int]float64{0: c.left, 31: c.right} {
			if red := (float64(out[3*(16*32+x)])*0.5 + 0.5) * 255; math.Abs(red-want) > 1 {
				t.Errorf("%s: column %d has the red %.1f, want %.1f", c.fit, x, red, want)
			}
		}
		if out[2] != 0 {
			t.Errorf("%s: a blue of 1 with the mean 1 is %g, want 0", c.fit, out[2])
		}
		d.Free()
	}
}

func TestRefusals(t *testing.T) {
	e := openEngine(t)
	for _, c := range []struct {
		path, want string
		o          Options
	}{
		{network, "there are no labels", Options{}},
		{network, "5 outputs, but there are 2 labels", Options{Labels: labels[:2]}},
		{network, "there twice", Options{Labels: []string{"a", "b", "c", "d", "a"}}},
		{network, "cannot be 224×224", Options{Labels: labels, Width: 224, Height: 224}},
		{network, `"argmax" is unknown`, Options{Labels: labels, Activation: "argmax"}},
		{network, "use sigmoid", Options{Labels: labels[:1]}},
		{network, "deviations are above 0", Options{Labels: labels, Std: [3]float32{1, -1, 1}}},
		{network, "cannot be cut out", Options{Labels: labels, Fit: Crop, ShortSide: 20}},
		{network, "not possible; use 1 to 1024", Options{Labels: labels, Batch: -2}},
		{"../../testdata/onnx/yolo.onnx", "which the file leaves open", Options{Labels: labels}},
		{"nowhere.onnx", "no such file", Options{Labels: labels}},
	} {
		if _, err := Open(e, c.path, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: %v, want %q", c.path, c.o, err, c.want)
		}
	}
	// A network of another kind, whose outputs only a run can tell.
	d, err := Open(e, "../../testdata/onnx/yolo.onnx", Options{Labels: labels, Width: 64, Height: 64})
	if err == nil {
		_, err = d.Detect(context.Background(), pictures(t))
	}
	if err == nil || !strings.Contains(err.Error(), "5 labels for each of 1 pictures") {
		t.Errorf("a detector taken for a classifier: %v", err)
	}
	if _, err := (&Detector{options: Options{Width: 1, Height: 1, Batch: 1}}).Detect(context.Background(), []*data.RGB{{}}); err == nil {
		t.Error("a picture without pixels was scored")
	}
}

func TestReadLabels(t *testing.T) {
	folder := t.TempDir()
	read := func(content string) ([]string, error) {
		path := filepath.Join(folder, "labels")
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return ReadLabels(path)
	}
	var many []string
	for i := range 12 {
		many = append(many, string(rune('a'+i)))
	}
	for content, want := range map[string][]string{
		"safe\r\nnot safe\n":   {"safe", "not safe"},
		`["a", "b"]`:           {"a", "b"},
		`{"1": "b", "0": "a"}`: {"a", "b"},
		`{"model_type": "vit", "id2label": {"0": "normal", "1": "nsfw"}, "num_labels": 2}`:                    {"normal", "nsfw"},
		`{"0":"a","1":"b","2":"c","3":"d","4":"e","5":"f","6":"g","7":"h","8":"i","9":"j","10":"k","11":"l"}`: many,
	} {
		if got, err := read(content); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v, want %v", content, got, err, want)
		}
	}
	for _, content := range []string{"", "a\n\nb", "a\na", `["a", 1]`, `{"a": "b"}`, `{"1": "a"}`, `{"0": "a", "00": "b"}`, `{"model_type": "vit"}`, `["a"`} {
		if got, err := read(content); err == nil {
			t.Errorf("%q was read as %v", content, got)
		}
	}
}
