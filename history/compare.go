package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/BurntSushi/toml"

	"github.com/resalign/resalign/report"
)

// Comparison sets two runs side by side.
type Comparison struct {
	A       Run          `json:"a"`
	B       Run          `json:"b"`
	Recipe  []Difference `json:"recipe"`  // keys whose values differ, in order
	Figures []Pair       `json:"figures"` // of either run, in the order of the first
}

// Difference is a recipe's key with its values as TOML would write them; "" where a recipe has no such key.
type Difference struct {
	Key string `json:"key"`
	A   string `json:"a"`
	B   string `json:"b"`
}

// Pair is a figure of both runs; nil where a run has none.
type Pair struct {
	Name string  `json:"name"`
	A    *Number `json:"a"`
	B    *Number `json:"b"`
}

// Compare reads two run folders. Where the result went, the key out, is no difference.
func Compare(a, b string) (*Comparison, error) {
	c := &Comparison{Recipe: []Difference{}, Figures: []Pair{}}
	var keys [2]map[string]string
	for i, side := range []struct {
		path string
		run  *Run
	}{{a, &c.A}, {b, &c.B}} {
		run, ok := Read(side.path)
		if !ok {
			if _, err := os.Stat(side.path); err != nil {
				return nil, fmt.Errorf("%s cannot be read: %w; name a run folder", side.path, err)
			}
			return nil, fmt.Errorf("%s is not a run folder: it holds no %s, %s or %s; name one", side.path, runFile, auditFile, resultsFile)
		}
		if run.Problem != "" {
			return nil, errors.New(run.Problem)
		}
		var err error
		if keys[i], err = run.keys(); err != nil {
			return nil, err
		}
		*side.run = run
	}
	all := map[string]bool{}
	for _, side := range keys {
		for key := range side {
			all[key] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if x, y := keys[0][key], keys[1][key]; x != y && key != "out" {
			c.Recipe = append(c.Recipe, Difference{key, x, y})
		}
	}
	c.pair()
	return c, nil
}

func (c *Comparison) pair() {
	place := map[string]int{}
	for side, run := range []Run{c.A, c.B} {
		for _, f := range run.Figures {
			i, known := place[f.Name]
			if !known {
				i = len(c.Figures)
				place[f.Name], c.Figures = i, append(c.Figures, Pair{Name: f.Name})
			}
			value := f.Value
			if side == 0 {
				c.Figures[i].A = &value
			} else {
				c.Figures[i].B = &value
			}
		}
	}
}

// keys are the recipe's values by their full key. An experiment has a recipe for each model, in its results.
func (r *Run) keys() (map[string]string, error) {
	out := map[string]string{}
	if r.Kind != Experiment {
		settings, err := r.settings()
		if err != nil {
			return nil, err
		}
		flatten(out, "", settings)
		return out, nil
	}
	path := filepath.Join(r.Path, resultsFile)
	results, err := report.ReadResults(path)
	if err != nil {
		return nil, err
	}
	for name, text := range results.Recipe {
		settings := map[string]any{}
		if err := toml.Unmarshal([]byte(text), &settings); err != nil {
			return nil, fmt.Errorf("%s: recipe %q is damaged: %w", path, name, err)
		}
		flatten(out, name, settings)
	}
	return out, nil
}

// flatten writes tables as dotted keys and lists of tables with their numbers, counted from 0.
func flatten(into map[string]string, key string, value any) {
	inner := func(name string) string {
		if key == "" {
			return name
		}
		return key + "." + name
	}
	switch value := value.(type) {
	case map[string]any:
		for name, v := range value {
			flatten(into, inner(name), v)
		}
	case []map[string]any:
		for i, v := range value {
			flatten(into, inner(strconv.Itoa(i)), v)
		}
	default:
		text, err := json.Marshal(value)
		if err != nil { // NaN and infinities, which TOML has
			text = fmt.Append(nil, value)
		}
		into[key] = string(text)
	}
}
