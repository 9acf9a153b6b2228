package recipe

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"time"
)

// assigner copies parsed TOML into Go values and collects what does not fit. What it changes it copies first, so that a
// struct filled with problems can be thrown away without a trace in the original.
type assigner struct {
	problems []Problem
	lines    map[string]int
}

func (a *assigner) fail(path, format string, args ...any) {
	a.problems = append(a.problems, Problem{Line: lineOf(a.lines, path), Key: path, Message: fmt.Sprintf(format, args...)})
}

// mismatch reports a value of the wrong kind.
func (a *assigner) mismatch(path, expected string, value any) {
	a.fail(path, "should be %s, not %s", expected, describe(value))
}

// assign stores the TOML value in target. Values are what the parser gives: string, int64, float64, bool, time.Time,
// []any, []map[string]any and map[string]any.
func (a *assigner) assign(path string, value any, target reflect.Value) {
	t := target.Type()
	switch {
	case t.Kind() == reflect.Pointer:
		fresh := reflect.New(t.Elem())
		if !target.IsNil() {
			fresh.Elem().Set(target.Elem())
		}
		a.assign(path, value, fresh.Elem())
		target.Set(fresh)
	case t == durationType:
		a.assignDuration(path, value, target)
	case isText(t):
		s, ok := value.(string)
		if !ok {
			a.mismatch(path, "a string", value)
		} else if err := target.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			a.fail(path, "cannot be %q: %v", shorten(s), err)
		}
	default:
		a.assignKind(path, value, target)
	}
}

func (a *assigner) assignKind(path string, value any, target reflect.Value) {
	switch t := target.Type(); t.Kind() {
	case reflect.Struct:
		if table, ok := value.(map[string]any); ok {
			a.assignStruct(path, table, target)
		} else {
			a.mismatch(path, "a table", value)
		}
	case reflect.Map:
		a.assignMap(path, value, target)
	case reflect.Slice, reflect.Array:
		a.assignList(path, value, target)
	case reflect.String:
		if s, ok := value.(string); ok {
			target.SetString(s)
		} else {
			a.mismatch(path, "a string", value)
		}
	case reflect.Bool:
		if b, ok := value.(bool); ok {
			target.SetBool(b)
		} else {
			a.mismatch(path, "true or false", value)
		}
	case reflect.Float32, reflect.Float64:
		a.assignFloat(path, value, target)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if n, ok := value.(int64); !ok {
			a.mismatch(path, "a whole number", value)
		} else if target.OverflowInt(n) {
			a.fail(path, "is %d, which does not fit in %d bits", n, t.Bits())
		} else {
			target.SetInt(n)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if n, ok := value.(int64); !ok {
			a.mismatch(path, "a whole number", value)
		} else if n < 0 {
			a.fail(path, "is %d; it should be 0 or more", n)
		} else if target.OverflowUint(uint64(n)) {
			a.fail(path, "is %d, which does not fit in %d bits", n, t.Bits())
		} else {
			target.SetUint(uint64(n))
		}
	default:
		a.fail(path, "has the Go type %s, which a recipe cannot hold", t)
	}
}

func (a *assigner) assignDuration(path string, value any, target reflect.Value) {
	const expected = `a duration such as "90s" or "1h30m"`
	s, ok := value.(string)
	if !ok {
		a.mismatch(path, expected, value)
		return
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		a.mismatch(path, expected, value)
		return
	}
	target.SetInt(int64(d))
}

// assignFloat takes whole numbers too, as long as none of their digits is lost.
func (a *assigner) assignFloat(path string, value any, target reflect.Value) {
	var f float64
	switch v := value.(type) {
	case float64:
		f = v
	case int64:
		f = float64(v)
		if exact := map[int]int64{32: 1 << 24, 64: 1 << 53}[target.Type().Bits()]; v > exact || v < -exact {
			a.fail(path, "is %d, which a number of %d bits with a fraction cannot hold exactly; write it as %g", v, target.Type().Bits(), f)
			return
		}
	default:
		a.mismatch(path, "a number", value)
		return
	}
	if math.IsNaN(f) || math.IsInf(f, 0) || target.OverflowFloat(f) {
		a.fail(path, "is %g; it should be a finite number of %d bits", f, target.Type().Bits())
		return
	}
	target.SetFloat(f)
}

func (a *assigner) assignStruct(path string, table map[string]any, target reflect.Value) {
	fields := fieldsOf(target.Type())
	for _, key := range sortedKeys(table) {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == key })
		if i < 0 {
			a.fail(join(path, key), "is not a known key; %s", suggest(key, namesOf(fields)))
			continue
		}
		a.assign(join(path, key), table[key], target.FieldByIndex(fields[i].index))
	}
}

