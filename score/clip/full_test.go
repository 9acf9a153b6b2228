package clip

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/vision"
)

// TestFullSize compares a model of full size, which `scripts/clip_reference.py full DIR` writes and RESALIGN_CLIP_FULL
// names, under both conventions of names.
func TestFullSize(t *testing.T) {
	dir := os.Getenv("RESALIGN_CLIP_FULL")
	if dir == "" {
		t.Skip("RESALIGN_CLIP_FULL names no folder; the models have 0.6 and 1.7 GB")
	}
	e, r := openEngine(t), openReference(t, filepath.Join(dir, "reference.safetensors"))
	t.Log(e.Description())
	for _, file := range []string{"model", "openai.pt"} {
		start := time.Now()
		m, err := Open(e, filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		opened := time.Since(start)
		seen, err := m.Embed(t.Context(), r.pictures(), Standard)
		if err != nil {
			t.Fatal(err)
		}
		said, err := m.EmbedText(t.Context(), r.prompts())
		if err != nil {
			t.Fatal(err)
		}
		pictures, prompts := apart(t, seen, r.rows("embeddings")), apart(t, said, r.rows("text"))
		t.Logf("%s: opened in %.1f s; pictures differ by %.1e, prompts by %.1e", m.Name(), opened.Seconds(), pictures, prompts)
		if max(pictures, prompts) > 1e-4 {
			t.Errorf("%s: the embeddings differ by more than 1e-4", file)
		}
		m.Close()
	}
}

// BenchmarkEmbed measures pictures per second, from 512 × 512 bytes to embeddings, with random weights.
// RESALIGN_TEST_ENGINE names the engine.
func BenchmarkEmbed(b *testing.B) {
	for name, config := range map[string]vision.CLIPConfig{"ViT-B32": vision.CLIPViTB32(), "ViT-L14": vision.CLIPViTL14(224)} {
		b.Run(name, func(b *testing.B) {
			e := openEngine(b)
			tower, err := vision.NewCLIP(config)
			if err != nil {
				b.Fatal(err)
			}
			m := &Model{engine: e, vision: tower, eyes: randomParameters(tower)}
			if err := m.compile(); err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			pictures := make([]*data.RGB, 2*batch)
			r := random.New(1, "pictures")
			for i := range pictures {
				pictures[i] = data.NewRGB(512, 512)
				for k := range pictures[i].Pix {
					pictures[i].Pix[k] = uint8(r.IntN(256))
				}
			}
			if _, err := m.Embed(b.Context(), pictures[:1], Standard); err != nil { // compiles
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := m.Embed(b.Context(), pictures, Standard); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*len(pictures))/b.Elapsed().Seconds(), "pictures/s")
		})
	}
}

func randomParameters(tower *vision.CLIP) []*engine.Tensor {
	return sd.RandomParams(tower.Specs(), 1).Tensors
}
