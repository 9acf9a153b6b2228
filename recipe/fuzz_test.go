package recipe

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// The scanner may refuse valid TOML for its limits only, and knows the line of every key.
func FuzzScan(f *testing.F) {
	f.Add(whole)
	f.Add("a = \"\"\"x\"\"\"\"\"\nb = '''''''\n'c.d'.\"e\\\"f\" = {x = [1,\n2], y = 1979-05-27 07:32:00}\r\n[a-b] # c\n[[ x . y ]]\n")
	f.Add("a = { b = 1, # c\n c = 2, }\n")
	f.Fuzz(func(t *testing.T, text string) {
		if !utf8.ValidString(text) || strings.HasPrefix(text, "\ufeff") {
			return // dealt with before the scanner runs
		}
		lines, problem := scan(text)
		if problem != nil {
			limits := strings.Contains(problem.Message, "more than")
			if limits || len(text) > 10_000 {
				return
			}
			var table map[string]any
			if _, err := toml.Decode(text, &table); err == nil {
				t.Fatalf("valid TOML is refused: %v", problem)
			}
			return
		}
		var table map[string]any
		if _, err := toml.Decode(text, &table); err != nil {
			return
		}
		for key := range table {
			if strings.ContainsAny(key, "\\\"") || !strings.HasPrefix(quoteKey(key), key[:min(1, len(key))]) {
				continue // written with escapes, perhaps ones that only the parser knows
			}
			if line := lines[quoteKey(key)]; line < 1 || line > strings.Count(text, "\n")+1 {
				t.Errorf("key %q has line %d", key, line)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("[method]\nlambda = -0.0\nnames = []\n[parts.\"\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s sample
		if err := DecodeBytes("r.toml", data, &s); err != nil {
			if !strings.HasPrefix(err.Error(), "r.toml") || !reflect.DeepEqual(s, sample{}) {
				t.Errorf("got %v and %+v", err, s)
			}
			return
		}
		out, err := Encode(s)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		var again sample
		if err := DecodeBytes("again.toml", out, &again); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !reflect.DeepEqual(s, again) {
			t.Fatalf("%+v reads back as %+v\n%s", s, again, out)
		}
		if twice, err := Encode(again); err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("encoding differs the second time: %v", err)
		}
	})
}

func FuzzSet(f *testing.F) {
	f.Add("method.lambda=0.5")
	f.Add("audit.attacks[1].parts[0]={weight=1}")
	f.Fuzz(func(t *testing.T, assignment string) {
		var s, before sample
		if err := DecodeBytes("x", []byte(whole), &s); err != nil {
			t.Fatal(err)
		}
		if err := DecodeBytes("x", []byte(whole), &before); err != nil {
			t.Fatal(err)
		}
		if err := Set(&s, slices.Repeat([]string{assignment}, 2)...); err != nil && !reflect.DeepEqual(s, before) {
			t.Errorf("%q fails and changes the struct", assignment)
		}
	})
}
