package recipe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// presetKey is the top-level key that names a preset.
const presetKey = "preset"

// Layers go below and above the file. The order is: what the struct holds, the preset, the file, the assignments.
type Layers struct {
	Presets     map[string][]byte // recipes that preset = "NAME" may name; nil if there are none
	Assignments []string          // as in Set
}

// Decode reads the recipe file path into a struct. The struct is changed only if there is no error; if it is a
// [Validator], its values are checked. Errors about the content are of type [*Error].
func Decode[T any](path string, into *T) error { return Load(path, Layers{}, into) }

// DecodeBytes is [Decode] for a recipe in memory; name stands for the file in errors.
func DecodeBytes[T any](name string, data []byte, into *T) error {
	return LoadBytes(name, data, Layers{}, into)
}

// DecodeWithPreset is [Decode] for a recipe that may name one of the presets with its key preset. The preset is read
// first and the file over it; an array of the file replaces that of the preset.
func DecodeWithPreset[T any](path string, presets map[string][]byte, into *T) error {
	return Load(path, Layers{Presets: presets}, into)
}

// Load is [Decode] with layers below and above the file. The values are checked once all are set.
func Load[T any](path string, layers Layers, into *T) error {
	data, err := readFile(path)
	if err != nil {
		return err
	}
	return load(path, data, layers, into)
}

// LoadBytes is [Load] for a recipe in memory; name stands for the file in errors.
func LoadBytes[T any](name string, data []byte, layers Layers, into *T) error {
	return load(name, data, layers, into)
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the recipe %s does not exist; check its name", path)
	case err != nil:
		return nil, fmt.Errorf("the recipe %s cannot be opened: %w", path, err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("the recipe %s is not a regular file; name a TOML file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the recipe %s cannot be opened: %w", path, err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("the recipe %s cannot be read: %w", path, err)
	}
	return data, nil
}

// document is a parsed recipe.
type document struct {
	table map[string]any
	lines map[string]int
}

func parse(name string, data []byte) (document, error) {
	if len(data) > maxBytes {
		return document{}, fmt.Errorf("%s has more than %d bytes; a recipe is a short TOML file", name, maxBytes)
	}
	text := strings.TrimPrefix(string(data), "\ufeff")
	if !utf8.ValidString(text) {
		return document{}, fmt.Errorf("%s is not UTF-8 text; save it as UTF-8", name)
	}
	lines, problem := scan(text)
	if problem != nil {
		return document{}, failure(name, []Problem{*problem})
	}
	d := document{lines: lines}
	if _, err := toml.Decode(text, &d.table); err != nil {
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			return d, failure(name, []Problem{{Line: syntax.Position.Line, Message: "not valid TOML: " + shorten(syntax.Message)}})
		}
		return d, failure(name, []Problem{{Message: "not valid TOML: " + shorten(err.Error())}})
	}
	return d, nil
}

func load(name string, data []byte, layers Layers, into any) error {
	target, err := structValue(into)
	if err != nil {
		return err
	}
	work := reflect.New(target.Type()).Elem()
	work.Set(target)
	file, err := parse(name, data)
	if err != nil {
		return err
	}
	assignments := slices.Clone(layers.Assignments)
	if layers.Presets != nil {
		if err := layers.choosePreset(name, file, work); err != nil {
			return err
		}
		if !slices.Contains(namesOf(fieldsOf(work.Type())), presetKey) { // the struct need not remember the name
			delete(file.table, presetKey)
			assignments = slices.DeleteFunc(assignments, isPreset)
		}
	}
	if err := file.assign(name, work); err != nil {
		return err
	}
	if err := Set(work.Addr().Interface(), assignments...); err != nil {
		return err
	}
	if v, ok := work.Addr().Interface().(Validator); ok {
		problems := slices.Clone(v.Validate())
		for i, p := range problems {
			problems[i].Line = lineOf(file.lines, p.Key)
		}
		if err := failure(name, problems); err != nil {
			return err
		}
	}
	target.Set(work)
	return nil
}

// assign copies the document into a struct.
func (d document) assign(name string, target reflect.Value) error {
	a := assigner{lines: d.lines}
	a.assignStruct("", d.table, target)
	return failure(name, a.problems)
}

func isPreset(assignment string) bool {
	key, _, _ := strings.Cut(assignment, "=")
	return strings.TrimSpace(key) == presetKey
}

// choosePreset reads the preset that the last assignment or else the file names, if any, into target.
func (l Layers) choosePreset(name string, file document, target reflect.Value) error {
	source, line := name, file.lines[presetKey]
	value, ok := file.table[presetKey]
	for _, assignment := range l.Assignments {
		if isPreset(assignment) {
			_, chosen, _ := strings.Cut(assignment, "=")
			source, line, ok = commandLine, 0, true
			value = strings.Trim(strings.TrimSpace(chosen), `"'`)
		}
	}
	if !ok {
		return nil
	}
	fail := func(format string, args ...any) error {
		return failure(source, []Problem{{Line: line, Key: presetKey, Message: fmt.Sprintf(format, args...)}})
	}
	chosen, isText := value.(string)
	if !isText {
		return fail("should be a string, not %s", describe(value))
	}
	if chosen == "" { // what a resolved recipe says that had none
		return nil
	}
	data, known := l.Presets[chosen]
	if !known {
		return fail("cannot be %q; %s", chosen, suggest(chosen, slices.Sorted(maps.Keys(l.Presets))))
	}
	label := fmt.Sprintf("preset %q", chosen)
	preset, err := parse(label, data)
	if err != nil {
		return err
	}
	if _, nested := preset.table[presetKey]; nested {
		return failure(label, []Problem{{Line: preset.lines[presetKey], Key: presetKey, Message: "cannot be set in a preset; copy the values instead"}})
	}
	return preset.assign(label, target)
}
