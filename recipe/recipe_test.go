package recipe

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func decoded(t *testing.T, text string) sample {
	t.Helper()
	var s sample
	if err := DecodeBytes("test.toml", []byte(text), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDecodeEveryKindOfField(t *testing.T) {
	rank := 4
	want := sample{
		Preset: "tiny",
		Seed:   7, Limit: 90 * time.Minute,
		Common: Common{Steps: 40, Half: 3, Small: -128},
		Method: method{
			Lambda: 1, Rank: &rank, Names: []string{"a", "b\n\"c\"", "d]"}, Matrix: [][]float64{{1, 2.5}, nil, {3}},
			Pair: [2]int{1, 2}, Colour: colour{1}, Grid: [][]part{{{1, "x"}}, nil},
		},
		Audit: &audit{
			Attacks: []attack{
				{Name: "lora", Steps: 100, Parts: []part{{1e-5, "f"}, {0, "g"}}},
				{Name: "full", Wait: 90 * time.Second, Parts: []part{{0, "h"}}},
			},
			Refs: []*part{{Weight: 2}},
		},
		Labels: map[string]string{"a b": "c", "plain": "é"},
		Parts:  map[string]part{"first": {Weight: 0.25}},
		Hidden: 0, secret: 0,
	}
	if got := decoded(t, "\ufeff"+whole); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestDefaultsStayUnlessOverwritten(t *testing.T) {
	rank := 2
	s := sample{Seed: 1, Method: method{Lambda: 0.5, Rank: &rank, Names: []string{"x", "y"}, Pair: [2]int{8, 9}}, Parts: map[string]part{"a": {1, "f"}}}
	kept := s
	if err := DecodeBytes("x", []byte("method.rank = 3\nmethod.names = [\"z\"]\nparts.a.weight = 2\nparts.b.weight = 3"), &s); err != nil {
		t.Fatal(err)
	}
	if s.Seed != 1 || s.Method.Lambda != 0.5 || *s.Method.Rank != 3 || !reflect.DeepEqual(s.Method.Names, []string{"z"}) || s.Method.Pair != [2]int{8, 9} {
		t.Errorf("got %+v", s)
	}
	if want := (map[string]part{"a": {2, "f"}, "b": {3, ""}}); !reflect.DeepEqual(s.Parts, want) {
		t.Errorf("got %v, want %v", s.Parts, want)
	}
	if rank != 2 || !reflect.DeepEqual(kept.Parts, map[string]part{"a": {1, "f"}}) || kept.Method.Names[0] != "x" {
		t.Error("decoding changed what the defaults point to")
	}
}

func TestErrorsNameFileLineKeyAndFix(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"seed = 1\n[method]\nlamda = 2", `r.toml, line 3: method.lamda is not a known key; did you mean "lambda"?`},
		{"[metod]\nlambda = 2", `r.toml, line 1: metod is not a known key; did you mean "method"?`},
		{"sede = 1", `line 1: sede is not a known key; did you mean "seed"?`},
		{"[method]\nzzzzzz = 1", `line 2: method.zzzzzz is not a known key; known here: colour, grid, lambda,`},
		{"hidden = 1", "hidden is not a known key"},
		{"secret = 1", "secret is not a known key"},
		{"Seed = 1", `Seed is not a known key; did you mean "seed"?`},
		{"seed = -1", "line 1: seed is -1; it should be 0 or more"},
		{"seed = 1.0", "seed should be a whole number, not the number 1"},
		{"seed = \"1\"", `seed should be a whole number, not the string "1"`},
		{"small = 200", "small is 200, which does not fit in 8 bits"},
		{"half = 1e39", "half is 1e+39; it should be a finite number of 32 bits"},
		{"[method]\nlambda = nan", "line 2: method.lambda is NaN"},
		{"[method]\nlambda = 9007199254740993", "cannot hold exactly"},
		{"[method]\nlambda = [1]", "method.lambda should be a number, not an array"},
		{"half = 16777217", "half is 16777217, which a number of 32 bits"},
		{"verbose = 1", "verbose should be true or false, not the number 1"},
		{"limit = 90", `limit should be a duration such as "90s" or "1h30m", not the number 90`},
		{"limit = \"soon\"", `not the string "soon"`},
		{"method = 1", "method should be a table, not the number 1"},
		{"labels = [1]", "labels should be a table, not an array"},
		{"[labels]\na = 1", "line 2: labels.a should be a string"},
		{"[method]\nnames = \"a\"", `method.names should be an array, not the string "a"`},
		{"[method]\nnames = [\"a\",\n2]", "line 2: method.names[1] should be a string"},
		{"[method]\npair = [1]", "method.pair has 1 elements; it should have 2"},
		{"[method]\ncolour = \"blue\"", `method.colour cannot be "blue": the colours are`},
		{"[method]\ncolour = 1979-05-27", "method.colour should be a string, not a date"},
		{"[[audit.attacks]]\nname = \"a\"\n[[audit.attacks]]\nsteps = \"b\"", "line 4: audit.attacks[1].steps should be a whole number"},
		{"[audit]\nattacks = [{name = \"a\"},\n{nam = \"b\"}]", `line 3: audit.attacks[1].nam is not a known key; did you mean "name"?`},
		{"[audit]\nattacks = {name = \"a\"}", "audit.attacks should be an array, not a table"},
		{"[[audit.attacks]]\n[audit.attacks.wait]\nx = 1", "line 2: audit.attacks[0].wait should be a duration"},
		{"preset = \"x\"\nseed", "line 2: a key must be followed by ="},
		{"seed = 1 2", "line 1: not valid TOML"},
		{"seed = " + strings.Repeat("1", 10_000), "line 1: not valid TOML"},
		{"seed = 1\nseed = 2", "line 2: not valid TOML"},
		{"seed = 99999999999999999999", "line 1: not valid TOML"},
		{"seed = 1\nlimit = \"a\nb\"", "line 2: a string is not closed"},
		{"[method\n", "line 1: a table name must end in ]"},
		{"x = " + strings.Repeat("[", 1000), "nested more than"},
		{"x = " + strings.Repeat("{a=", 1000), "nested more than"},
		{strings.Repeat("a.", 1000) + "b = 1", "more than 32 parts"},
		{strings.Repeat("a", 1000) + " = 1", "more than 128 bytes"},
		{"x = [" + strings.Repeat("[],", 20_000) + "]", "more than 10000 keys"},
		{strings.Repeat("#", maxBytes+1), "r.toml has more than 1048576 bytes"},
		{"seed = \"\xff\"", "is not UTF-8 text"},
	} {
		s := sample{Seed: 5}
		err := DecodeBytes("r.toml", []byte(c.text), &s)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "r.toml") {
			t.Errorf("%.60q:\ngot  %v\nwant %s", c.text, err, c.want)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("%.60q: the message has %d bytes", c.text, len(err.Error()))
		}
		if !reflect.DeepEqual(s, sample{Seed: 5}) {
			t.Errorf("%.60q: the struct was changed to %+v", c.text, s)
		}
	}
}

