package recipe

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Encode writes a struct, or what a pointer to one points at, as TOML that [Decode] reads back into an equal struct; nil
// and empty lists and maps count as equal. The same value always gives the same bytes: fields come in the order of the
// struct, maps sorted by key, and within a table plain values before tables. Nil pointers are left out. Values that TOML
// cannot hold are errors: numbers that are not finite, integers from 2^63, text that is not UTF-8.
func Encode(v any) ([]byte, error) {
	value := reflect.ValueOf(v)
	for value.Kind() == reflect.Pointer && !value.IsNil() {
		value = value.Elem()
	}
	if value.Kind() != reflect.Struct {
		return nil, fmt.Errorf("a recipe is written from a struct, not from %T", v)
	}
	var e encoder
	if err := e.table("", value); err != nil {
		return nil, err
	}
	return e.out.Bytes(), nil
}

type encoder struct{ out bytes.Buffer }

// entry is a key of a table and its value, pointers followed.
type entry struct {
	key   string
	value reflect.Value
}

// entriesOf lists what a struct or map writes.
func entriesOf(v reflect.Value) ([]entry, error) {
	var out []entry
	add := func(key string, value reflect.Value) {
		for value.Kind() == reflect.Pointer && !value.IsNil() {
			value = value.Elem()
		}
		empty := value.Kind() == reflect.Map && value.Len() == 0
		if value.Kind() != reflect.Pointer && !empty {
			out = append(out, entry{key, value})
		}
	}
	if v.Kind() == reflect.Struct {
		for _, f := range fieldsOf(v.Type()) {
			add(f.name, v.FieldByIndex(f.index))
		}
		return out, nil
	}
	if v.Type().Key().Kind() != reflect.String {
		return nil, fmt.Errorf("has the Go type %s, which a recipe cannot hold", v.Type())
	}
	for _, key := range v.MapKeys() {
		add(key.String(), v.MapIndex(key))
	}
	slices.SortFunc(out, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return out, nil
}

// table writes the plain values of a table, then its tables and arrays of tables.
func (e *encoder) table(path string, v reflect.Value) error {
	entries, err := entriesOf(v)
	if err != nil {
		return fmt.Errorf("%s %w", path, err)
	}
	var tables []entry
	for _, x := range entries {
		list := x.value.Kind() == reflect.Slice || x.value.Kind() == reflect.Array
		if isTable(x.value.Type()) || list && x.value.Len() > 0 && isTable(x.value.Type().Elem()) {
			tables = append(tables, x)
			continue
		}
		text, err := inline(x.value)
		if err != nil {
			return fmt.Errorf("%s %w", join(path, x.key), err)
		}
		fmt.Fprintf(&e.out, "%s = %s\n", quoteKey(x.key), text)
	}
	for _, x := range tables {
		inner := join(path, x.key)
		if isTable(x.value.Type()) {
			e.header("[" + inner + "]")
			if err := e.table(inner, x.value); err != nil {
				return err
			}
			continue
		}
		for i := range x.value.Len() {
			v := x.value.Index(i)
			for v.Kind() == reflect.Pointer && !v.IsNil() {
				v = v.Elem()
			}
			if v.Kind() == reflect.Pointer {
				return fmt.Errorf("%s is nil, which a recipe cannot hold", element(inner, i))
			}
			e.header("[[" + inner + "]]")
			if err := e.table(inner, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *encoder) header(header string) {
	if e.out.Len() > 0 {
		e.out.WriteByte('\n')
	}
	e.out.WriteString(header + "\n")
}

// inline writes a value as it stands on the right of =.
func inline(v reflect.Value) (string, error) {
	if t := v.Type(); t == durationType {
		return quote(time.Duration(v.Int()).String()), nil
	} else if isText(t) {
		return inlineText(v)
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return "", errors.New("has a nil element, which a recipe cannot hold")
		}
		return inline(v.Elem())
	case reflect.Bool:
		return strconv.FormatBool(v.Bool()), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.Uint() > math.MaxInt64 {
			return "", fmt.Errorf("is %d, more than the 2^63-1 that TOML can hold", v.Uint())
		}
		return strconv.FormatUint(v.Uint(), 10), nil
	case reflect.Float32, reflect.Float64:
		return inlineFloat(v)
	case reflect.String:
		if !utf8.ValidString(v.String()) {
			return "", fmt.Errorf("is %q, which is not UTF-8 text", v.String())
		}
		return quote(v.String()), nil
	case reflect.Slice, reflect.Array:
		parts := make([]string, v.Len())
		for i := range parts {
			var err error
			if parts[i], err = inline(v.Index(i)); err != nil {
				return "", err
			}
		}
		return "[" + strings.Join(parts, ", ") + "]", nil
	case reflect.Struct, reflect.Map: // inside an array of arrays
		entries, err := entriesOf(v)
		if err != nil {
			return "", err
		}
		parts := make([]string, len(entries))
		for i, x := range entries {
			text, err := inline(x.value)
			if err != nil {
				return "", err
			}
			parts[i] = quoteKey(x.key) + " = " + text
		}
		return "{" + strings.Join(parts, ", ") + "}", nil
	}
	return "", fmt.Errorf("has the Go type %s, which a recipe cannot hold", v.Type())
}

func inlineText(v reflect.Value) (string, error) {
	addressable := reflect.New(v.Type()) // MarshalText may have a pointer receiver
	addressable.Elem().Set(v)
	m, ok := addressable.Interface().(encoding.TextMarshaler)
	if !ok {
		return "", fmt.Errorf("has the Go type %s, which reads text but does not write it", v.Type())
	}
	text, err := m.MarshalText()
	if err != nil {
		return "", fmt.Errorf("cannot be written: %w", err)
	}
	if !utf8.Valid(text) {
		return "", fmt.Errorf("is %q, which is not UTF-8 text", text)
	}
	return quote(string(text)), nil
}

// inlineFloat writes the shortest number that reads back the same, with a point or exponent: 1 is an integer in TOML.
func inlineFloat(v reflect.Value) (string, error) {
	f := v.Float()
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "", fmt.Errorf("is %g; it should be a finite number", f)
	}
	text := strconv.FormatFloat(f, 'g', -1, v.Type().Bits())
	if !strings.ContainsAny(text, ".e") {
		text += ".0"
	}
	return text, nil
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
