package data

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestReadPrompts(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "list.csv", "case,prompt,evaluation_seed,evaluation_guidance\n0,\"a cat, on\na mat\",4063323427,7.5\n1,a dog,,\n2,a bird,12.0,7\n")
	write(t, dir, "list.jsonl", `{"prompt":"a cat","seed":18446744073709551615,"guidance":"7"}`+"\n\n"+`{"prompt":"a dog","seed":null}`)
	write(t, dir, "list.txt", "\ufeffa cat\r\n\n  a dog  \n")

	csv, err := ReadPrompts(filepath.Join(dir, "list.csv"))
	if err != nil || len(csv) != 3 {
		t.Fatalf("%v, %v", csv, err)
	}
	if p := csv[0]; p.Text != "a cat, on\na mat" || *p.Seed != 4063323427 || *p.Guidance != 7.5 || p.Row != 2 {
		t.Errorf("got %+v", p)
	}
	if p := csv[1]; p.Text != "a dog" || p.Seed != nil || p.Guidance != nil || p.Row != 4 {
		t.Errorf("got %+v", p)
	}
	if p := csv[2]; *p.Seed != 12 || *p.Guidance != 7 {
		t.Errorf("got %+v", p)
	}
	jsonl, err := ReadPrompts(filepath.Join(dir, "list.jsonl"))
	if err != nil || len(jsonl) != 2 || *jsonl[0].Seed != 1<<64-1 || *jsonl[0].Guidance != 7 || jsonl[1].Seed != nil || jsonl[1].Row != 3 {
		t.Errorf("got %+v, %v", jsonl, err)
	}
	txt, err := ReadPrompts(filepath.Join(dir, "list.txt"))
	if err != nil || len(txt) != 2 || txt[0].Text != "a cat" || txt[1].Text != "a dog" || txt[1].Row != 3 {
		t.Errorf("got %+v, %v", txt, err)
	}
}

func TestReadPromptsErrors(t *testing.T) {
	for _, c := range []struct{ name, content, want string }{
		{"a.csv", "text\nx", "column prompt is missing"},
		{"a.csv", "prompt\n", "has no prompts"},
		{"a.txt", "\n \n", "has no prompts"},
		{"a.csv", "prompt,seed\nx,1\n ,2", "line 3: the prompt is missing or blank"},
		{"a.csv", "prompt,seed\nx,-1", `line 2: seed "-1"`},
		{"a.csv", "prompt,seed\nx,1.5", `line 2: seed "1.5"`},
		{"a.csv", "prompt,guidance\nx,NaN", `guidance "NaN"`},
		{"a.csv", "prompt,seed,evaluation_seed\nx,1,2", "both seed and evaluation_seed"},
		{"a.jsonl", `{"prompt":["x"]}`, "must be text"},
		{"a.jsonl", `["x"]`, "line 1: not a JSON object"},
		{"a.yaml", "x", `ends in ".yaml"`},
	} {
		dir := t.TempDir()
		write(t, dir, c.name, c.content)
		path := filepath.Join(dir, c.name)
		if _, err := ReadPrompts(path); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v, want %q", c.content, err, c.want)
		}
	}
	dir := t.TempDir()
	for path, want := range map[string]string{filepath.Join(dir, "none.txt"): "does not exist", dir: "not a regular file"} {
		if _, err := ReadPrompts(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

func FuzzPrompts(f *testing.F) {
	f.Add("x.csv", "prompt,seed,guidance\na,1,7.5\n")
	f.Add("x.jsonl", `{"prompt":"a","evaluation_seed":3}`)
	f.Add("x.txt", "a\nb")
	f.Fuzz(func(t *testing.T, name, content string) {
		prompts, err := parsePrompts(name, []byte(content))
		if err == nil && len(prompts) == 0 {
			t.Error("neither prompts nor an error")
		}
		for _, p := range prompts {
			if strings.TrimSpace(p.Text) == "" || p.Row < 1 {
				t.Errorf("prompt %+v", p)
			}
		}
	})
}
