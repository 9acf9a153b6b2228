package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/resalign/resalign/bench"
)

const (
	golden    = "../../testdata/golden"
	tinyModel = golden + "/tiny-sd"
	examples  = "../../examples/tiny"
)

// command carries out a command line.
func command(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, &o, &e)
	return code, o.String(), e.String()
}

// succeed carries out a command line that must not fail.
func succeed(t *testing.T, args ...string) (out string) {
	t.Helper()
	code, out, errOut := command(t, args...)
	if code != exitDone {
		t.Fatalf("resalign %s: exit code %d:\n%s", strings.Join(args, " "), code, errOut)
	}
	return out
}

// fail carries out a command line that must end with the given code and an error that contains all of the parts.
func fail(t *testing.T, code int, args []string, parts ...string) {
	t.Helper()
	got, out, errOut := command(t, args...)
	if got != code {
		t.Errorf("resalign %s: exit code %d instead of %d:\n%s%s", strings.Join(args, " "), got, code, out, errOut)
	}
	if !strings.HasPrefix(lastError(errOut), "resalign: ") || strings.Contains(errOut, "Usage:") {
		t.Errorf("resalign %s: the error is not one sentence behind \"resalign: \":\n%s", strings.Join(args, " "), errOut)
	}
	for _, part := range parts {
		if !strings.Contains(errOut, part) {
			t.Errorf("resalign %s: no %q in the error:\n%s", strings.Join(args, " "), part, errOut)
		}
	}
}

// lastError is what was written from the last "resalign: " at the beginning of a line on.
func lastError(errOut string) string {
	if i := strings.LastIndex("\n"+errOut, "\nresalign: "); i >= 0 {
		return errOut[i:]
	}
	return ""
}

// decode reads a command's JSON, which must be one value and nothing else.
func decode[T any](t *testing.T, out string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("not one JSON object: %v\n%s", err, out)
	}
	return v
}

func read(t *testing.T, parts ...string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// truncatedPictures is a copy of a data set in which one picture is cut short.
func truncatedPictures(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "people")
	if err := os.CopyFS(dir, os.DirFS(examples+"/people")); err != nil {
		t.Fatal(err)
	}
	whole := read(t, dir, "02.png")
	write(t, filepath.Join(dir, "02.png"), string(whole[:len(whole)/2]))
	return dir
}

func TestHelp(t *testing.T) {
	root := newRoot()
	commands := root.Commands()
	if len(commands) < 9 {
		t.Fatalf("only %d commands", len(commands))
	}
	for _, cmd := range commands {
		out := succeed(t, cmd.Name(), "--help")
		for _, part := range []string{"Usage:", "Examples:", "resalign " + cmd.Name(), "--json"} {
			if !strings.Contains(out, part) {
				t.Errorf("%s --help has no %q:\n%s", cmd.Name(), part, out)
			}
		}
		if !strings.Contains(cmd.Example, "resalign "+cmd.Name()) {
			t.Errorf("%s has no example", cmd.Name())
		}
	}
	if out := succeed(t); !strings.Contains(out, "Available Commands:") {
		t.Errorf("without a command there is no list of them:\n%s", out)
	}
	if out := succeed(t, "completion", "bash"); !strings.Contains(out, "resalign") {
		t.Error("no completion for bash")
	}
}

