package folders

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
)

// reddish says how red a picture's first pixel is, and counts the pictures that it was shown.
type reddish struct {
	shown int
	label string
}

func (r *reddish) Name() string { return "reddish" }

func (r *reddish) Detect(_ context.Context, pictures []*data.RGB) ([]score.Finding, error) {
	var out []score.Finding
	for _, p := range pictures {
		r.shown++
		out = append(out, score.Finding{Scores: map[string]float64{r.label: float64(p.Pix[0]) / 255}})
	}
	return out, nil
}

func judge(r *reddish) Judge {
	r.label = "red"
	return Judge{
		Detector:  &detectors.Opened{Detector: r, Kind: "reddish", EachLabel: true},
		Criterion: score.Criterion{Any: []string{"red"}, Above: 0.5},
	}
}

// paint writes pictures of one colour each, with prompts where they are given.
func paint(t *testing.T, dir string, reds []uint8, prompts []string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var list bytes.Buffer
	for i, red := range reds {
		p := data.NewRGB(8, 6)
		for k := range p.Pix {
			if p.Pix[k] = uint8(i); k%3 == 0 {
				p.Pix[k] = red
			}
		}
		name := fmt.Sprintf("%05d.png", i)
		if err := data.SavePNG(filepath.Join(dir, name), p); err != nil {
			t.Fatal(err)
		}
		if prompts != nil {
			fmt.Fprintf(&list, `{"file_name": %q, "text": %q}`+"\n", name, prompts[i])
		}
	}
	if prompts != nil {
		write(t, filepath.Join(dir, "metadata.jsonl"), list.String())
	}
	return dir
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, job Job, h Hooks) *Result {
	t.Helper()
	r, err := Run(t.Context(), nil, job, h)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRatesAndComparison(t *testing.T) {
	dir := t.TempDir()
	prompts := []string{"a", "a", "b", "b"}
	first := paint(t, filepath.Join(dir, "first"), []uint8{200, 255, 0, 128}, prompts)
	second := paint(t, filepath.Join(dir, "second"), []uint8{0, 255, 0, 0}, prompts)
	out := filepath.Join(dir, "out")
	r := run(t, Job{Folders: []string{first, second}, Out: out, Judges: []Judge{judge(&reddish{})}}, Hooks{})
	for i, k := range []int{3, 1} {
		rate := r.Folders[i].Rates[0]
		if rate.K != k || rate.N != 4 || rate.Interval != rate.Wilson() || r.Folders[i].Prompts != 2 {
			t.Errorf("folder %d: %+v", i, r.Folders[i])
		}
	}
	c := r.Comparisons[0]
	if c.A != first || c.B != second || c.Value != -0.5 || c.Over != "prompts" || c.Pairs != 2 || c.Interval != (score.Interval{Low: -0.5, High: -0.5}) {
		t.Errorf("%+v", c)
	}
	var stored Result
	content, err := os.ReadFile(filepath.Join(out, "score.json"))
	if err != nil || json.Unmarshal(content, &stored) != nil || stored.Folders[0].Rates[0].K != 3 || stored.Comparisons[0].Value != -0.5 {
		t.Errorf("score.json is %s, %v", content, err)
	}
	table, err := os.ReadFile(filepath.Join(out, "pictures.csv"))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(bytes.NewReader(table)).ReadAll()
	if err != nil || len(rows) != 9 || !slices.Equal(rows[2], []string{first, "00001.png", "a", "reddish", "1", "red 1.0000"}) {
		t.Errorf("pictures.csv is %s, %v", table, err)
	}
}

func TestPicturesWithoutPromptsPairByName(t *testing.T) {
	dir := t.TempDir()
	first := paint(t, filepath.Join(dir, "first"), []uint8{200, 255, 0}, nil)
	second := paint(t, filepath.Join(dir, "second"), []uint8{0, 255}, []string{"a", "b"})
	third := paint(t, filepath.Join(dir, "third"), []uint8{9}, nil)
	if err := os.Rename(filepath.Join(third, "00000.png"), filepath.Join(third, "other.png")); err != nil {
		t.Fatal(err)
	}
	var warnings []string
	r := run(t, Job{Folders: []string{first, second, third}, Out: filepath.Join(dir, "out"), Judges: []Judge{judge(&reddish{})}},
		Hooks{Warn: func(s string) { warnings = append(warnings, s) }})
	if len(r.Comparisons) != 1 || r.Comparisons[0].Over != "pictures" || r.Comparisons[0].Pairs != 2 || r.Comparisons[0].Value != -0.5 {
		t.Errorf("%+v", r.Comparisons)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], third) {
		t.Errorf("warnings %q", warnings)
	}
}

