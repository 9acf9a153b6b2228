package clip

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/engine/enginetest"
	"github.com/resalign/resalign/weights"
)

// fixtures are made by scripts/clip_reference.py.
const fixtures = "../../testdata/vision/clip/"

func openEngine(t testing.TB) *engine.Engine {
	return enginetest.Open(t)
}

// reference is what torch, transformers and diffusers computed.
type reference struct {
	t      testing.TB
	source weights.FileSource
}

func openReference(t testing.TB, path string) reference {
	t.Helper()
	source, err := weights.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return reference{t, source}
}

func (r reference) tensor(name string) *weights.Tensor {
	r.t.Helper()
	tensor, err := r.source.Tensor(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return tensor
}

// rows are those of a matrix, or the elements of a vector as rows of one.
func (r reference) rows(name string) [][]float32 {
	r.t.Helper()
	tensor := r.tensor(name)
	values, err := tensor.Float32()
	if err != nil {
		r.t.Fatal(err)
	}
	var rows [][]float32
	for row := range slices.Chunk(values, max(1, len(values)/max(1, append(tensor.Shape, 1)[0]))) {
		rows = append(rows, row)
	}
	return rows
}

func (r reference) bools(name string) []bool {
	r.t.Helper()
	raw, err := r.tensor(name).Bytes()
	if err != nil {
		r.t.Fatal(err)
	}
	var out []bool
	for _, b := range raw {
		out = append(out, b != 0)
	}
	return out
}

func (r reference) picture(name string) *data.RGB {
	r.t.Helper()
	tensor := r.tensor(name)
	raw, err := tensor.Bytes()
	if err != nil {
		r.t.Fatal(err)
	}
	return &data.RGB{Width: tensor.Shape[1], Height: tensor.Shape[0], Pix: raw}
}

func (r reference) pictures() []*data.RGB {
	r.t.Helper()
	var pictures []*data.RGB
	for i := range slices.Values(r.source.Names()) {
		if strings.HasPrefix(i, "picture.") {
			pictures = append(pictures, r.picture(i))
		}
	}
	return pictures
}

func (r reference) prompts() []string {
	r.t.Helper()
	var prompts []string
	if err := json.Unmarshal([]byte(r.source.Metadata()["prompts"]), &prompts); err != nil {
		r.t.Fatal(err)
	}
	return prompts
}

// apart is the largest distance of two rows, relative to the length of the second.
func apart(t testing.TB, got, want [][]float32) float64 {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d rows instead of %d", len(got), len(want))
	}
	worst := 0.0
	for i := range want {
		if len(got[i]) != len(want[i]) {
			t.Fatalf("row %d has %d numbers instead of %d", i, len(got[i]), len(want[i]))
		}
		difference := make([]float32, len(want[i]))
		for k := range difference {
			difference[k] = got[i][k] - want[i][k]
		}
		worst = max(worst, norm(difference)/norm(want[i]))
	}
	return worst
}

// copyFiles copies files into a new folder, under their own names or others.
func copyFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, from := range files {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const tinyTokenizer = "../../testdata/golden/tiny-sd/tokenizer/"

// modelFolder is the tiny model with its tokenizer, its weights from the fixture of the given name.
func modelFolder(t testing.TB, file, as string) string {
	return copyFiles(t, map[string]string{
		as: fixtures + file, "config.json": fixtures + "model/config.json", "vocab.json": tinyTokenizer + "vocab.json",
		"merges.txt": tinyTokenizer + "merges.txt", "tokenizer_config.json": tinyTokenizer + "tokenizer_config.json",
		"special_tokens_map.json": tinyTokenizer + "special_tokens_map.json",
	})
}

// edit replaces text in a file, which must have it.
func edit(t testing.TB, path, from, to string) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), from) {
		t.Fatalf("%s has no %q", path, from)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(content), from, to)), 0o644); err != nil {
		t.Fatal(err)
	}
}
