package finetune

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

const tinyModel = "../testdata/golden/tiny-sd"

func load(t testing.TB) *sd.Model {
	t.Helper()
	e := enginetest.Open(t)
	m, err := sd.Load(e, tinyModel)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Free)
	return m
}

// drawn is a folder of n pictures of balls in one colour, under captions that begin with the given words.
func drawn(t testing.TB, caption string, colour [3]uint8, n int) *data.Folder {
	t.Helper()
	dir := t.TempDir()
	var metadata strings.Builder
	for i := range n {
		s := random.New(7, "ball", i)
		picture := data.NewRGB(32, 32)
		cx, cy, r := 10+12*s.Float64(), 10+12*s.Float64(), 5+5*s.Float64()
		for k := range picture.Pix {
			x, y := float64(k/3%32), float64(k/3/32)
			picture.Pix[k] = 40
			if (x-cx)*(x-cx)+(y-cy)*(y-cy) < r*r {
				picture.Pix[k] = colour[k%3]
			}
		}
		name := fmt.Sprintf("%02d.png", i)
		if err := data.SavePNG(filepath.Join(dir, name), picture); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&metadata, "{\"file_name\": %q, \"text\": %q}\n", name, fmt.Sprintf("%s %d", caption, i))
	}
	if err := os.WriteFile(filepath.Join(dir, "metadata.jsonl"), []byte(metadata.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	folder, err := data.ReadFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

func only(f *data.Folder) data.Mixture { return data.Mixture{{Folder: f, Weight: 1}} }

func cache(t testing.TB) *data.Cache {
	t.Helper()
	c, err := data.OpenCache("", 64<<20, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func blue(t testing.TB) Data {
	return Data{Pictures: only(drawn(t, "a blue ball", [3]uint8{40, 60, 230}, 4)), Cache: cache(t)}
}

// short is a fine-tuning of a few steps, each visible in float32.
func short(method string) Config {
	c := Defaults(method)
	c.Steps, c.BatchSize, c.Accumulation, c.LearningRate = 3, 2, 1, 1e-3
	return c
}

func tune(t testing.TB, m *sd.Model, c Config, d Data, h Hooks) (*Result, []train.Event) {
	t.Helper()
	var events []train.Event
	h.OnEvent = func(e train.Event) { events = append(events, e) }
	r, err := Run(context.Background(), m, m.UNetParams, c, d, h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Free)
	return r, events
}

// trained are the numbers that a fine-tuning changed: the factors of its adapter, a word's embeddings, or all weights.
func trained(t testing.TB, r *Result) [][]float32 {
	t.Helper()
	if r.Concept != nil {
		return append(numbers(t, r.UNet.Tensors), r.Concept.Vectors)
	}
	if r.Factors != nil {
		return numbers(t, r.Factors.Tensors)
	}
	out := numbers(t, r.UNet.Tensors)
	if r.Text != nil {
		out = append(out, numbers(t, r.Text.Tensors)...)
	}
	return out
}

func numbers(t testing.TB, tensors []*engine.Tensor) [][]float32 {
	t.Helper()
	out := make([][]float32, len(tensors))
	for i, x := range tensors {
		var err error
		if out[i], err = engine.Values(x); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func identical(a, b [][]float32) bool {
	return slices.EqualFunc(a, b, func(x, y []float32) bool { return slices.Equal(x, y) })
}

// distance is the Euclidean distance of two lists of arrays; nil stands for zeros.
func distance(a, b [][]float32) float64 {
	sum := 0.0
	for i, x := range a {
		for k, v := range x {
			d := float64(v)
			if b != nil {
				d -= float64(b[i][k])
			}
			sum += d * d
		}
	}
	return math.Sqrt(sum)
}

// network is the fine-tuned model's network and where it stands.
func network(t testing.TB, m *sd.Model, r *Result) (*denoise.Network, denoise.Point) {
	t.Helper()
	net, groups := denoise.NewNetwork(m), [][]*engine.Tensor{r.UNet.Tensors}
	if r.Adapter != nil {
		net, groups = denoise.NewNetwork(m, r.Adapter), append(groups, r.Factors.Tensors)
	}
	t.Cleanup(net.Free)
	point, err := net.Point(groups...)
	if err != nil {
		t.Fatal(err)
	}
	return net, point
}

// batch draws pictures with noise that no fine-tuning sees, or, given its purpose, exactly what it sees.
func batch(t testing.TB, m *sd.Model, d data.Mixture, c *data.Cache, o denoise.DatasetOptions, purpose string, size int) *denoise.Batch {
	t.Helper()
	set, err := denoise.NewDataset("test", m, d, data.Preprocess{Resolution: m.Resolution()}, c, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := set.Sampler(42, purpose, size)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Batch(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Free)
	return b
}

func lossOn(t testing.TB, m *sd.Model, r *Result, b *denoise.Batch) float64 {
	t.Helper()
	net, point := network(t, m, r)
	loss, err := net.Value(context.Background(), point, denoise.Loss{}, b)
	if err != nil {
		t.Fatal(err)
	}
	return loss
}

func number(t testing.TB, e train.Event, field string) float64 {
	t.Helper()
	x, ok := e.Number(field)
	if !ok {
		t.Fatalf("event of step %d has no number %q: %v", e.Step, field, e.Fields)
	}
	return x
}
