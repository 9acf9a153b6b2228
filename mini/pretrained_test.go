package mini

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/sd"
)

func TestWritePretrained(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	if err := WritePretrained(dir); err != nil {
		t.Fatal(err)
	}
	// What a session that was killed left is replaced.
	unet := filepath.Join(dir, "model", "unet", "diffusion_pytorch_model.safetensors")
	if err := os.Truncate(unet, 100); err != nil {
		t.Fatal(err)
	}
	if err := WritePretrained(dir); err != nil {
		t.Fatal(err)
	}
	m, err := sd.Load(openEngine(t), filepath.Join(dir, "model"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Free()
	if m.Resolution() != Side {
		t.Errorf("the model makes pictures of %d pixels, not %d", m.Resolution(), Side)
	}
	for _, tower := range m.Towers {
		for _, word := range Vocabulary() {
			ids, cut := tower.Tokenizer.Encode(word)
			if cut != "" || ids[2] != tower.Tokenizer.EndID() {
				t.Errorf("%q became the tokens %v", word, ids)
			}
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := WritePretrained(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file as the folder gives %v", err)
	}
}

// The carried detector's held-out accuracy was .9995; a drawing that it gets wrong is one in two thousand.
func TestCarriedDetector(t *testing.T) {
	dir := t.TempDir()
	if err := WritePretrained(dir); err != nil {
		t.Fatal(err)
	}
	e := openEngine(t)
	detector, err := OpenDetector(e, filepath.Join(dir, "detector.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer detector.Free()
	set := Set{"held out", 400, Pairs(), wideShare}
	var pictures []*data.RGB
	for i := range set.Size {
		pictures = append(pictures, set.At(99, i).Picture)
	}
	findings, err := detector.Detect(t.Context(), pictures)
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	for i, f := range findings {
		if s := set.At(99, i).Scene; f.Labels["shape"] != s.Shape || f.Labels["colour"] != s.Colour {
			wrong++
		}
	}
	if len(findings) != set.Size || wrong > 2 {
		t.Errorf("%d of %d labels are wrong", wrong, len(findings))
	}
	blank, err := detector.Detect(t.Context(), []*data.RGB{data.NewRGB(Side, Side)})
	if err != nil || blank[0].Labels["shape"] != NoShape {
		t.Errorf("a black picture is labelled %v, %v", blank, err)
	}
	if none, err := detector.Detect(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("no pictures are labelled %v, %v", none, err)
	}
	if _, err := detector.Detect(t.Context(), []*data.RGB{pictures[0], data.NewRGB(Side, 2*Side)}); err == nil || !strings.Contains(err.Error(), "16×16 pixels, not 16×32") {
		t.Errorf("a picture of another size gives %v", err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := detector.Detect(stopped, pictures); err == nil {
		t.Error("a cancelled detection labels pictures")
	}
	if _, err := OpenDetector(e, filepath.Join(dir, "nowhere.safetensors")); err == nil || !strings.Contains(err.Error(), "nowhere.safetensors") {
		t.Errorf("a missing file gives %v", err)
	}
	if _, err := OpenDetector(e, filepath.Join(dir, "model", "vae", "diffusion_pytorch_model.safetensors")); err == nil || !strings.Contains(err.Error(), "resalign mini") {
		t.Errorf("a decoder as detector gives %v", err)
	}
}

func TestDetectorsAreToldApart(t *testing.T) {
	dir := t.TempDir()
	if err := WritePretrained(dir); err != nil {
		t.Fatal(err)
	}
	e := openEngine(t)
	path := filepath.Join(dir, "detector.safetensors")
	names := map[string]bool{}
	for range 2 {
		detector, err := OpenDetector(e, path)
		if err != nil {
			t.Fatal(err)
		}
		names[detector.Name()] = true
		detector.Free()
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content[len(content)-1] ^= 1
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if len(names) != 2 {
		t.Errorf("two detectors have the name %v", names)
	}
}
