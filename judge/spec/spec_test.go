package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"
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
