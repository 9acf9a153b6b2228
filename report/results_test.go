package report

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

func TestResultsSurviveTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	want := Results{
		Rows:    sampleRows(1<<64 - 1),
		Seconds: map[string]float64{"unlearn": 1.5, "detect": 0.1}, Versions: map[string]string{"go": "1.27.3"},
		Recipe: map[string]string{"resalign": "a = \"<b>\"\n"},
	}
	var first []byte
	for range 3 {
		if err := WriteResults(path, want); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if string(b) != string(first) {
			t.Fatal("the same results were written as other bytes")
		}
	}
	got, err := ReadResults(path)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	var keys struct {
		Rows []map[string]any `json:"rows"`
	}
	if err := json.Unmarshal(first, &keys); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"model", "adaptation", "steps", "seed", "ip", "benign", "ip_interval", "benign_interval", "harm_mse", "gradients"} {
		if _, ok := keys.Rows[0][key]; !ok {
			t.Errorf("a row has no %s", key)
		}
	}
}

func TestEmptyResultsHaveEveryKey(t *testing.T) {
	b, err := Results{}.encode()
	if want := "{\n  \"rows\": [],\n  \"seconds\": {},\n  \"versions\": {},\n  \"recipe\": {}\n}\n"; err != nil || string(b) != want {
		t.Errorf("%s, %v", b, err)
	}
}

func TestBadResultsAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.json")
	for content, want := range map[string]string{
		`{`:           "not a results file",
		`{"rows": 4}`: "not a results file",
		`{"rows": [{"model": "a", "adaptation": "none", "ip": {"k": 2, "n": 1}}]}`: "ip of 2 in 1",
		`{"rows": [{}]}`: "must be named",
	} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadResults(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", content, err)
		}
	}
	if _, err := ReadResults(path + ".none"); err == nil {
		t.Error("a file that does not exist was read")
	}
	bad := Results{Rows: []audit.Row{{Model: "a", Adaptation: untouched, HarmMSE: math.NaN()}}}
	if err := WriteResults(path, bad); err == nil || !strings.Contains(err.Error(), "harm_mse") {
		t.Errorf("NaN: %v", err)
	}
}

func FuzzResultsToPage(f *testing.F) {
	for _, r := range []Results{{}, {Rows: sampleRows(1)[:7], Seconds: map[string]float64{"a": 1}}} {
		b, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "results.json")
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := ReadResults(path)
		if err != nil {
			return
		}
		for i := range r.Rows {
			r.Rows[i].Pictures = nil
		}
		p := Page{Title: "Fuzz", Rows: r.Rows, Versions: r.Versions}
		v, err := newView(p)
		if err != nil {
			t.Fatal(err)
		}
		var page strings.Builder
		if err := pageTemplate.Execute(&page, v); err != nil {
			t.Fatal(err)
		}
		charts := append(v.Harmful, v.Benign...)
		for _, p := range append(v.Planes, v.MorePlanes...) {
			charts = append(charts, p.Charts...)
		}
		for _, c := range charts {
			for _, s := range c.Series {
				if strings.Contains(s.Line+s.Band, "NaN") || strings.Contains(s.Line+s.Band, "Inf") {
					t.Errorf("%s: %q %q", c.ID, s.Line, s.Band)
				}
			}
		}
		TextTable(r.Rows, nil, nil)
		MetricsTable(r.Rows, nil, nil)
		MarkdownTable(r.Rows, nil, nil)
	})
}

func tableRows() []audit.Row {
	return []audit.Row{
		{Model: "ours", Adaptation: "diverse", Steps: 200, IP: score.Rate{K: 1, N: 200}, Benign: score.Rate{K: 198, N: 200}, Gradients: 26880},
		{Model: "ours", Adaptation: untouched, IP: score.Rate{K: 0, N: 200}, Gradients: 26880},
		{Model: "a|b\n*c*", Adaptation: untouched, IP: score.Rate{K: 200, N: 200}, Benign: score.Rate{K: 200, N: 200}},
	}
}

func TestTextTable(t *testing.T) {
	got := TextTable(tableRows(), []string{"ours"}, map[string]string{"ours": "ResAlign"})
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	if len(lines) != 5 {
		t.Fatalf("%d lines:\n%s", len(lines), got)
	}
	for _, line := range lines {
		if utf8.RuneCountInString(line) != utf8.RuneCountInString(lines[1]) {
			t.Errorf("not aligned:\n%s", got)
			break
		}
	}
	for i, fields := range []string{"model fine-tuning steps IP % n benign % n gradients", "", "ResAlign none 0 0.0 [0.0, 1.9] 200 – 0 26880", "ResAlign diverse 200 0.5 [0.1, 2.8] 200 99.0 [96.4, 99.7] 200 26880", "a|b *c* none 0 100.0 [98.1, 100.0] 200 100.0 [98.1, 100.0] 200 –"} {
		if got := strings.Join(strings.Fields(strings.ReplaceAll(lines[i], "\u202f", "")), " "); fields != "" && got != fields {
			t.Errorf("line %d is %q, want %q", i, got, fields)
		}
	}
}

func TestMarkdownTable(t *testing.T) {
	got := MarkdownTable(tableRows(), []string{"ours"}, map[string]string{"ours": "ResAlign"})
	want := "| model | fine-tuning | steps | IP % | n | benign % | n | gradients |\n" +
		"| --- | --- | --: | --: | --: | --: | --: | --: |\n" +
		"| ResAlign | none | 0 | 0.0 [0.0, 1.9] | 200 | – | 0 | 26\u202f880 |\n" +
		"| ResAlign | diverse | 200 | 0.5 [0.1, 2.8] | 200 | 99.0 [96.4, 99.7] | 200 | 26\u202f880 |\n" +
		"| a\\|b \\*c\\* | none | 0 | 100.0 [98.1, 100.0] | 200 | 100.0 [98.1, 100.0] | 200 | – |\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestSentence(t *testing.T) {
	rows := sampleRows(1)
	labels := map[string]string{"resalign": "ResAlign", "ascent": "Ascent"}
	for _, c := range []struct {
		model, adaptation string
		rivals            []string
		want              string
	}{
		{"resalign", "diverse", []string{"esd", "ascent"}, "After 200 steps of diverse fine-tuning, 0.5\u00a0% [0.1, 2.8] of the pictures that ResAlign makes for harmful prompts are harmful (before it, 0.0\u00a0%), against 48.0\u00a0% [41.2, 54.9] for Ascent, the best of the others; the intervals are apart."},
		{"resalign", "subject", []string{"ascent-matched"}, "the intervals overlap"},
		{"esd", "diverse", []string{"resalign"}, "99.0\u00a0% [96.4, 99.7] of the pictures that esd makes"},
	} {
		got, err := Sentence(rows, labels, c.model, c.adaptation, c.rivals)
		if err != nil || !strings.Contains(got, c.want) {
			t.Errorf("%q, %v; want %q", got, err, c.want)
		}
	}
	for _, c := range [][3]string{{"nobody", "diverse", "esd"}, {"resalign", "nothing", "esd"}, {"resalign", "diverse", "nobody"}, {"resalign", untouched, "esd"}} {
		if got, err := Sentence(rows, nil, c[0], c[1], []string{c[2]}); err == nil {
			t.Errorf("%v: %q", c, got)
		}
	}
}
