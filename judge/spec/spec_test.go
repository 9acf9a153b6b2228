package spec

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/hub"
)

func TestSplit(t *testing.T) {
	kinds := []Kind{{"mini", "mini[:FILE]", "", 0, 1}, {"mhsc", "mhsc:CLIP,HEADS", "", 2, 2}}
	for _, c := range []struct {
		text, name string
		files      []string
		problem    string
	}{
		{"mini", "mini", nil, ""},
		{"mini:a/b:c.safetensors", "mini", []string{"a/b:c.safetensors"}, ""},
		{"mhsc:clip,heads", "mhsc", []string{"clip", "heads"}, ""},
		{"mhsc:clip", "", nil, "mhsc:CLIP,HEADS"},
		{"mhsc:clip,", "", nil, "mhsc:CLIP,HEADS"},
		{"mini:a,b", "", nil, "mini[:FILE]"},
		{"nudenet:x", "", nil, "use one of mini, mhsc"},
		{"", "", nil, "use one of mini, mhsc"},
	} {
		name, files, err := Split("detector", c.text, kinds)
		if c.problem != "" {
			if !errors.As(err, new(*Error)) || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%q: %v", c.text, err)
			}
			continue
		}
		if err != nil || name != c.name || !slices.Equal(files, c.files) {
			t.Errorf("%q: %s %v %v", c.text, name, files, err)
		}
	}
}

func TestLocate(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.MkdirAll("here/clip", 0o755); err != nil {
		t.Fatal(err)
	}
	find := func(id hub.ID, file string) (string, error) {
		switch {
		case id.Name == "none":
			return "", errors.New("it is not there")
		case id.Name == "comma":
			return "/a,b", nil
		}
		return "/cache/" + id.String() + ":" + file, nil
	}
	for text, want := range map[string]string{
		"mini":                             "mini",
		"mhsc:openai/clip,heads":           "mhsc:/cache/openai/clip:,heads",
		"mhsc:openai/clip@v1,here/clip":    "mhsc:/cache/openai/clip@v1:,here/clip",
		"nudenet:owner/net/sub/320n.onnx":  "nudenet:/cache/owner/net:sub/320n.onnx",
		"nudenet:here/320n.onnx":           "nudenet:here/320n.onnx", // a misspelt path
		"onnx:a.onnx,b.txt,pixels=0..1":    "onnx:a.onnx,b.txt,pixels=0..1",
		"nudenet:/models/nudenet/320.onnx": "nudenet:/models/nudenet/320.onnx",
		"nudenet:owner/net/../../x":        "nudenet:owner/net/../../x",
		"mhsc:owner/none,heads":            "there is no owner/none here; on the hub, it is not there",
		"mhsc:owner/comma,heads":           "has a comma",
	} {
		got, err := Locate(text, find)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%s becomes %s", text, got)
		}
	}
}
