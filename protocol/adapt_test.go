package protocol

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/plan"
)

// everyMethod are ways of fine-tuning whose model is more than the network's first parameters.
const everyMethod = `
[[adaptation]]
name = "lora"
method = "lora"
learning_rate = 0.05
lora_dropout = 0.1
[[adaptation]]
name = "svdiff"
method = "svdiff"
learning_rate = 0.5
[[adaptation]]
name = "text"
train_text_encoder = true
learning_rate = 0.02
[[adaptation]]
name = "custom"
method = "custom"
placeholder = "<it>"
initializer = "red"
learning_rate = 0.2
[[adaptation]]
name = "word"
method = "textual-inversion"
placeholder = "<it>"
initializer = "red"
vectors = 2
learning_rate = 2.0
`

// methodsRecipe is an audit of every method, measured after the given steps.
func methodsRecipe(t *testing.T, root, steps string) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, "word.txt"), []byte("a drawing of a <it>\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(everyMethod, "[[adaptation]]", `[[adaptation]]
data = "ROOT/data/evaluation/diverse"
batch_size = 1
accumulation = 1
clip_norm = 0
steps = `+steps)
	return strings.Replace(untouchedOnly(), "[[prompts]]", text+`
[[prompts]]
name = "learnt"
kind = "harmful"
file = "ROOT/word.txt"
detector = "mini"
[[prompts]]`, 1)
}

// What is measured on the way is what a fine-tuning that ends there gives, with whatever was trained.
func TestModelsOnTheWay(t *testing.T) {
	root, e := writeWorld(t), openEngine(t)
	on := read(t, root, methodsRecipe(t, root, "[1, 2]"), filepath.Join(t.TempDir(), "on"))
	ends := read(t, root, methodsRecipe(t, root, "[1]"), filepath.Join(t.TempDir(), "ends"))
	carryOut(t, e, on, Options{})
	carryOut(t, e, ends, Options{})
	picture := func(r Recipe, cell, set string) []byte {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(r.Out, "cells", cell, "42", set+"-*", "00000-00.png"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s, %s: %v %v", cell, set, found, err)
		}
		content, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	seen := map[string]string{string(picture(on, "base-none-0", "stars")): "none"}
	for _, method := range []string{"lora", "svdiff", "text", "custom", "word"} {
		sets := []string{"stars"}
		switch method {
		case "custom":
			sets = []string{"learnt", "stars"}
		case "word":
			sets = []string{"learnt"}
		}
		for _, set := range sets {
			first, second := picture(on, "base-"+method+"-1", set), picture(on, "base-"+method+"-2", set)
			if !bytes.Equal(first, picture(ends, "base-"+method+"-1", set)) {
				t.Errorf("%s, %s: the model on the way is not that of one step", method, set)
			}
			for steps, content := range [][]byte{first, second} {
				what := fmt.Sprintf("%s, %s, %d steps", method, set, steps+1)
				if other, taken := seen[string(content)]; taken {
					t.Errorf("%s: the picture is that of %s", what, other)
				}
				seen[string(content)] = what
			}
		}
	}
	for cell, set := range map[string]string{"base-word-1": "stars", "base-none-0": "learnt", "base-lora-1": "learnt", "base-custom-1": "none"} {
		if found, _ := filepath.Glob(filepath.Join(on.Out, "cells", cell, "42", set+"-*")); len(found) != 0 {
			t.Errorf("%s has pictures of %s, where they mean nothing of their own", cell, set)
		}
	}
	kept, _ := filepath.Glob(filepath.Join(on.Out, "finetuned", "base-word-*", "*"))
	if len(kept) != 2 || filepath.Base(kept[0]) != "after-00001.safetensors" || filepath.Base(kept[1]) != "after-00002.safetensors" {
		t.Errorf("of a word that was learnt %v is kept", kept)
	}
	if err := os.RemoveAll(filepath.Join(on.Out, "finetuned")); err != nil {
		t.Fatal(err)
	}
	if _, made := carryOut(t, e, on, Options{}); made != 0 {
		t.Errorf("%d pictures were made again", made)
	}
}

func TestWordsAreForWhereTheyAreLearnt(t *testing.T) {
	root, e := writeWorld(t), openEngine(t)
	text := methodsRecipe(t, root, "[1]")
	for part, change := range map[string][2]string{
		`model base: adaptation custom: initializer "electroencephalograph" has 8 tokens`: {`initializer = "red"`, `initializer = "electroencephalograph"`},
		`model base: adaptation custom: `:                                                 {`placeholder = "<it>"`, `placeholder = "red"`},
		`prompts learnt: adaptations have "none", but prompts have the word <it>`:         {"file = \"ROOT/word.txt\"", "file = \"ROOT/word.txt\"\nadaptations = [\"none\", \"word\"]"},
		"adaptation word: no prompt has its word <it>":                                    {"file = \"ROOT/word.txt\"", "file = \"ROOT/data/prompts/harm-core.csv\""},
	} {
		r := read(t, root, strings.Replace(text, change[0], change[1], 1), filepath.Join(t.TempDir(), "out"))
		for what, call := range map[string]func() error{
			"run":  func() error { _, err := Run(t.Context(), e, r, Options{}, Hooks{}); return err },
			"plan": func() error { _, err := r.Plan(t.Context(), Options{}, plan.Rates{FLOPs: 1e9, Bytes: 1e9}); return err },
		} {
			if what == "plan" && strings.HasPrefix(part, "model ") {
				continue // which reads no models
			}
			if err := call(); err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: got %v, not an error with %q", what, err, part)
			}
		}
	}
	planned, err := read(t, root, text, "out").Plan(t.Context(), Options{}, plan.Rates{FLOPs: 1e9, Bytes: 1e9})
	if err != nil {
		t.Fatal(err)
	}
	var pictures []int
	for _, c := range planned.Cells {
		pictures = append(pictures, c.Pictures)
	}
	if got := fmt.Sprint(pictures); got != "[7 7 7 7 8 1]" {
		t.Errorf("planned are %s pictures", got)
	}
}
