package recipe

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// maxChanges is how many changes an error spells out.
const maxChanges = 8

// Change is a key that has another value now than in a stored recipe. Values are TOML; an empty one was not set.
type Change struct{ Key, Then, Now string }

func (c Change) String() string {
	named := func(value string) string {
		if value == "" {
			return "not set"
		}
		return shorten(value)
	}
	return fmt.Sprintf("%s is %s and was %s", c.Key, named(c.Now), named(c.Then))
}

// Changes lists the keys in which now differs from a stored recipe, in the order in which they are written. defaults are
// the values of the keys that the stored recipe does not name: one that was written before a key existed means that key's
// default. An error says what the struct cannot hold; values are not validated.
func Changes[T any](name string, stored []byte, defaults, now T) ([]Change, error) {
	then := reflect.New(reflect.TypeFor[T]()).Elem()
	then.Set(reflect.ValueOf(defaults))
	file, err := parse(name, stored)
	if err != nil {
		return nil, err
	}
	if err := file.assign(name, then); err != nil {
		return nil, err
	}
	var c comparison
	if err := c.compare("", then, reflect.ValueOf(now)); err != nil {
		return nil, err
	}
	return c.changes, nil
}

// Same is [Changes] as an error that names what differs, or nil.
func Same[T any](name string, stored []byte, defaults, now T) error {
	changes, err := Changes(name, stored, defaults, now)
	if err != nil || len(changes) == 0 {
		return err
	}
	var parts []string
	for _, c := range changes[:min(maxChanges, len(changes))] {
		parts = append(parts, c.String())
	}
	if more := len(changes) - maxChanges; more > 0 {
		parts = append(parts, fmt.Sprintf("%d more keys differ", more))
	}
	return errors.New(strings.Join(parts, "; "))
}

// comparison collects the keys of two values of one type whose written forms differ.
type comparison struct{ changes []Change }

func (c *comparison) compare(path string, then, now reflect.Value) error {
	before, err := entriesOf(then)
	if err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	after, err := entriesOf(now)
	if err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	values := map[string]reflect.Value{}
	for _, x := range before {
		values[x.key] = x.value
	}
	for _, x := range after {
		if err := c.value(join(path, x.key), values[x.key], x.value); err != nil {
			return err
		}
		delete(values, x.key)
	}
	for _, x := range before {
		if _, gone := values[x.key]; gone {
			if err := c.value(join(path, x.key), x.value, reflect.Value{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// value compares two values of a key, of which one may be missing: the zero reflect.Value.
func (c *comparison) value(path string, then, now reflect.Value) error {
	both := then.IsValid() && now.IsValid()
	if both && isTable(now.Type()) {
		return c.compare(path, then, now)
	}
	if list := both && (now.Kind() == reflect.Slice || now.Kind() == reflect.Array); list && isTable(now.Type().Elem()) && then.Len() == now.Len() {
		for i := range now.Len() {
			if err := c.value(element(path, i), deref(then.Index(i)), deref(now.Index(i))); err != nil {
				return err
			}
		}
		return nil
	}
	before, err := written(then)
	if err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	after, err := written(now)
	if err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	if before != after {
		c.changes = append(c.changes, Change{Key: path, Then: before, Now: after})
	}
	return nil
}

// written is a value as TOML; empty for one that is missing.
func written(v reflect.Value) (string, error) {
	if !v.IsValid() {
		return "", nil
	}
	return inline(v)
}

// deref follows pointers; a nil one is a missing value.
func deref(v reflect.Value) reflect.Value {
	for v.IsValid() && v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	return v
}
