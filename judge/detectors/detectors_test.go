package detectors

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/judge/spec"
	"github.com/resalign/resalign/mini"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/score/classifier"
)

func TestCarriedDetector(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	d, err := Open(e, "mini")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	found, err := d.Detect(t.Context(), []*data.RGB{data.NewRGB(mini.Side, mini.Side)})
	if err != nil || len(found) != 1 || found[0].Labels["shape"] == "" || found[0].Labels["colour"] == "" {
		t.Errorf("%v, %v", found, err)
	}
}

// A file of the wrong kind is an error that names the kind of detector and the file.
func TestFilesOfTheWrongKind(t *testing.T) {
	e, err := engine.Open("go")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, k := range Kinds() {
		files := make([]string, max(k.AtLeast, 1))
		for i := range files {
			files[i] = "detectors_test.go"
		}
		text := k.Name + ":" + strings.Join(files, ",")
		d, err := Open(e, text)
		if err == nil {
			d.Close()
			t.Errorf("%s is opened", text)
			continue
		}
		if !strings.HasPrefix(err.Error(), "detector "+k.Name+": ") || !strings.Contains(err.Error(), "detectors_test.go") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := Open(e, "eye:x"); !errors.As(err, new(*spec.Error)) {
		t.Errorf("a kind that there is not: %v", err)
	}
}

func TestCriterion(t *testing.T) {
	shapes := &Opened{Kind: "mini", Aspects: []string{"shape", "colour"}, Usual: score.Criterion{Labels: score.Labels{"shape": "star"}}}
	parts := &Opened{Kind: "nudenet", Labels: []string{"FEET", "BELLY"}, Usual: score.Criterion{Any: []string{"FEET"}, Above: 0.45}}
	open := &Opened{Kind: "any", EachLabel: true}
	number := func(v float64) *float64 { return &v }
	for _, c := range []struct {
		detector *Opened
		labels   string
		above    *float64
		want     score.Criterion
		problem  string
	}{
		{shapes, "", nil, shapes.Usual, ""},
		{shapes, "shape=disc, colour=blue", nil, score.Criterion{Labels: score.Labels{"shape": "disc", "colour": "blue"}}, ""},
		{shapes, "size=big", nil, score.Criterion{}, `no "size"`},
		{shapes, "disc", nil, score.Criterion{}, `does not score "disc"`},
		{shapes, "", number(0.5), score.Criterion{}, "no score to be above 0.5"},
		{parts, "", nil, parts.Usual, ""},
		{parts, "", number(0), score.Criterion{Any: []string{"FEET"}}, ""},
		{parts, "BELLY", number(0.6), score.Criterion{Any: []string{"BELLY"}, Above: 0.6}, ""},
		{parts, "HAND", nil, score.Criterion{}, `does not score "HAND"; it scores FEET, BELLY`},
		{parts, "shape=star", nil, score.Criterion{}, `no "shape"`},
		{parts, "BELLY,shape=star", nil, score.Criterion{}, "both"},
		{parts, "", number(1), score.Criterion{}, "above = 1"},
		{open, "", nil, score.Criterion{}, "nothing is said to be harmful"},
		{open, "cat", number(0.5), score.Criterion{Any: []string{"cat"}, Above: 0.5}, ""},
	} {
		got, err := c.detector.Criterion(c.labels, c.above)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s, labels %q: %v", c.detector.Kind, c.labels, err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s, labels %q: %+v, %v", c.detector.Kind, c.labels, got, err)
		}
	}
	if err := open.Accept(score.Criterion{Any: []string{"cat"}}, score.Finding{Scores: map[string]float64{"dog": 1}}); err == nil || !strings.Contains(err.Error(), "it scores dog") {
		t.Errorf("a misspelt label: %v", err)
	}
	if err := parts.Accept(score.Criterion{Any: []string{"FEET"}}, score.Finding{}); err != nil {
		t.Errorf("nothing found: %v", err)
	}
}

func TestONNXSettings(t *testing.T) {
	o, err := onnxOptions([]string{"pixels=imagenet", "activation=sigmoid", "fit=crop", "filter=bilinear", "short-side=256", "size=224"})
	want := classifier.Options{
		Mean: classifier.ImageNetMean, Std: classifier.ImageNetStd, Activation: classifier.Sigmoid, Fit: classifier.Crop,
		Filter: data.Bilinear, ShortSide: 256, Width: 224, Height: 224,
	}
	if err != nil || !reflect.DeepEqual(o, want) {
		t.Errorf("%+v, %v", o, err)
	}
	for want, settings := range map[string][]string{
		"which pixels":     nil,
		`"pixels=bytes"`:   {"pixels=bytes"},
		`"fit=fill"`:       {"pixels=0..1", "fit=fill"},
		`"size=0"`:         {"pixels=0..1", "size=0"},
		`"mean=1"`:         {"pixels=0..1", "mean=1"},
		`"filter=nearest"`: {"pixels=0..1", "filter=nearest"},
		"twice":            {"pixels=0..1", "pixels=-1..1"},
	} {
		if _, err := onnxOptions(settings); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", settings, err)
		}
	}
}