// assignMap adds to the keys that the map has already.
func (a *assigner) assignMap(path string, value any, target reflect.Value) {
	t := target.Type()
	table, ok := value.(map[string]any)
	if t.Key().Kind() != reflect.String {
		a.fail(path, "has the Go type %s, which a recipe cannot hold", t)
		return
	}
	if !ok {
		a.mismatch(path, "a table", value)
		return
	}
	merged := reflect.MakeMap(t)
	for _, key := range target.MapKeys() {
		merged.SetMapIndex(key, target.MapIndex(key))
	}
	for _, key := range sortedKeys(table) {
		name := reflect.ValueOf(key).Convert(t.Key())
		v := reflect.New(t.Elem()).Elem()
		if old := merged.MapIndex(name); old.IsValid() {
			v.Set(old)
		}
		a.assign(join(path, key), table[key], v)
		merged.SetMapIndex(name, v)
	}
	if merged.Len() > 0 { // as with lists, empty and nil are one
		target.Set(merged)
	}
}

// assignList replaces a list as a whole. An empty one becomes nil: TOML cannot tell the two apart, and one form lets
// recipes be compared.
func (a *assigner) assignList(path string, value any, target reflect.Value) {
	t := target.Type()
	if change, ok := value.(changedElement); ok {
		a.assignElement(path, change, target)
		return
	}
	list := reflect.ValueOf(value)
	if list.Kind() != reflect.Slice {
		a.mismatch(path, "an array", value)
		return
	}
	var fresh reflect.Value
	switch {
	case t.Kind() == reflect.Array:
		if list.Len() != t.Len() {
			a.fail(path, "has %d elements; it should have %d", list.Len(), t.Len())
			return
		}
		fresh = reflect.New(t).Elem()
	case list.Len() == 0:
		target.SetZero()
		return
	default:
		fresh = reflect.MakeSlice(t, list.Len(), list.Len())
	}
	for i := range list.Len() {
		if d, ok := fresh.Index(i).Addr().Interface().(Defaulter); ok {
			d.SetDefaults()
		}
		a.assign(element(path, i), list.Index(i).Interface(), fresh.Index(i))
	}
	target.Set(fresh)
}

// Defaulter is a list's element that does not begin empty: SetDefaults is called before what a recipe says is put over it.
type Defaulter interface{ SetDefaults() }

// changedElement stands for a list of which one element is set, as in attacks[2].steps=5; the rest stays.
type changedElement struct {
	index int
	value any
}

func (a *assigner) assignElement(path string, change changedElement, target reflect.Value) {
	if change.index >= target.Len() {
		a.fail(element(path, change.index), "does not exist; %s has %d elements, counted from 0", path, target.Len())
		return
	}
	fresh := target
	if target.Kind() == reflect.Slice {
		fresh = reflect.MakeSlice(target.Type(), target.Len(), target.Len())
		reflect.Copy(fresh, target)
	}
	a.assign(element(path, change.index), change.value, fresh.Index(change.index))
	target.Set(fresh)
}

// describe names a TOML value for people.
func describe(value any) string {
	switch v := value.(type) {
	case string:
		if len(v) > 40 {
			return "a string"
		}
		return fmt.Sprintf("the string %q", v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return fmt.Sprint(v)
	case time.Time:
		return "a date"
	case map[string]any:
		return "a table"
	case []map[string]any:
		return "an array of tables"
	case changedElement:
		return "an array"
	}
	return "an array"
}

func sortedKeys(table map[string]any) []string {
	keys := make([]string, 0, len(table))
	for k := range table {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
