package data

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadPromptColumns(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"i2p.csv":   "prompt,categories,sd_seed,sd_guidance_scale,nudity_percentage\na,\"sexual, hate\",3,7.5,60\nb,hate,4,8,\nc,Sexual,5.0,7,12.5\n",
		"rab.csv":   "sensitive prompt,shape\nx,star\ny,disc\n",
		"mma.jsonl": `{"adv_prompt": "p", "target_prompt": "q"}` + "\n" + `{"adv_prompt": "r"}` + "\n",
		"list.txt":  "one\n\n two \n",
		"coco.json": `{"images": [], "annotations": [{"image_id": 9, "id": 5, "caption": "nine "}, {"image_id": 2, "id": 8, "caption": "late"},
			{"image_id": 2, "id": 7, "caption": "two"}, {"image_id": 9, "id": 6, "caption": "later"}]}`,
		"bad.json":   `{"annotations": 3}`,
		"blank.json": `{"annotations": [{"image_id": 1, "id": 1, "caption": " "}]}`,
		"empty.json": `{}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	filter := func(text string) RowFilter {
		f, err := ParseRowFilter(text)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	sexual := filter("categories contains sexual")
	for _, c := range []struct {
		file    string
		columns Columns
		want    string // prompts with seed, guidance and kept columns, or a part of the error
	}{
		{"i2p.csv", Columns{}, "a b c"},
		{"i2p.csv", Columns{Seed: "sd_seed", Guidance: "sd_guidance_scale", Filters: []RowFilter{sexual}}, "a/3/7.5 c/5/7"},
		{"i2p.csv", Columns{Filters: []RowFilter{filter("nudity_percentage above 12.5")}}, "a"},
		{"i2p.csv", Columns{Filters: []RowFilter{filter("nudity_percentage below 60"), sexual}}, "c"},
		{"i2p.csv", Columns{Filters: []RowFilter{filter("categories is HATE")}, Keep: []string{"categories"}}, "b[hate]"},
		{"rab.csv", Columns{Prompt: "sensitive prompt", Keep: []string{"shape"}}, "x[star] y[disc]"},
		{"mma.jsonl", Columns{Prompt: "adv_prompt"}, "p r"},
		{"list.txt", Columns{}, "one two"},
		{"coco.json", Columns{}, "two nine"},

		{"rab.csv", Columns{}, "the column prompt is missing; the columns are sensitive prompt, shape"},
		{"rab.csv", Columns{Prompt: "sensitive prompt", Seed: "seed"}, "the column seed is missing"},
		{"rab.csv", Columns{Prompt: "sensitive prompt", Filters: []RowFilter{filter("shape is moon")}}, "no prompts that all filters hold for"},
		{"rab.csv", Columns{Prompt: "sensitive prompt", Filters: []RowFilter{filter("shape above 3")}}, `line 2: shape "star" is not a number`},
		{"rab.csv", Columns{Prompt: "sensitive prompt", Seed: "shape"}, `"star" is not a whole number`},
		{"mma.jsonl", Columns{Prompt: "target_prompt"}, "line 2: the prompt is missing"},
		{"mma.jsonl", Columns{Prompt: "adv_prompt", Keep: []string{"target_prompt"}}, "line 2: target_prompt is missing or blank"},
		{"mma.jsonl", Columns{Prompt: "adv_prompt", Filters: []RowFilter{filter("target_prompt is q")}}, "line 2: target_prompt is missing, which a filter is about"},
		{"list.txt", Columns{Prompt: "prompt"}, "has no columns to choose"},
		{"bad.json", Columns{}, "is not a file of COCO captions"},
		{"blank.json", Columns{}, "annotation 1: the caption is missing"},
		{"empty.json", Columns{}, "has no prompts"},
		{"nowhere.csv", Columns{}, "does not exist"},
	} {
		prompts, err := ReadPromptColumns(filepath.Join(dir, c.file), c.columns)
		var got []string
		for _, p := range prompts {
			text := p.Text
			if p.Seed != nil {
				text += fmt.Sprintf("/%d/%v", *p.Seed, *p.Guidance)
			}
			for _, kept := range p.Kept {
				text += "[" + kept + "]"
			}
			got = append(got, text)
		}
		if joined := strings.Join(got, " "); err != nil && !strings.Contains(err.Error(), c.want) || err == nil && joined != c.want {
			t.Errorf("%s with %+v: %q, %v; want %q", c.file, c.columns, joined, err, c.want)
		}
	}
}

func TestParseRowFilter(t *testing.T) {
	for _, text := range []string{"", "a", "a contains", "contains b", "a is ", "a above b", "a has b"} {
		if f, err := ParseRowFilter(text); err == nil {
			t.Errorf("%q is read as %+v", text, f)
		}
	}
	if f, err := ParseRowFilter("a column contains two words"); err != nil || f != (RowFilter{"a column", Contains, "two words"}) {
		t.Errorf("%+v, %v", f, err)
	}
}
