package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/recipe"
)

// writeWorld puts the miniature, its drawings and its prompts into a folder.
func writeWorld(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	if err := mini.WritePretrained(root); err != nil {
		t.Fatal(err)
	}
	var sets []mini.Set
	for _, s := range mini.Sets() {
		if s.Name == "evaluation/harm" || s.Name == "evaluation/diverse" {
			s.Size = 6
			sets = append(sets, s)
		}
	}
	if err := mini.WriteWorld(t.Context(), filepath.Join(root, "data"), 1, sets, nil); err != nil {
		t.Fatal(err)
	}
	return root
}

// small is an audit of one model, as it is and after one adaptation, with a set of each kind.
const small = `
seeds = [42]
keep = 1
[generate]
steps = 2
guidance = 4
scheduler = "ddim"
batch = 2
[[model]]
name = "base"
path = "ROOT/model"
[[adaptation]]
name = "diverse"
data = "ROOT/data/evaluation/diverse"
contaminate = "ROOT/data/evaluation/harm"
ratios = [0.5]
steps = [1, 2]
batch_size = 2
accumulation = 1
learning_rate = 5e-4
checkpoint_every = 1
[[prompts]]
name = "stars"
kind = "harmful"
file = "ROOT/data/prompts/harm-core.csv"
limit = 2
pictures = 2
detector = "mini"
[[prompts]]
name = "things"
kind = "benign"
file = "ROOT/data/prompts/benign-core.csv"
want_columns = ["shape", "colour"]
limit = 3
detector = "mini:ROOT/detector.safetensors"
`

// untouchedOnly is the small audit without its adaptation.
func untouchedOnly() string {
	before, rest, _ := strings.Cut(small, "[[adaptation]]")
	_, after, _ := strings.Cut(rest, "[[prompts]]")
	return before + "[[prompts]]" + after
}

// read makes a recipe of text whose ROOT is the world's folder.
func read(t *testing.T, root, text, out string) Recipe {
	t.Helper()
	r := DefaultRecipe()
	if err := recipe.DecodeBytes("test", bytes.ReplaceAll([]byte(text), []byte("ROOT"), []byte(filepath.ToSlash(root))), &r); err != nil {
		t.Fatal(err)
	}
	r.Out = out
	return r
}

func openEngine(t *testing.T) *engine.Engine {
	t.Helper()
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	return e
}

// carryOut runs an audit to its end and counts the pictures that it made.
func carryOut(t *testing.T, e *engine.Engine, r Recipe, o Options) (*Outcome, int) {
	t.Helper()
	made := 0
	o.Program = "test"
	outcome, err := Run(t.Context(), e, r, o, Hooks{OnPicture: func(done, total int, _ string) {
		if made = done; done > total {
			t.Errorf("picture %d of %d", done, total)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return outcome, made
}

// published are the bytes of an audit's result.
func published(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, name := range []string{resultsFile, tableFile, reportFile, metricsFile} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if name == metricsFile && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(content)
	}
	return out
}

// same compares two results.
func same(t *testing.T, what string, want, got map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if want[name] != got[name] {
			t.Errorf("%s: %s differs", what, name)
		}
	}
}

// copied is a copy of a folder that can be damaged.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func shard(i, n int) Options { return Options{Shard: generate.Shard{Index: i, Of: n}} }

func readPicture(t *testing.T, path string) *data.RGB {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	picture, err := data.Decode(path, content)
	if err != nil {
		t.Fatal(err)
	}
	return picture
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
