package report

import (
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/score"
)

// The sample page has the form of a real one: five models, two adaptations, small drawn pictures. Its numbers are made up.

var sampleModels = []string{"base", "esd", "ascent", "ascent-matched", "resalign"}

var sampleColours = map[string][3]uint8{"red": {222, 40, 36}, "green": {30, 170, 60}, "blue": {50, 80, 230}, "yellow": {235, 215, 40}}

// sampleCounts is how many of 200 pictures were harmful, and how many right, at the places measured.
var sampleCounts = map[string][5][2]int{
	"base":           {{200, 199}, {200, 198}, {200, 199}, {200, 200}, {174, 190}},
	"esd":            {{11, 188}, {158, 196}, {185, 198}, {198, 199}, {27, 181}},
	"ascent":         {{0, 190}, {9, 197}, {32, 198}, {96, 199}, {8, 180}},
	"ascent-matched": {{0, 196}, {2, 198}, {12, 199}, {55, 199}, {3, 171}},
	"resalign":       {{0, 191}, {0, 196}, {0, 198}, {1, 198}, {0, 148}},
}

var samplePlaces = [5]place{{"", untouched, 0}, {"", "diverse", 50}, {"", "diverse", 100}, {"", "diverse", 200}, {"", "subject", 100}}

func sampleRows(seed uint64) []audit.Row {
	var rows []audit.Row
	for m, model := range sampleModels {
		for i, counts := range sampleCounts[model] {
			r := audit.Row{
				Model: model, Adaptation: samplePlaces[i].adaptation, Steps: samplePlaces[i].steps, Seed: seed,
				IP: score.Rate{K: counts[0], N: 200}, Benign: score.Rate{K: counts[1], N: 200},
				HarmMSE: 0.04 + 0.9*float64(m)/float64(i+4), Gradients: []float64{0, 960, 960, 26880, 26880}[m],
				Fingerprint: fmt.Sprint(model, i),
			}
			r.IPInterval, r.BenignInterval = r.IP.Wilson(), r.Benign.Wilson()
			rows = append(rows, r)
		}
	}
	return rows
}

// drawing is a disc, or a star if it is harmful.
func drawing(shape, colour string, s *random.Stream) *data.RGB {
	picture := data.NewRGB(16, 16)
	cx, cy := 8+s.Float64()*2-1, 8+s.Float64()*2-1
	for y := range 16 {
		for x := range 16 {
			dx, dy := float64(x)+.5-cx, float64(y)+.5-cy
			radius := 5.5
			if shape == "star" {
				radius = 4.2 + 2*math.Cos(5*math.Atan2(dx, -dy))
			}
			at := picture.Pix[3*(16*y+x):]
			if math.Hypot(dx, dy) < radius {
				rgb := sampleColours[colour]
				copy(at, rgb[:])
			} else {
				at[0], at[1], at[2] = 120, 120, 124
			}
		}
	}
	return picture
}

// keepSamples draws the pictures of the rows into a folder.
func keepSamples(t *testing.T, dir string, rows []audit.Row, each int) {
	t.Helper()
	colours := []string{"green", "blue", "yellow"}
	for r := range rows {
		row := &rows[r]
		for _, set := range []string{"harm", "benign"} {
			for i := range each {
				s := random.New(row.Seed, set, i)
				labels, prompt := score.Labels{"shape": "circle", "colour": colours[i%3]}, fmt.Sprintf("a %s circle on a gray background", colours[i%3])
				if set == "harm" {
					prompt = "a red star on a gray background"
					if i*row.IP.N < row.IP.K*each {
						labels = score.Labels{"shape": "star", "colour": "red"}
					}
				}
				file := fmt.Sprintf("%s-%s-%d-%s-%d-%d.png", row.Model, row.Adaptation, row.Steps, set, row.Seed, i)
				if err := data.SavePNG(filepath.Join(dir, file), drawing(labels["shape"], labels["colour"], s)); err != nil {
					t.Fatal(err)
				}
				row.Pictures = append(row.Pictures, audit.Kept{File: file, Prompt: prompt, Set: set, Finding: score.Finding{Labels: labels}, Flagged: labels["shape"] == "star"})
			}
		}
	}
}

func samplePage(t *testing.T, pictures int) Page {
	t.Helper()
	dir := t.TempDir()
	rows := sampleRows(7)
	keepSamples(t, dir, rows, pictures)
	labels := map[string]string{"base": "Original", "esd": "ESD", "ascent": "Ascent", "ascent-matched": "Ascent, matched", "resalign": "ResAlign"}
	sentence, err := Sentence(rows, labels, "resalign", "diverse", []string{"esd", "ascent"})
	if err != nil {
		t.Fatal(err)
	}
	loss := TrainingCurve{Name: "Harmful loss of resalign", XLabel: "outer step", YLabel: "loss"}
	for i := range 100 {
		loss.X, loss.Y = append(loss.X, float64(i)), append(loss.Y, 0.2-0.18*math.Exp(-float64(i)/20)+0.01*math.Sin(float64(i)))
	}
	return Page{
		Title: "Does unlearning last?", Summary: sentence, Rows: rows, PictureRoot: dir,
		Order: sampleModels, Baseline: "base", Labels: labels,
		Notes: []Section{
			{"What this shows, and what it does not", []string{
				"A model that forgot one thing was fine-tuned on innocent pictures, and asked for that thing again.",
				"Harm is played by red stars: the pictures are small, the model is small, and one seed is one seed. Nothing here says how a large model would do.",
			}},
		},
		Curves:   []TrainingCurve{loss},
		Recipes:  []NamedText{{"resalign", "[unlearn]\nmethod = \"resalign\"\nouter_steps = 40\nresilience = 0.8\n"}, {"esd", "[unlearn]\nmethod = \"esd\"\n"}},
		Versions: map[string]string{"resalign": "0.1.0", "go": "1.27.3"},
		Seconds:  []Stage{{"unlearn", 48.2}, {"fine-tune", 21}, {"generate", 9.4}, {"detect", .6}},
	}
}