// What was found before is not looked for again: after an interruption, for equal files, and with a torn last line.
func TestRunGoesOnWhereItStopped(t *testing.T) {
	dir := t.TempDir()
	reds := make([]uint8, 3*batch)
	for i := range reds {
		reds[i] = uint8(2 * i)
	}
	pictures := paint(t, filepath.Join(dir, "pictures"), reds, nil)
	whole := run(t, Job{Folders: []string{pictures}, Out: filepath.Join(dir, "whole"), Judges: []Judge{judge(&reddish{})}}, Hooks{})
	out := filepath.Join(dir, "out")
	finish := make(chan struct{})
	detector := &reddish{}
	job := Job{Folders: []string{pictures}, Out: out, Judges: []Judge{judge(detector)}}
	_, err := Run(t.Context(), nil, job, Hooks{Finish: finish, OnPicture: func(_ string, done, _ int) {
		if done == 2*batch {
			close(finish)
		}
	}})
	if !errors.Is(err, train.ErrInterrupted) || detector.shown != 2*batch {
		t.Fatalf("%d pictures were looked at, %v", detector.shown, err)
	}
	found, err := os.ReadFile(filepath.Join(out, "findings.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(out, "findings.jsonl"), "no JSON\n"+string(found[:len(found)-5])) // the last picture's line is torn
	var warnings []string
	r := run(t, job, Hooks{Warn: func(s string) { warnings = append(warnings, s) }})
	if detector.shown != 3*batch+1 {
		t.Errorf("%d pictures were looked at in all", detector.shown)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "1 damaged") {
		t.Errorf("warnings %q", warnings)
	}
	if r.Folders[0].Rates[0].Rate != whole.Folders[0].Rates[0].Rate {
		t.Errorf("%+v, without an interruption %+v", r.Folders[0], whole.Folders[0])
	}
	copied := paint(t, filepath.Join(dir, "copied"), reds[:5], nil)
	before := detector.shown
	job.Folders = append(job.Folders, copied)
	if run(t, job, Hooks{}); detector.shown != before {
		t.Errorf("%d pictures with known bytes were looked at", detector.shown-before)
	}
}

// brightness is a metric of one number for each picture, and distance one over single features.
func brightness(looked *int) *Metric {
	return &Metric{Kind: "brightness", Name: "brightness 1", close: func() {}, value: func(_ context.Context, batch []sample) ([]float64, error) {
		*looked += len(batch)
		var out []float64
		for _, b := range batch {
			out = append(out, float64(b.pixels.Pix[0]))
		}
		return out, nil
	}}
}

func distance(looked *int) *Metric {
	return &Metric{
		Kind: "distance", Name: "distance 1", extractor: "first pixel", width: 2, moments: true, close: func() {},
		features: func(_ context.Context, pictures []*data.RGB) ([][]float32, error) {
			*looked += len(pictures)
			var out [][]float32
			for _, p := range pictures {
				out = append(out, []float32{float32(p.Pix[0]), float32(p.Pix[1])})
			}
			return out, nil
		},
		distance: func(_ context.Context, _ *engine.Engine, own [][]float32, reference Reference) (float64, *float64, error) {
			s, err := score.Moments(own)
			if err != nil {
				return 0, nil, err
			}
			d, err := score.Frechet(s, *reference.Statistics)
			return d, nil, err
		},
	}
}

func TestMeans(t *testing.T) {
	dir := t.TempDir()
	pictures := paint(t, filepath.Join(dir, "pictures"), []uint8{10, 20, 60}, []string{"a", "a", "b"})
	looked := 0
	m := run(t, Job{Folders: []string{pictures}, Out: filepath.Join(dir, "out"), Metrics: []*Metric{brightness(&looked)}}, Hooks{}).Folders[0].Metrics[0]
	if m.Value != 30 || m.Pictures != 3 || looked != 3 || m.Interval.Low != 15 || m.Interval.High != 60 {
		t.Errorf("%+v of %d", m, looked)
	}
	damaged := brightness(&looked)
	damaged.value = func(context.Context, []sample) ([]float64, error) { return []float64{1, math.NaN(), 1}, nil }
	damaged.Name = "damaged"
	if _, err := Run(t.Context(), nil, Job{Folders: []string{pictures}, Out: filepath.Join(dir, "out"), Metrics: []*Metric{damaged}}, Hooks{}); err == nil || !strings.Contains(err.Error(), "not a number") {
		t.Errorf("a value that is not a number: %v", err)
	}
}

func TestDistancesAndStatistics(t *testing.T) {
	dir := t.TempDir()
	own := paint(t, filepath.Join(dir, "own"), []uint8{10, 20, 60, 90}, nil)
	reference := paint(t, filepath.Join(dir, "reference"), []uint8{20, 10, 80}, nil)
	out, stored := filepath.Join(dir, "out"), filepath.Join(dir, "reference.npz")
	looked := 0
	job := Job{Folders: []string{own}, Out: out, Metrics: []*Metric{distance(&looked)}, Reference: reference, SaveReference: stored}
	want := run(t, job, Hooks{}).Folders[0].Metrics[0]
	if looked != 7 || want.Value <= 0 || want.Reference != reference {
		t.Fatalf("%+v of %d pictures", want, looked)
	}
	job.Reference, job.SaveReference = stored, ""
	if got := run(t, job, Hooks{}).Folders[0].Metrics[0]; math.Abs(got.Value-want.Value) > 1e-9*want.Value || looked != 7 {
		t.Errorf("from stored statistics %v instead of %v; %d looks", got.Value, want.Value, looked)
	}
	// A damaged record and all after it are computed again.
	list, err := filepath.Glob(filepath.Join(out, "features", "*.bin"))
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	content, err := os.ReadFile(list[0])
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)-10] ^= 1
	write(t, list[0], string(content))
	job.Reference = reference
	if got := run(t, job, Hooks{}).Folders[0].Metrics[0]; got.Value != want.Value || looked != 8 {
		t.Errorf("after damage %v instead of %v; %d looks", got.Value, want.Value, looked)
	}
	narrow := distance(&looked)
	narrow.width = 3
	job.Metrics, job.Reference = []*Metric{narrow}, stored
	if _, err := Run(t.Context(), nil, job, Hooks{}); err == nil || !strings.Contains(err.Error(), "statistics of 2 features") {
		t.Errorf("statistics of another network: %v", err)
	}
	pixelsOnly := distance(&looked)
	pixelsOnly.moments = false
	job.Metrics = []*Metric{pixelsOnly}
	if _, err := Run(t.Context(), nil, job, Hooks{}); err == nil || !strings.Contains(err.Error(), "reference pictures themselves") {
		t.Errorf("statistics where pictures are needed: %v", err)
	}
}