func TestAllProblemsAreReportedTogether(t *testing.T) {
	var s sample
	err := DecodeBytes("r.toml", []byte("seed = \"x\"\nstepz = 1\n[method]\nlambda = true\n"), &s)
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != 3 {
		t.Fatalf("got %v", err)
	}
	for i, want := range []Problem{{Line: 1, Key: "seed"}, {Line: 2, Key: "stepz"}, {Line: 4, Key: "method.lambda"}} {
		if got := e.Problems[i]; got.Line != want.Line || got.Key != want.Key {
			t.Errorf("problem %d is %v, want line %d of %s", i, got, want.Line, want.Key)
		}
	}
	if !strings.HasPrefix(err.Error(), "r.toml has 3 problems:\n  line 1: seed should") {
		t.Errorf("got %q", err)
	}
	var many strings.Builder
	for i := range 30 {
		fmt.Fprintf(&many, "unknown%d = 1\n", i)
	}
	if err := DecodeBytes("r.toml", []byte(many.String()), &s); err == nil || strings.Count(err.Error(), "\n") != 21 || !strings.Contains(err.Error(), "and 10 more") {
		t.Errorf("got %v", err)
	}
}

func TestValidateIsAskedLast(t *testing.T) {
	var s sample
	text := "[method]\nlambda = -1\n[[audit.attacks]]\n[[audit.attacks]]\nsteps = 501\n"
	err := DecodeBytes("r.toml", []byte(text), &s)
	if err == nil || !strings.Contains(err.Error(), "line 2: method.lambda is negative") || !strings.Contains(err.Error(), "line 5: audit.attacks[1].steps is over 500") {
		t.Errorf("got %v", err)
	}
	if !reflect.DeepEqual(s, sample{}) {
		t.Errorf("the struct was changed to %+v", s)
	}
	err = LoadBytes("r.toml", []byte(text), Layers{Assignments: []string{"method.lambda=1", "audit.attacks[1].steps=500"}}, &s)
	if err != nil || s.Audit.Attacks[1].Steps != 500 {
		t.Errorf("assignments do not count before validation: %v", err)
	}
}

