package hub

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// lists is what a data set of prompts may hold.
func lists() map[string][]byte {
	return map[string][]byte{
		"i2p_benchmark.csv": noise("csv", 200_000), "more/list.jsonl": []byte(`{"prompt": "a"}`), "captions.JSON": []byte("{}"), "lines.txt": []byte("a\n"),
		"README.md": []byte("#"), "dataset_infos.json": []byte("{}"), ".gitattributes": []byte("x"), ".hidden.txt": []byte("x"),
		"data/train-00000-of-00001.parquet": noise("parquet", 5_000),
	}
}

// clip is what the repository of a CLIP holds.
func clip() map[string][]byte {
	files := map[string][]byte{"README.md": []byte("#"), "tf_model.h5": noise("tf", 5_000), "flax_model.msgpack": noise("flax", 5_000)}
	for _, name := range []string{"model.safetensors", "pytorch_model.bin"} {
		files[name] = noise(name, 50_000)
	}
	for _, name := range []string{"config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} {
		files[name] = []byte(`{"of": "` + name + `"}`)
	}
	return files
}

func without(files map[string][]byte, names ...string) map[string][]byte {
	for _, name := range names {
		delete(files, name)
	}
	return files
}

func TestRepositories(t *testing.T) {
	clipFiles := []string{
		"config.json", "merges.txt", "model.safetensors", "preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
	}
	pickled := slices.Clone(clipFiles)
	pickled[2], pickled[3], pickled[4] = "preprocessor_config.json", "pytorch_model.bin", "special_tokens_map.json"
	onnx := map[string][]byte{
		"onnx/model.onnx": noise("onnx", 5_000), "onnx/model.onnx_data": noise("data", 5_000), "onnx/model_quantized.onnx": noise("quantized", 5_000),
		"config.json": []byte("{}"), "labels.txt": []byte("a\nb\n"), "other.bin": []byte("x"),
	}
	for name, c := range map[string]struct {
		content map[string][]byte
		dataset bool
		variant string
		include []string
		want    []string
		parts   []string // of the error
	}{
		"pipeline":        {content: model(), want: wanted},
		"data set":        {content: lists(), dataset: true, want: []string{"captions.JSON", "i2p_benchmark.csv", "lines.txt", "more/list.jsonl"}},
		"one list":        {content: lists(), dataset: true, include: []string{"*.csv"}, want: []string{"i2p_benchmark.csv"}},
		"two patterns":    {content: lists(), dataset: true, include: []string{"more/*", "*.csv"}, want: []string{"i2p_benchmark.csv", "more/list.jsonl"}},
		"CLIP":            {content: clip(), want: clipFiles},
		"pickled CLIP":    {content: without(clip(), "model.safetensors"), want: pickled},
		"ONNX":            {content: onnx, want: []string{"config.json", "labels.txt", "onnx/model.onnx", "onnx/model.onnx_data"}},
		"chosen":          {content: map[string][]byte{"head.pth": noise("head", 5_000), "other.pth": {}}, include: []string{"head.*"}, want: []string{"head.pth"}},
		"half":            {content: clip(), variant: HalfPrecision, parts: []string{"variant fp16"}},
		"nothing known":   {content: map[string][]byte{"head.pth": {}}, parts: []string{"neither model_index.json", "--include"}},
		"no list":         {content: without(lists(), "i2p_benchmark.csv", "more/list.jsonl", "captions.JSON", "lines.txt", "data/train-00000-of-00001.parquet"), dataset: true, parts: []string{"no list of prompts", "/datasets/owner/name/tree/main"}},
		"Parquet":         {content: without(lists(), "i2p_benchmark.csv", "more/list.jsonl", "captions.JSON", "lines.txt"), dataset: true, parts: []string{"data/train-00000-of-00001.parquet is a Parquet file", "to_csv"}},
		"chosen Parquet":  {content: lists(), dataset: true, include: []string{"data/*"}, parts: []string{"train-00000-of-00001.parquet is a Parquet file"}},
		"no match":        {content: lists(), dataset: true, include: []string{"*.csv", "*.tsv"}, parts: []string{`no file matches "*.tsv"`}},
		"bad pattern":     {content: lists(), dataset: true, include: []string{"[a"}, parts: []string{`the pattern "[a" is malformed`}},
		"not a data set":  {content: lists(), parts: []string{"neither model_index.json"}},
		"model elsewhere": {content: clip(), dataset: true, want: slices.DeleteFunc(slices.Clone(clipFiles), func(s string) bool { return s == "model.safetensors" })},
	} {
		f := newFakeHub(t)
		f.content, f.dataset = c.content, c.dataset
		client := f.client(t, "HF_TOKEN", token)
		named := id(t, "owner/name")
		named.Dataset = c.dataset
		p, err := client.PlanRepository(t.Context(), named, c.variant, c.include, Hooks{})
		if c.want == nil {
			for _, part := range c.parts {
				if err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: got %v, not a sentence with %q", name, err, part)
				}
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s, err := client.Fetch(t.Context(), p, Hooks{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.holds(t, s, c.want)
		if back, ok := FromFolder(s.Folder); !ok || back != s.ID || back.Dataset != c.dataset {
			t.Errorf("%s: the folder is taken for %+v", name, back)
		}
		if path, err := client.CachedFile(named, c.want[0]); err != nil || path != filepath.Join(s.Folder, filepath.FromSlash(c.want[0])) {
			t.Errorf("%s: %s is found as %s (%v)", name, c.want[0], path, err)
		}
	}
}

func TestDataSetsInTheCache(t *testing.T) {
	f := newFakeHub(t)
	f.content, f.dataset = lists(), true
	c := f.client(t)
	named := id(t, "owner/name")
	named.Dataset = true
	if _, err := c.CachedFile(named, "lines.txt"); err == nil || !strings.Contains(err.Error(), "not in the cache") {
		t.Errorf("error %v", err)
	}
	// What is interrupted goes on where it stopped.
	const list, cutAt = "i2p_benchmark.csv", 100_000
	ctx, cancel := context.WithCancel(t.Context())
	f.file = func(w http.ResponseWriter, r *http.Request, name string) bool {
		if name != list {
			return false
		}
		_, _ = w.Write(f.content[name][:cutAt])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return true
	}
	p, err := c.PlanRepository(ctx, named, FullPrecision, nil, Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Fetch(ctx, p, Hooks{Progress: func(p Progress) {
		if p.File == list && p.Done >= cutAt {
			cancel()
		}
	}}); err == nil {
		t.Fatal("the download was not interrupted")
	}
	f.file = nil
	if p, err = c.PlanRepository(t.Context(), named, FullPrecision, nil, Hooks{}); err != nil || p.Left > p.Bytes-cutAt {
		t.Fatalf("%d of %d bytes are left (%v)", p.Left, p.Bytes, err)
	}
	if _, err = c.Fetch(t.Context(), p, Hooks{}); err != nil {
		t.Fatal(err)
	}
	path, err := c.CachedFile(named, list)
	if err != nil || !strings.Contains(filepath.ToSlash(path), "/datasets--owner--name/snapshots/"+commit+"/") {
		t.Errorf("found as %s (%v)", path, err)
	}
	if runtime.GOOS != "windows" {
		if target, err := os.Readlink(path); err != nil || target != "../../blobs/"+sha(f.content[list]) {
			t.Errorf("the link leads to %s (%v)", target, err)
		}
	}
	for file, part := range map[string]string{"../lines.txt": "leads out", "other.txt": `no file "other.txt"`, "more": "no file"} {
		if _, err := c.CachedFile(named, file); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%s: error %v", file, err)
		}
	}
	if folder, err := c.CachedFile(named, ""); err != nil || folder != filepath.Dir(path) {
		t.Errorf("the folder is %s (%v)", folder, err)
	}
	model := id(t, "owner/name") // of the same name
	if _, err := c.CachedFile(model, list); err == nil {
		t.Error("a data set is taken for a model")
	}
	c.Offline = true
	if _, err := c.PlanRepository(t.Context(), named, FullPrecision, nil, Hooks{}); err == nil || !strings.Contains(err.Error(), "HF_HUB_OFFLINE") {
		t.Errorf("error %v", err)
	}
	c = f.client(t)
	f.api = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("X-Error-Code", "GatedRepo")
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	if _, err := c.PlanRepository(t.Context(), named, FullPrecision, nil, Hooks{}); err == nil || !strings.Contains(err.Error(), "the data set is gated") ||
		!strings.Contains(err.Error(), "/datasets/owner/name and set HF_TOKEN") {
		t.Errorf("error %v", err)
	}
}
