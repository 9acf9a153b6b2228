package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// entry is one case of index.json. Paths are relative to the directory.
type entry struct {
	Kind      string `json:"kind"`
	Model     string `json:"model"`     // a diffusers pipeline directory
	Tensors   string `json:"tensors"`   // a safetensors file
	Tokenizer string `json:"tokenizer"` // a tokenizer directory
	Tokens    string `json:"tokens"`    // prompts and their token ids, JSON
}

// file is the one that holds the reference values.
func (e entry) file() string {
	if e.Tensors != "" {
		return e.Tensors
	}
	return e.Tokens
}

func (e entry) field(name string) string {
	return map[string]string{"model": e.Model, "tensors": e.Tensors, "tokenizer": e.Tokenizer, "tokens": e.Tokens}[name]
}

func (r *run) path(name string) string { return filepath.Join(r.dir, filepath.FromSlash(name)) }

// maxJSON bounds index.json and lists of names; a list for the largest UNet has a few hundred kilobytes.
const maxJSON = 16 << 20

// readIndex reads and checks a directory's index.json.
func readIndex(dir string) ([]entry, error) {
	path := filepath.Join(dir, "index.json")
	var index struct {
		Cases []entry `json:"cases"`
	}
	err := readJSON(path, &index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not a reference directory: it holds no index.json that lists the cases", dir)
	}
	if err != nil {
		return nil, err
	}
	if len(index.Cases) == 0 {
		return nil, fmt.Errorf("%s: the list \"cases\" is missing or empty; name at least one", path)
	}
	known := kinds()
	for i, c := range index.Cases {
		k, ok := known[c.Kind]
		if !ok {
			return nil, fmt.Errorf("%s: case %d has the unknown kind %q; use one of %s", path, i+1, c.Kind, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		for _, field := range k.fields {
			switch name := c.field(field); {
			case name == "":
				return nil, fmt.Errorf("%s: case %d (%s) has no field %q; name a file or folder of the directory", path, i+1, c.Kind, field)
			case !filepath.IsLocal(filepath.FromSlash(name)):
				return nil, fmt.Errorf("%s: case %d (%s): %s = %q leads out of the directory; name a file or folder within", path, i+1, c.Kind, field, name)
			}
		}
	}
	return index.Cases, nil
}

func readJSON(path string, into any) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("reference: %w", err)
	}
	if info.Size() > maxJSON {
		return fmt.Errorf("%s: %d bytes are too many for this file (limit %d)", path, info.Size(), maxJSON)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reference: %w", err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s: not the JSON that is expected there: %w", path, err)
	}
	return nil
}