func TestUsageErrors(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	tune := func(args ...string) []string {
		return append([]string{"finetune", "--model", tinyModel, "--data", examples + "/people", "--out", out}, args...)
	}
	picture := func(args ...string) []string {
		return append([]string{"generate", "--model", tinyModel, "--out", out}, args...)
	}
	for _, c := range []struct {
		args  []string
		parts []string
	}{
		{[]string{"unlern"}, []string{`no command "unlern"`, "did you mean unlearn?"}},
		{[]string{"unlearn"}, []string{"the recipe", "is missing", "unlearn --help"}},
		{[]string{"unlearn", "a.toml", "b.toml"}, []string{`"b.toml" is one argument too many`}},
		{[]string{"version", "now"}, []string{`"now" is not expected`}},
		{[]string{"generate", "--colour"}, []string{"--colour"}},
		{[]string{"generate", "--images", "many"}, []string{"--images"}},
		{[]string{"generate"}, []string{"--model and --out must be given"}},
		{picture(), []string{"either --prompt or --prompts"}},
		{picture("--prompt", "a", "--prompts", "b.csv"), []string{"either --prompt or --prompts"}},
		{picture("--prompt", "  "), []string{"blank"}},
		{picture("--prompt", "a", "--images", "0"), []string{"--images 0"}},
		{picture("--prompt", "a", "--shard", "2/2"), []string{`--shard "2/2"`}},
		{picture("--prompt", "a", "--threads", "-1"), []string{"--threads -1"}},
		{[]string{"finetune", "--model", tinyModel}, []string{"--data and --out must be given"}},
		{[]string{"lora", "convrt"}, []string{`no command "lora convrt"`, "did you mean convert?", "lora --help"}},
		{[]string{"model", "old"}, []string{`no command "model old"`}},
		{[]string{"runs", "comapre", "a"}, []string{`"a" is one argument too many`, "did you mean compare?"}},
		{[]string{"lora", "convert", "a", "b"}, []string{"--to must be given"}},
		{[]string{"lora", "merge", "--model", tinyModel, "--lora", "a", "--out", out, "--strength", "nan"}, []string{"--strength NaN"}},
		{[]string{"unlearn", "a.toml", "--lora-format", "ckpt"}, []string{`--lora-format "ckpt" is not known`}},
		{[]string{"finetune", "--model", tinyModel, "--out", out}, []string{"--data must be given"}},
		{tune("--method", "lokr"), []string{`"lokr" is not known`, "dreambooth"}},
		{tune("--batch-size", "0"), []string{"--batch-size: 0", "at least 1"}},
		{tune("--prior", "x"), []string{"--prior: ", "only for methods dreambooth, custom and svdiff"}},
		{tune("--ratio", "0.5"), []string{"--ratio: 0.5 needs contaminate"}},
		{tune("--contaminate", "x"), []string{"--ratio: 0 must be above 0"}},
		{tune("--contaminate", "x", "--ratio", "0.5", "--method", "dreambooth"), []string{"--contaminate: ", "does not go with method dreambooth"}},
		{tune("--no-merge"), []string{"--no-merge: ", "only for method lora"}},
		{tune("--preview-every", "5"), []string{"--preview-every: 5 needs a prompt"}},
		{tune("--preview-prompt", "x"), []string{"--preview-every"}},
		{[]string{"verify"}, []string{"--reference must be given"}},
		{[]string{"inspect"}, []string{"is missing"}},
		{[]string{"init", "--preset", "sd15"}, []string{`preset "sd15" is not known`, "sd14"}},
		{[]string{"bench", "--preset", "huge"}, []string{`preset "huge" is not known`, "small"}},
		{[]string{"bench", "--what", "dance"}, []string{`"dance" cannot be measured`}},
		{[]string{"bench", "--repeat", "0"}, []string{"at least one repetition"}},
	} {
		fail(t, exitUsage, c.args, c.parts...)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a command that was refused made its folder")
	}
}

// What a message quotes of a name cannot drive the terminal.
func TestErrorsArePrintable(t *testing.T) {
	var out, errOut strings.Builder
	if code := run(t.Context(), []string{"inspect", "no\x1b[2Jwhere"}, &out, &errOut); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if text := errOut.String(); text != "resalign: no [2Jwhere does not exist; check its name\n" {
		t.Errorf("%q", text)
	}
}

