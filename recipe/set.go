package recipe

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// commandLine names the source of assignments in errors.
const commandLine = "the command line"

// Set carries out assignments such as method.lambda=0.5 or audit.attacks[2].steps=100 on a struct, as strictly as a
// file is read. Values are TOML; text and durations may go without quotation marks. The struct is changed only if all
// succeed. Set does not validate: [Load] does once every layer is in place.
func Set(into any, assignments ...string) error {
	target, err := structValue(into)
	if err != nil {
		return err
	}
	work := reflect.New(target.Type()).Elem()
	work.Set(target)
	var problems []Problem
	for _, assignment := range assignments {
		key, text, ok := strings.Cut(assignment, "=")
		steps, valid := splitPath(strings.TrimSpace(key))
		if !ok || !valid {
			problems = append(problems, Problem{Message: fmt.Sprintf("%q is not an assignment; write KEY=VALUE, such as method.lambda=0.5", assignment)})
			continue
		}
		value, err := parseValue(text, leafType(work.Type(), steps))
		if err != nil {
			problems = append(problems, Problem{Key: strings.TrimSpace(key), Message: err.Error()})
			continue
		}
		for _, step := range slices.Backward(steps) {
			if step.name != "" {
				value = map[string]any{step.name: value}
			} else {
				value = changedElement{step.index, value}
			}
		}
		a := assigner{}
		a.assign("", value, work)
		problems = append(problems, a.problems...)
	}
	if err := failure(commandLine, problems); err != nil {
		return err
	}
	target.Set(work)
	return nil
}

// step leads from a value to one inside: a key of a table or, without a name, an element of an array.
type step struct {
	name  string
	index int
}

// splitPath reads a path such as audit.attacks[2].steps.
func splitPath(path string) ([]step, bool) {
	var steps []step
	if len(path) > maxDepth*maxKeyBytes {
		return nil, false
	}
	for part := range strings.SplitSeq(path, ".") {
		name, indices, indexed := strings.Cut(part, "[")
		if name == "" || strings.ContainsAny(name, "] \t\n\"'") {
			return nil, false
		}
		steps = append(steps, step{name: name})
		if !indexed {
			continue
		}
		if !strings.HasSuffix(indices, "]") {
			return nil, false
		}
		for index := range strings.SplitSeq(strings.TrimSuffix(indices, "]"), "][") {
			i, err := strconv.ParseUint(index, 10, 31)
			if err != nil {
				return nil, false
			}
			steps = append(steps, step{index: int(i)})
		}
	}
	return steps, len(steps) <= maxDepth
}

// leafType is the type of the value at a path, or nil if the path leads nowhere.
func leafType(t reflect.Type, steps []step) reflect.Type {
	for _, s := range steps {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case s.name == "" && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array):
			t = t.Elem()
		case s.name != "" && t.Kind() == reflect.Map:
			t = t.Elem()
		case s.name != "" && t.Kind() == reflect.Struct:
			fields := fieldsOf(t)
			i := slices.IndexFunc(fields, func(f field) bool { return f.name == s.name })
			if i < 0 {
				return nil
			}
			t = t.FieldByIndex(fields[i].index).Type
		default:
			return nil
		}
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// parseValue reads the right-hand side of an assignment to a value of type t, which is nil for an unknown key.
func parseValue(text string, t reflect.Type) (any, error) {
	trimmed := strings.TrimSpace(text)
	plain := t == nil || t.Kind() == reflect.String || t == durationType || isText(t)
	if plain && !strings.HasPrefix(trimmed, `"`) && !strings.HasPrefix(trimmed, "'") {
		return text, nil
	}
	const key = "value"
	d, err := parse(commandLine, []byte(key+" = "+trimmed))
	if value, ok := d.table[key]; err == nil && ok && len(d.table) == 1 {
		return value, nil
	}
	return nil, fmt.Errorf("cannot be %q; write a TOML value, such as 0.5, true or [1, 2]", text)
}
