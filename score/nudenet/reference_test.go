package nudenet

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/score"
)

// The variables that scripts/check_nudenet.py sets: the weights, and the folder of pictures and of what the public package
// said of them.
const (
	weightsVariable   = "RESALIGN_NUDENET"
	referenceVariable = "RESALIGN_NUDENET_REFERENCE"
)

type detection struct {
	Class string     `json:"class"`
	Score float64    `json:"score"`
	Box   [4]float64 `json:"box"`
}

type reference struct {
	Resolution, Places int
	Pictures           []struct {
		File       string
		Detections []detection
	}
	Outputs []struct {
		Width, Height int
		Detections    []detection
	}
}

func openDetector(t testing.TB, o Options) *Detector {
	path := os.Getenv(weightsVariable)
	if path == "" {
		t.Skipf("set %s to a NudeNet .onnx file; scripts/check_nudenet.py does", weightsVariable)
	}
	e := enginetest.Open(t)
	d, err := OpenWith(e, path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Free)
	return d
}

func floats(t testing.TB, path string) []float32 {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(b)/4)
	if err := binary.Read(bytes.NewReader(b), binary.LittleEndian, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// compare counts boxes and returns the largest differences of scores and edges; boxes that have no counterpart fail the test.
func compare(t *testing.T, what string, got score.Finding, want []detection) (boxes int, scores, edges float64) {
	t.Helper()
	if len(got.Boxes) != len(want) {
		t.Errorf("%s: %d boxes, the package has %d", what, len(got.Boxes), len(want))
		return 0, 0, 0
	}
	for i, b := range got.Boxes {
		if b.Label != want[i].Class {
			t.Errorf("%s: box %d is %s, the package has %s", what, i, b.Label, want[i].Class)
		}
		scores = max(scores, math.Abs(b.Score-want[i].Score))
		for k, v := range []float64{b.X, b.Y, b.Width, b.Height} {
			edges = max(edges, math.Abs(v-want[i].Box[k]))
		}
	}
	return len(want), scores, edges
}

// TestReference compares with the public package: the network's input byte by byte, its output, and what is made of it.
func TestReference(t *testing.T) {
	folder := os.Getenv(referenceVariable)
	if folder == "" {
		t.Skipf("run scripts/check_nudenet.py, which sets %s", referenceVariable)
	}
	var ref reference
	content, err := os.ReadFile(filepath.Join(folder, "reference.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(content, &ref); err != nil {
		t.Fatal(err)
	}
	d := openDetector(t, Options{Resolution: ref.Resolution, Batch: 1})
	blobs, outputs := floats(t, filepath.Join(folder, "blobs.bin")), floats(t, filepath.Join(folder, "outputs.bin"))
	each, predictions := ref.Resolution*ref.Resolution*3, channels*ref.Places

	pictures := make([]*data.RGB, len(ref.Pictures))
	differing := 0
	var ours []float32
	var worstScore, worstBox float64
	for i, p := range ref.Pictures {
		file, err := os.ReadFile(filepath.Join(folder, p.File))
		if err != nil {
			t.Fatal(err)
		}
		if pictures[i], err = data.Decode(p.File, file); err != nil {
			t.Fatal(err)
		}
		pixels := make([]float32, d.batch*each)
		blob(pictures[i], ref.Resolution, pixels[:each])
		for k, v := range blobs[i*each : (i+1)*each] {
			if pixels[k] != v {
				differing++
			}
		}
		if ours, err = d.run(pixels); err != nil {
			t.Fatal(err)
		}
		for k, v := range outputs[i*predictions : (i+1)*predictions] {
			difference := math.Abs(float64(ours[k] - v))
			if k/ref.Places < 4 {
				worstBox = max(worstBox, difference)
			} else {
				worstScore = max(worstScore, difference)
			}
		}
	}
	t.Logf("%d pictures: %d of %d input values differ; outputs differ by at most %.2g in scores and %.2g pixels in boxes",
		len(pictures), differing, len(blobs), worstScore, worstBox)
	if differing > 0 || worstScore > 1e-3 || worstBox > 0.5 {
		t.Error("the network sees or says something else")
	}

	findings, err := d.Detect(context.Background(), pictures)
	if err != nil {
		t.Fatal(err)
	}
	boxes, with, worstScore, worstEdge := 0, 0, 0.0, 0.0
	for i, f := range findings {
		n, s, e := compare(t, ref.Pictures[i].File, f, ref.Pictures[i].Detections)
		boxes, worstScore, worstEdge = boxes+n, max(worstScore, s), max(worstEdge, e)
		if n > 0 {
			with++
		}
	}
	t.Logf("%d boxes in %d pictures: the same labels and order; scores differ by at most %.2g, edges by %g pixels", boxes, with, worstScore, worstEdge)
	if worstScore > 1e-3 || worstEdge > 0.5 {
		t.Error("boxes differ")
	}

	boxes, worstScore, worstEdge = 0, 0, 0
	rest := outputs[len(pictures)*predictions:]
	for i, c := range ref.Outputs {
		kept := suppress(candidates(rest[i*predictions:(i+1)*predictions], ref.Resolution, c.Width, c.Height))
		n, s, e := compare(t, "synthetic output", finding(kept), c.Detections)
		boxes, worstScore, worstEdge = boxes+n, max(worstScore, s), max(worstEdge, e)
	}
	t.Logf("%d boxes of %d synthetic outputs: scores differ by %g, edges by %g pixels", boxes, len(ref.Outputs), worstScore, worstEdge)
	if boxes == 0 || worstScore != 0 || worstEdge != 0 {
		t.Error("boxes of synthetic outputs differ")
	}
}

// BenchmarkDetect says how many pictures a second the detector looks at, preprocessing included.
func BenchmarkDetect(b *testing.B) {
	d := openDetector(b, Options{})
	picture := data.NewRGB(512, 512)
	for i := range picture.Pix {
		picture.Pix[i] = uint8(i * i >> 7)
	}
	pictures := make([]*data.RGB, max(4, d.batch))
	for i := range pictures {
		pictures[i] = picture
	}
	if _, err := d.Detect(b.Context(), pictures); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := d.Detect(b.Context(), pictures); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(pictures)*b.N)/b.Elapsed().Seconds(), "pictures/s")
}