func TestFailures(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	uncaptioned := filepath.Join(dir, "uncaptioned")
	empty := filepath.Join(dir, "empty")
	for _, d := range []string{uncaptioned, empty} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(uncaptioned, "a.png"), string(read(t, examples, "people", "00.png")))
	tune := func(data string, more ...string) []string {
		return append([]string{"finetune", "--model", tinyModel, "--data", data, "--out", out}, more...)
	}
	people := examples + "/people"
	list := write(t, filepath.Join(dir, "list.csv"), "text\na cat\n")
	for _, c := range []struct {
		args  []string
		parts []string
	}{
		{[]string{"unlearn", "nowhere.toml"}, []string{"nowhere.toml does not exist"}},
		{[]string{"finetune", "--model", "nowhere", "--data", people, "--out", out}, []string{"nowhere"}},
		{[]string{"finetune", "--model", empty, "--data", people, "--out", out}, []string{"model_index.json"}},
		{tune("nowhere"), []string{"picture folder nowhere does not exist"}},
		{tune(empty), []string{"has no pictures"}},
		{tune(uncaptioned), []string{"a.png", "caption"}},
		{tune(truncatedPictures(t)), []string{"02.png"}},
		{tune(people, "--resolution", "33"), []string{"33"}},
		{tune(people, "--lora", list), []string{"list.csv"}},
		{tune(people, "--preview-every", "1", "--preview-prompt", "x", "--preview-scheduler", "fast"), []string{"fast", "ddim"}},
		{tune(people, "--method", "lora", "--targets", "attn9"), []string{"attn9"}},
		{[]string{"finetune", "--out", out, "--resume"}, []string{"it holds no run"}},
		{[]string{"generate", "--model", tinyModel, "--prompt", "a", "--scheduler", "fast", "--out", out}, []string{"fast", "ddim"}},
		{[]string{"generate", "--model", tinyModel, "--prompt", "a", "--height", "33", "--out", out}, []string{"33", "multiples of"}},
		{[]string{"generate", "--model", tinyModel, "--prompts", list, "--out", out}, []string{"list.csv", "prompt"}},
		{[]string{"generate", "--model", tinyModel, "--prompt", "a", "--out", empty + "/../uncaptioned"}, []string{"is not empty", "a.png"}},
		{[]string{"generate", "--model", tinyModel, "--prompt", "a", "--out", out, "--engine", "xla"}, []string{"XLA"}},
		{[]string{"verify", "--reference", empty}, []string{"index.json"}},
		{[]string{"inspect", "nowhere"}, []string{"nowhere does not exist"}},
		{[]string{"inspect", empty}, []string{"model_index.json"}},
	} {
		fail(t, exitFailed, c.args, c.parts...)
	}
	entries, err := os.ReadDir(out)
	if err == nil && len(entries) > 0 {
		t.Errorf("a command with bad input left %v", entries)
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	var errOut bytes.Buffer
	code := run(t.Context(), []string{"version"}, panicking{}, &errOut)
	if code != exitInternal || !strings.HasPrefix(errOut.String(), "resalign: internal error: out of order") {
		t.Errorf("exit code %d:\n%s", code, errOut.String())
	}
}

type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic("out of order") }

func TestVersionAndDoctor(t *testing.T) {
	v := decode[struct{ Version, Go string }](t, succeed(t, "version", "--json"))
	if v.Version == "" || !strings.HasPrefix(v.Go, "go1.") {
		t.Errorf("version is %+v", v)
	}
	d := decode[diagnosis](t, succeed(t, "doctor", "--json"))
	if len(d.Engines) != 1 || d.Engines[0].Name != "go" || d.Engines[0].GFLOPS <= 0 || d.Threads < 1 || d.SIMD == "" {
		t.Errorf("diagnosis is %+v", d)
	}
	if text := succeed(t, "doctor"); !strings.Contains(text, "engine    go: works") || !strings.Contains(text, "XLA") {
		t.Errorf("doctor says:\n%s", text)
	}
}

func TestBench(t *testing.T) {
	r := decode[bench.Report](t, succeed(t, "bench", "--what", "forward", "--batch", "1", "--repeat", "2", "--json"))
	if r.Parameters != 4192900 || r.Batch != 1 || len(r.Measurements) != 1 || r.Measurements[0].Best <= 0 {
		t.Errorf("the report is %+v", r)
	}
}

func TestTexts(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 859520964: "859,520,964", -12345: "-12,345"} {
		if got := grouped(n); got != want {
			t.Errorf("grouped(%d) = %q, not %q", n, got, want)
		}
	}
	if got, want := commandLine("resalign", "--prompt", "it's a dog", "a/b.toml", ""), `resalign --prompt 'it'\''s a dog' a/b.toml ''`; got != want {
		t.Errorf("command line %s, not %s", got, want)
	}
	if got := cut("a\x1b[31m\nbcdef", 6); got != "a [31…" {
		t.Errorf("cut gives %q", got)
	}
}