func TestPresets(t *testing.T) {
	presets := map[string][]byte{
		"small":  []byte("seed = 3\nsteps = 10\n[[audit.attacks]]\nname = \"a\"\n[[audit.attacks]]\nname = \"b\"\n"),
		"large":  []byte("seed = 3\nsteps = 1000\n"),
		"broken": []byte("seed = 3\nstep = 1\n"),
		"nested": []byte("preset = \"small\"\n"),
	}
	path := filepath.Join(t.TempDir(), "r.toml")
	decode := func(text string) (sample, error) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		var s sample
		err := DecodeWithPreset(path, presets, &s)
		return s, err
	}
	s, err := decode("preset = \"small\"\nseed = 4\n[[audit.attacks]]\nname = \"c\"\n")
	if err != nil || s.Preset != "small" || s.Seed != 4 || s.Steps != 10 || !reflect.DeepEqual(s.Audit.Attacks, []attack{{Name: "c"}}) {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err := decode("steps = 2"); err != nil || s.Steps != 2 || s.Seed != 0 {
		t.Errorf("without a preset: %+v, %v", s, err)
	}
	for text, want := range map[string]string{
		"\npreset = \"smal\"":   path + `, line 2: preset cannot be "smal"; did you mean "small"?`,
		"preset = \"enormous\"": `known here: broken, large, nested, small`,
		"preset = 1":            "preset should be a string",
		"preset = \"broken\"":   `preset "broken", line 2: step is not a known key; did you mean "steps"?`,
		"preset = \"nested\"":   `preset "nested", line 1: preset cannot be set in a preset`,
	} {
		if _, err := decode(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	s = sample{}
	if err := LoadBytes("r", []byte("preset = \"small\""), Layers{presets, []string{"preset=large"}}, &s); err != nil || s.Steps != 1000 || s.Preset != "large" {
		t.Errorf("the command line does not choose the preset: %+v, %v", s, err)
	}
	var forgetful struct {
		Steps int   `toml:"steps"`
		Seed  int   `toml:"seed"`
		Audit audit `toml:"audit"`
	}
	if err := LoadBytes("r", []byte("preset = \"small\""), Layers{Presets: presets}, &forgetful); err != nil || forgetful.Steps != 10 {
		t.Errorf("a struct without the key preset: %+v, %v", forgetful, err)
	}
	if err := DecodeBytes("r", []byte("preset = \"small\""), &forgetful); err == nil {
		t.Error("preset is accepted where there are no presets")
	}
}

func TestSet(t *testing.T) {
	s := decoded(t, whole)
	before := decoded(t, whole)
	err := Set(&s, "method.lambda=2", "seed = 9", "limit=5s", "method.names=[\"q\"]", "labels.new=a = b", "method.colour=red", "verbose=true",
		"audit.attacks[1].steps=3", "audit.attacks[0].parts[1].weight=0.5", "method.matrix[0][1]=7", "method.pair[0]=-1", "method.rank=8", "parts.first={weight=2}", "preset=\"x y\"")
	if err != nil {
		t.Fatal(err)
	}
	m := s.Method
	if m.Lambda != 2 || s.Seed != 9 || s.Limit != 5*time.Second || m.Names[0] != "q" || s.Labels["new"] != "a = b" || m.Colour.index != 0 || !s.Verbose ||
		s.Audit.Attacks[1].Steps != 3 || s.Audit.Attacks[0].Parts[1].Weight != 0.5 || m.Matrix[0][1] != 7 || m.Pair != [2]int{-1, 2} || *m.Rank != 8 ||
		s.Parts["first"].Weight != 2 || s.Preset != "x y" || s.Audit.Attacks[1].Name != "full" {
		t.Errorf("got %+v", s)
	}
	for _, c := range []struct{ assignment, want string }{
		{"method.lamda=1", `the command line: method.lamda is not a known key; did you mean "lambda"?`},
		{"method.lambda", `"method.lambda" is not an assignment; write KEY=VALUE`},
		{"=1", "is not an assignment"},
		{"a..b=1", "is not an assignment"},
		{"audit.attacks[x].steps=1", "is not an assignment"},
		{"audit.attacks[7].steps=1", "audit.attacks[7] does not exist; audit.attacks has 2 elements"},
		{"method.lambda[0]=1", "method.lambda should be a number, not an array"},
		{"seed=abc", `seed cannot be "abc"; write a TOML value`},
		{"seed=", `seed cannot be ""`},
		{"seed=1\nsteps=2", "seed cannot be"},
		{"method.lambda=true", "method.lambda should be a number, not true"},
		{"limit=soon", "limit should be a duration"},
	} {
		s := decoded(t, whole)
		if err := Set(&s, "seed=100", c.assignment); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.assignment, err, c.want)
		}
		if !reflect.DeepEqual(s, before) {
			t.Errorf("%q: the struct was changed", c.assignment)
		}
	}
	if err := Set(s, "seed=1"); err == nil {
		t.Error("a struct that cannot be changed is accepted")
	}
	if err := Set((*sample)(nil), "seed=1"); err == nil {
		t.Error("a nil pointer is accepted")
	}
}

