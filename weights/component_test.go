package weights

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// put writes a safetensors file with one F32 tensor for each name.
func put(t *testing.T, dir, file string, names ...string) {
	t.Helper()
	var tensors []*Tensor
	for i, name := range names {
		tensors = append(tensors, NewFloat32(name, []int{1}, []float32{float32(i)}))
	}
	if err := Write(filepath.Join(dir, file), tensors, nil); err != nil {
		t.Fatal(err)
	}
}

func putText(t *testing.T, dir, file, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenComponentFollowsItsOrder(t *testing.T) {
	torch, err := os.ReadFile("testdata/torch.pt")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// From the last choice to the first: every new file takes precedence over those before.
	for _, file := range slices.Backward(componentFiles("model")) {
		switch {
		case strings.HasSuffix(file, ".bin"):
			putText(t, dir, file, string(torch))
		case strings.HasSuffix(file, ".json"):
			shard := "shard-of-" + strings.TrimSuffix(file, ".json")
			put(t, dir, shard, "in "+file)
			putText(t, dir, file, `{"metadata":{"total_size":4,"deep":[[{}]]},"weight_map":{"in `+file+`":"`+shard+`"}}`+"\n")
		default:
			put(t, dir, file, "in "+file)
		}
		source, err := OpenComponent(dir, "model")
		if err != nil {
			t.Fatal(err)
		}
		name := source.Names()[0]
		switch {
		case strings.HasSuffix(file, ".bin"):
			if source.Path(name) != filepath.Join(dir, file) {
				t.Errorf("%s: opened %s", file, source.Path(name))
			}
		case name != "in "+file:
			t.Errorf("%s: found %q", file, name)
		}
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenComponentReadsShards(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "m-1.safetensors", "a", "b")
	put(t, dir, "m-2.safetensors", "c")
	putText(t, dir, "m.safetensors.index.json", `{"weight_map":{"a":"m-1.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}`)
	source, err := OpenComponent(dir, "m")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if got := source.Names(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("names %q", got)
	}
	if got := source.Path("c"); got != filepath.Join(dir, "m-2.safetensors") || source.Path("d") != "" {
		t.Errorf("c is in %q", got)
	}
	b, err := source.Tensor("b")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := b.Float32(); err != nil || v[0] != 1 {
		t.Errorf("b is %v, %v", v, err)
	}
	if _, err := source.Tensor("d"); err == nil || !strings.Contains(err.Error(), "index.json") {
		t.Errorf("missing tensor: %v", err)
	}
}

func TestOpenComponentRefusesBadIndexes(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "s.safetensors", "a", "b")
	put(t, filepath.Dir(dir), "outside.safetensors", "a")
	for index, want := range map[string]string{
		`{"weight_map":{"a":"../outside.safetensors"}}`:            "not a plain file name",
		`{"weight_map":{"a":"/etc/passwd"}}`:                       "not a plain file name",
		`{"weight_map":{"a":"sub/s.safetensors"}}`:                 "not a plain file name",
		`{"weight_map":{"a":"..\\s.safetensors"}}`:                 "not a plain file name",
		`{"weight_map":{"a":""}}`:                                  "not a plain file name",
		`{"weight_map":{"a":"."}}`:                                 "not a plain file name",
		`{"weight_map":{"a":3}}`:                                   "text is expected",
		`{"weight_map":{"a":"s.safetensors","a":"s.safetensors"}}`: "occurs twice",
		`{"weight_map":{"a":"s.safetensors"}} x`:                   "do not belong",
		`{"weight_map":[]}`:                                        "object is expected",
		`{"metadata":{}}`:                                          "weight_map is missing",
		`{"metadata":[`:                                            "ends too early",
		``:                                                         "ends too early",
		"{\"weight_map\":{\"\xff\":\"s.safetensors\"}}":            "not valid UTF-8",
		`{"weight_map":{"a":"absent.safetensors"}}`:                "absent.safetensors",
		`{"weight_map":{"a":"s.safetensors"}}`:                     "only there: b (s.safetensors)",
		`{"weight_map":{"a":"s.safetensors","b":"s.safetensors","c":"s.safetensors"}}`: "missing there: c (s.safetensors)",
	} {
		putText(t, dir, "m.safetensors.index.json", index)
		_, err := OpenComponent(dir, "m")
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error %v does not name the file and %q", index, err, want)
		}
	}
}

func TestOpenComponentSaysWhatItLookedFor(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenComponent(dir, "model")
	for _, file := range componentFiles("model") {
		if err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("error %v does not name %s", err, file)
		}
	}
	for _, base := range []string{"", ".", "..", "../model", "a/b", `a\b`, "/model"} {
		if _, err := OpenComponent(dir, base); err == nil || !strings.Contains(err.Error(), "not a file name") {
			t.Errorf("base %q: %v", base, err)
		}
	}
	if _, err := OpenComponent(filepath.Join(dir, "absent"), "model"); err == nil {
		t.Error("a folder that does not exist was opened")
	}
	put(t, dir, "model.safetensors", "a")
	if _, err := OpenComponent(filepath.Join(dir, "model.safetensors"), "model"); err == nil || !strings.Contains(err.Error(), "not a folder") {
		t.Errorf("a file as a folder: %v", err)
	}
}
