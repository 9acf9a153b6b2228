package sd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// jsonConfig reads a component's config.json key by key and keeps account: a value that this program does not
// implement, and a key that it does not know, are errors, so that no setting of a model is silently left out.
type jsonConfig struct {
	path     string
	values   map[string]json.RawMessage
	used     map[string]bool
	problems []string
}

// maxConfigBytes bounds a config.json; real ones have a few kilobytes.
const maxConfigBytes = 1 << 20

func readConfig(path string) (*jsonConfig, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot read the configuration: %w", path, errors.Unwrap(err))
	}
	if info.Size() > maxConfigBytes {
		return nil, fmt.Errorf("%s: a configuration of %d bytes is not plausible (limit %d)", path, info.Size(), maxConfigBytes)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot read the configuration: %w", path, err)
	}
	return parseConfig(path, raw)
}

func parseConfig(path string, raw []byte) (*jsonConfig, error) {
	c := &jsonConfig{path: path, used: map[string]bool{}}
	if err := json.Unmarshal(raw, &c.values); err != nil || c.values == nil {
		return nil, fmt.Errorf("%s: not a JSON object: %v", path, err)
	}
	return c, nil
}

func (c *jsonConfig) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Sprintf(format, args...))
}

// get decodes key into the value that into points to, and reports whether it was there and not null.
func (c *jsonConfig) get(key string, into any) bool {
	c.used[key] = true
	raw, ok := c.values[key]
	if !ok || string(raw) == "null" {
		return false
	}
	if err := json.Unmarshal(raw, into); err != nil {
		c.problem("%s = %s has the wrong type", key, shorten(raw))
		return false
	}
	return true
}

func (c *jsonConfig) int(key string, fallback int) int {
	c.get(key, &fallback)
	return fallback
}

func (c *jsonConfig) float(key string, fallback float64) float64 {
	c.get(key, &fallback)
	return fallback
}

func (c *jsonConfig) bool(key string, fallback bool) bool {
	c.get(key, &fallback)
	return fallback
}

func (c *jsonConfig) string(key, fallback string) string {
	c.get(key, &fallback)
	return fallback
}

// positive reads an integer that must lie in 1 … limit.
func (c *jsonConfig) positive(key string, fallback, limit int) int {
	n := c.int(key, fallback)
	if n < 1 || n > limit {
		c.problem("%s = %d must lie in 1 … %d", key, n, limit)
		return max(1, fallback)
	}
	return n
}

// perLevel reads a key that holds either one integer for all levels or a list with one for each, in 1 … limit.
func (c *jsonConfig) perLevel(key string, levels, fallback, limit int) []int {
	var list []int
	c.used[key] = true
	raw, ok := c.values[key]
	switch {
	case !ok || string(raw) == "null":
		list = slices.Repeat([]int{fallback}, levels)
	case strings.HasPrefix(strings.TrimSpace(string(raw)), "["):
		if !c.get(key, &list) {
			return slices.Repeat([]int{max(1, fallback)}, levels)
		}
		if len(list) != levels {
			c.problem("%s has %d entries for %d levels", key, len(list), levels)
			return slices.Repeat([]int{max(1, fallback)}, levels)
		}
	default:
		list = slices.Repeat([]int{c.int(key, fallback)}, levels)
	}
	for _, n := range list {
		if n < 1 || n > limit {
			c.problem("%s = %s must lie in 1 … %d", key, shorten(raw), limit)
			return slices.Repeat([]int{1}, levels)
		}
	}
	return list
}

// only accepts the listed values of key, given as JSON; the first is what a missing key means. Null stands for the
// default and is always accepted.
func (c *jsonConfig) only(key string, supported ...string) {
	c.used[key] = true
	raw, ok := c.values[key]
	if !ok || string(raw) == "null" {
		return
	}
	var got any
	if json.Unmarshal(raw, &got) == nil {
		for _, s := range supported {
			var want any
			if json.Unmarshal([]byte(s), &want) == nil && fmt.Sprint(got) == fmt.Sprint(want) {
				return
			}
		}
	}
	c.problem("%s = %s is not supported (supported: %s)", key, shorten(raw), strings.Join(supported, ", "))
}

// ignore names keys that do not change what the network computes.
func (c *jsonConfig) ignore(keys ...string) {
	for _, k := range keys {
		c.used[k] = true
	}
}

// finish returns every problem found, unknown keys among them, as one error.
func (c *jsonConfig) finish() error {
	var unknown []string
	for key, raw := range c.values {
		if !c.used[key] && !strings.HasPrefix(key, "_") && string(raw) != "null" {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown {
		c.problem("%s = %s is not known to this program", key, shorten(c.values[key]))
	}
	if len(c.problems) == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s", c.path, strings.Join(c.problems, "; "))
}

func shorten(raw json.RawMessage) string {
	if len(raw) > 60 {
		return string(raw[:57]) + "..."
	}
	return string(raw)
}