func TestEncodeReadsBackEqual(t *testing.T) {
	for _, text := range []string{"", whole, "[audit]\n", "[method]\nnames = [\"\\u0000\\u007f\\\\\"]\nlambda = 1e21\n"} {
		s := decoded(t, text)
		out, err := Encode(&s)
		if err != nil {
			t.Fatal(err)
		}
		again := decoded(t, string(out))
		if !reflect.DeepEqual(s, again) {
			t.Errorf("%s\nreads back as %+v, not %+v", out, again, s)
		}
		if twice, err := Encode(again); err != nil || !bytes.Equal(out, twice) {
			t.Errorf("encoded twice:\n%s\n%s%v", out, twice, err)
		}
	}
}

func TestEncodeOverDefaults(t *testing.T) {
	s := sample{Common: Common{Steps: 0}}
	out, err := Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	defaults := sample{Common: Common{Steps: 5}, Method: method{Names: []string{"x"}}, Limit: time.Hour}
	if err := DecodeBytes("x", out, &defaults); err != nil || !reflect.DeepEqual(defaults, s) {
		t.Errorf("zero values do not replace defaults: %+v, %v", defaults, err)
	}
}

func TestEncodeRefusesWhatCannotBeReadBack(t *testing.T) {
	for name, s := range map[string]sample{
		"seed":               {Seed: 1 << 63},
		"method.lambda":      {Method: method{Lambda: math.Inf(1)}},
		"method.matrix":      {Method: method{Matrix: [][]float64{{math.NaN()}}}},
		"preset":             {Preset: "\xff"},
		"audit.refs[0]":      {Audit: &audit{Refs: []*part{nil}}},
		"parts.x.folder":     {Parts: map[string]part{"x": {Folder: "\xff"}}},
		"audit.attacks.name": {Audit: &audit{Attacks: []attack{{Name: "\xff"}}}},
	} {
		if out, err := Encode(s); err == nil || !strings.HasPrefix(err.Error(), name+" ") {
			t.Errorf("%s: got %v\n%s", name, err, out)
		}
	}
	if _, err := Encode(3); err == nil {
		t.Error("a number is accepted")
	}
	var unsupported struct {
		X any      `toml:"x"`
		Y chan int `toml:"y"`
	}
	if _, err := Encode(unsupported); err == nil {
		t.Error("an interface is accepted")
	}
	if err := DecodeBytes("r", []byte("x = 1\ny = 2"), &unsupported); err == nil || !strings.Contains(err.Error(), "x has the Go type interface {}") {
		t.Errorf("got %v", err)
	}
}

func TestDecodeFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{filepath.Join(dir, "none.toml"): "does not exist", dir: "is not a regular file"} {
		var s sample
		if err := Decode(path, &s); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
	path := filepath.Join(dir, "r.toml")
	if err := os.WriteFile(path, []byte(whole), 0o644); err != nil {
		t.Fatal(err)
	}
	var s sample
	if err := Decode(path, &s); err != nil || s.Seed != 7 {
		t.Errorf("got %+v, %v", s, err)
	}
	if err := DecodeBytes[sample]("x", nil, nil); err == nil {
		t.Error("a nil pointer is accepted")
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "", 3}, {"lambda", "lamda", 1}, {"seed", "sede", 1}, {"Seed", "seed", 0}, {"kitten", "sitting", 3}, {"ab", "cd", 2}} {
		if got := distance(c.a, c.b); got != c.want || distance(c.b, c.a) != c.want {
			t.Errorf("%q and %q are %d apart, want %d", c.a, c.b, got, c.want)
		}
	}
}

type animal struct {
	Name string `toml:"name"`
	Legs int    `toml:"legs"`
}

func (a *animal) SetDefaults() { a.Legs = 4 }

func TestElementsBeginWithTheirDefaults(t *testing.T) {
	var zoo struct {
		Animals []animal `toml:"animal"`
	}
	if err := DecodeBytes("zoo.toml", []byte("[[animal]]\nname = \"cat\"\n[[animal]]\nname = \"bird\"\nlegs = 2\n"), &zoo); err != nil {
		t.Fatal(err)
	}
	if len(zoo.Animals) != 2 || zoo.Animals[0].Legs != 4 || zoo.Animals[1].Legs != 2 {
		t.Errorf("the animals are %+v", zoo.Animals)
	}
}

// A resolved recipe says preset = "" where there was none, and can be run again.
func TestAnEmptyPresetIsNone(t *testing.T) {
	var r struct {
		Preset string `toml:"preset"`
		Limit  int    `toml:"limit"`
	}
	layers := Layers{Presets: map[string][]byte{"small": []byte("limit = 1\n")}}
	if err := LoadBytes("r.toml", []byte("preset = \"\"\nlimit = 3\n"), layers, &r); err != nil || r.Limit != 3 {
		t.Errorf("limit %d, %v", r.Limit, err)
	}
}