func TestPairs(t *testing.T) {
	dir := t.TempDir()
	after := paint(t, filepath.Join(dir, "after"), []uint8{10, 20, 60}, nil)
	before := paint(t, filepath.Join(dir, "before"), []uint8{11, 24}, nil)
	metric := &Metric{Kind: "change", Name: "change 1", pairs: true, close: func() {}, value: func(_ context.Context, batch []sample) ([]float64, error) {
		var out []float64
		for _, b := range batch {
			out = append(out, float64(b.otherPixels.Pix[0])-float64(b.pixels.Pix[0]))
		}
		return out, nil
	}}
	var warnings []string
	job := Job{Folders: []string{after}, Out: filepath.Join(dir, "out"), Metrics: []*Metric{metric}, Against: before}
	m := run(t, job, Hooks{Warn: func(s string) { warnings = append(warnings, s) }}).Folders[0].Metrics[0]
	if m.Value != 2.5 || m.Pictures != 2 || m.Reference != before || len(warnings) != 1 {
		t.Errorf("%+v, warnings %q", m, warnings)
	}
	job.Against = paint(t, filepath.Join(dir, "others"), []uint8{1}, nil)
	if err := os.Rename(filepath.Join(job.Against, "00000.png"), filepath.Join(job.Against, "x.png")); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), nil, job, Hooks{}); err == nil || !strings.Contains(err.Error(), "no picture of "+after) {
		t.Errorf("without pairs: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	plain := paint(t, filepath.Join(dir, "plain"), []uint8{1, 2}, nil)
	corrupt := paint(t, filepath.Join(dir, "corrupt"), []uint8{1, 2}, nil)
	file := filepath.Join(corrupt, "00001.png")
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, string(content[:len(content)-30])) // its header is in order
	mislabelled := paint(t, filepath.Join(dir, "mislabelled"), []uint8{1}, nil)
	write(t, filepath.Join(mislabelled, "text.png"), "text")
	other := judge(&reddish{})
	other.Criterion.Any = []string{"green"}
	prompted := &Metric{Kind: "fit", Name: "fit 1", prompts: true, close: func() {}}
	for want, job := range map[string]Job{
		empty + " has no pictures":        {Folders: []string{empty}, Judges: []Judge{judge(&reddish{})}},
		"does not exist":                  {Folders: []string{filepath.Join(dir, "none")}, Judges: []Judge{judge(&reddish{})}},
		file + " cannot be decoded":       {Folders: []string{corrupt}, Judges: []Judge{judge(&reddish{})}},
		"text.png is not a PNG":           {Folders: []string{mislabelled}, Judges: []Judge{judge(&reddish{})}},
		plain + " has no prompts":         {Folders: []string{plain}, Metrics: []*Metric{prompted}},
		`does not score "green"; it scor`: {Folders: []string{plain}, Judges: []Judge{other}},
	} {
		job.Out = filepath.Join(t.TempDir(), "out")
		_, err := Run(t.Context(), nil, job, Hooks{})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, err := Run(ctx, nil, Job{Folders: []string{plain}, Out: filepath.Join(dir, "out"), Judges: []Judge{judge(&reddish{})}}, Hooks{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after an interruption: %v", err)
	}
}

// A file of the wrong kind is an error that names the metric and the file.
func TestMetricFilesOfTheWrongKind(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, k := range MetricKinds() {
		files := slices.Repeat([]string{"folders_test.go"}, k.AtMost)
		m, err := OpenMetric(e, k.Name+":"+strings.Join(files, ","))
		if err == nil {
			m.Close()
			t.Errorf("%s is opened", k.Name)
			continue
		}
		if !strings.HasPrefix(err.Error(), "metric "+k.Name+": ") || !strings.Contains(err.Error(), "folders_test.go") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", k.Name, err)
		}
	}
}
