package report

import (
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/score"
)

// richPage has what the audit of a large model has: several prompt sets, shares of harmful pictures in the data, large
// pictures with boxes. Its numbers are made up.
func richPage(t *testing.T) Page {
	t.Helper()
	dir := t.TempDir()
	var rows []audit.Row
	for m, model := range []string{"original", "esd", "resalign"} {
		for _, share := range []float64{-1, 0, 0.2, 0.5} {
			r := audit.Row{Model: model, Adaptation: untouched, Seed: 1}
			if share >= 0 {
				r.Adaptation, r.Steps, r.Contamination = fmt.Sprintf("mixed-%v", 100*share), 200, share
			}
			harm := int(math.Round(100 * math.Min(1, (0.9-0.4*float64(m))*(1+share)/1.1)))
			r.IP, r.Benign = score.Rate{K: harm, N: 150}, score.Rate{K: 140 - 3*m, N: 150}
			r.Sets = []audit.SetRate{
				{Name: "i2p", Kind: "harmful", Rate: r.IP}, {Name: "mma", Kind: "harmful", Rate: score.Rate{K: harm / 2, N: 60}}, {Name: "coco", Kind: "benign", Rate: r.Benign},
			}
			fid := 17 + float64(m)*3 + max(0, share)
			cosine := 31.2 - 0.4*float64(m) - max(0, share)
			r.Metrics = []audit.SetMetric{
				{Set: "coco", Kind: "benign", Metric: "clip-score", By: "CLIP ViT-B/32", Value: cosine, Interval: &score.Interval{Low: cosine - 0.3, High: cosine + 0.3}, Pictures: 150},
				{Set: "i2p", Kind: "harmful", Metric: "clip-score", By: "CLIP ViT-B/32", Value: cosine, Interval: &score.Interval{Low: cosine - 0.3, High: cosine + 0.3}, Pictures: 150},
			}
			if share < 0 { // of the models as they are only, as the published protocol has it
				sd := 0.0004
				r.Metrics = append(r.Metrics, audit.SetMetric{Set: "coco", Kind: "benign", Metric: "fid", By: "Inception v3", Value: fid, Pictures: 10000},
					audit.SetMetric{Set: "coco", Kind: "benign", Metric: "kid", By: "Inception v3", Value: fid / 5000, SD: &sd, Pictures: 10000})
			}
			for i := range 3 {
				list, set, prompt := "i2p", "harm", fmt.Sprintf("portrait of a stranger in the rain, number %d", i+1)
				if i == 2 {
					list, set, prompt = "coco", "benign", "a bicycle by a wall"
				}
				picture := data.NewRGB(160, 128)
				for p := range picture.Pix {
					picture.Pix[p] = uint8(p/480*(i+1) + p%3*30*m + 40)
				}
				file := fmt.Sprintf("%s-%s-%d.png", model, r.Adaptation, i)
				if err := data.SavePNG(filepath.Join(dir, file), picture); err != nil {
					t.Fatal(err)
				}
				k := audit.Kept{File: file, Prompt: prompt, Set: set, List: list}
				if set == "harm" {
					k.Boxes = []score.Box{{Label: "FACE_FEMALE", Score: 0.914, X: 20, Y: 15, Width: 45, Height: 55}, {Label: "BELLY_EXPOSED", Score: 0.52, X: 75, Y: 60, Width: 400, Height: 50}}
					k.Flagged = m < 2
				}
				r.Pictures = append(r.Pictures, k)
			}
			rows = append(rows, r)
		}
	}
	return Page{
		Title: "An audit", Rows: rows, PictureRoot: dir, Baseline: "original",
		Labels:  map[string]string{"original": "Original", "esd": "ESD", "resalign": "ResAlign"},
		Recipes: []NamedText{{"audit", "title = \"An audit\"\n"}}, Versions: map[string]string{"resalign": "0.1.0"},
	}
}

func TestContaminationIsDrawnAgainstTheShare(t *testing.T) {
	p := richPage(t)
	page := writePage(t, p)
	var found []string
	for _, e := range parse(t, page) {
		if e.inside == "contamination-ip-1" && e.attributes["data-model"] == "esd" {
			found = append(found, e.attributes["data-contamination"]+": "+e.attributes["data-k"]+" of "+e.attributes["data-n"])
		}
	}
	if got := strings.Join(found, "; "); got != "0: 45 of 150; 0.2: 55 of 150; 0.5: 68 of 150" {
		t.Errorf("drawn: %s", got)
	}
	c := arrange(p.Rows, nil, map[string]string{"mixed-0": "Mixed, 0 % harmful"})
	families := c.families()
	if len(families) != 1 || fmt.Sprint(families[0]) != "{mixed [mixed-0 mixed-20 mixed-50]}" || c.familyLabel(families[0]) != "Mixed" {
		t.Errorf("families %v, called %q", families, c.familyLabel(families[0]))
	}
	// "style-0" alone is an adaptation that happens to be called so.
	alone := arrange([]audit.Row{{Model: "a", Adaptation: "style-0", Steps: 1}, {Model: "a", Adaptation: "other", Steps: 1, Contamination: .5}}, nil, nil)
	if f := alone.families(); len(f) != 0 {
		t.Errorf("families %v", f)
	}
}

func TestEveryPromptSetIsShown(t *testing.T) {
	p := richPage(t)
	page := writePage(t, p)
	drawn := 0
	for _, e := range parse(t, page) {
		if e.attributes["data-set"] == "mma" && strings.HasPrefix(e.inside, "set-2-") {
			drawn++
		}
	}
	if drawn != 3*(3+3) { // models × adaptations, each with its start and its end
		t.Errorf("%d marks of the second harmful set", drawn)
	}
	for _, text := range []string{
		"IP is that of the prompt set “i2p”, benign accuracy that of “coco”.", "<h3>mma ", `download="sets.csv"`,
		`<td data-v="mma">mma</td><td data-v="harmful">harmful</td>`, "Harmful prompts: i2p</h3>", "Benign prompts: coco</h3>", "Harmful in data, %",
	} {
		if !strings.Contains(page, text) {
			t.Errorf("the page does not say %q", text)
		}
	}
	table, err := SetsCSV(p.Rows)
	if err != nil || strings.Count(string(table), "\n") != 1+3*len(p.Rows) || !strings.Contains(string(table), "esd,mixed-20,0.2,200,1,mma,harmful,27,60,0.45,") {
		t.Errorf("%v\n%s", err, table)
	}
	if plain, err := newView(Page{Title: "t", Rows: sampleRows(1)}); err != nil || plain.SetsCSV != "" || plain.MetricsCSV != "" {
		t.Errorf("rows without prompt sets have a table of them: %v", err)
	}
}

// Every harmful set is set against every measure of utility; more useful is further right whatever the measure.
func TestPlanesCoverEveryPair(t *testing.T) {
	p := richPage(t)
	v, err := newView(p)
	if err != nil {
		t.Fatal(err)
	}
	var titles []string
	for _, pair := range append(v.Planes, v.MorePlanes...) {
		titles = append(titles, pair.Title)
		if len(pair.Charts) != 3 {
			t.Errorf("%s: %d charts", pair.Title, len(pair.Charts))
		}
		for _, c := range pair.Charts {
			// The original is the most useful by every measure, ResAlign the least.
			first, last := c.Series[0].Points[1], c.Series[2].Points[1]
			if first.Model != "original" || last.Model != "resalign" || first.X <= last.X || first.Y >= last.Y {
				t.Errorf("%s: original at %v, %v; resalign at %v, %v", c.ID, first.X, first.Y, last.X, last.Y)
			}
			before := strings.Contains(c.XLabel, " before it")
			if onlyBefore := strings.Contains(pair.Title, "FID") || strings.Contains(pair.Title, "KID"); before != onlyBefore || strings.HasSuffix(c.XLabel, "falling") != onlyBefore {
				t.Errorf("%s: axis %q", c.ID, c.XLabel)
			}
			if before && c.Series[0].Points[0].X != first.X {
				t.Errorf("%s: utility that was not measured again has changed", c.ID)
			}
		}
	}
	want := "Harm for “i2p” against right benign pictures, Harm for “i2p” against CLIP score of “coco”, Harm for “i2p” against FID of “coco”, Harm for “i2p” against KID of “coco”, " +
		"Harm for “mma” against right benign pictures, Harm for “mma” against CLIP score of “coco”, Harm for “mma” against FID of “coco”, Harm for “mma” against KID of “coco”"
	if got := strings.Join(titles, ", "); got != want || len(v.Planes) != 4 {
		t.Errorf("%d of the pairs are open: %s", len(v.Planes), got)
	}
	page := writePage(t, p)
	ids := map[string]bool{}
	values := 0
	for _, e := range parse(t, page) {
		if id := e.attributes["id"]; id != "" {
			if ids[id] {
				t.Errorf("id %q is there twice", id)
			}
			ids[id] = true
		}
		if e.attributes["data-utility"] == "17" { // FID of the original
			values++
		}
	}
	if values != 2*3*2 { // harmful sets × adaptations × ends
		t.Errorf("%d marks at an FID of 17", values)
	}
	for _, text := range []string{`<strong>31.2</strong> <span class="interval">[30.9, 31.5]</span>`, `<span class="interval">sd 0.0004</span>`, `download="metrics.csv"`} {
		if !strings.Contains(page, text) {
			t.Errorf("the page does not say %q", text)
		}
	}
	table, err := MetricsCSV(p.Rows)
	if err != nil || !strings.Contains(string(table), "original,none,0,0,1,coco,kid,0.0034,,,0.0004,10000,Inception v3") || !strings.Contains(string(table), "esd,mixed-20,0.2,200,1,coco,clip-score,") {
		t.Errorf("%v\n%s", err, table)
	}
	if text := MetricsTable(p.Rows, nil, p.Labels); !strings.Contains(text, "Original  none") || !strings.Contains(text, "FID") || strings.Count(text, "\n") != 2+3*(4*2+2) {
		t.Errorf("in a terminal:\n%s", text)
	}
	if MetricsTable(sampleRows(1), nil, nil) != "" {
		t.Error("rows without metrics have a table of them")
	}
}

func TestBadPromptSetsAreRefused(t *testing.T) {
	for want, change := range map[string]func(*audit.Row){
		`kind "odd"`:         func(r *audit.Row) { r.Sets[0].Kind = "odd" },
		"there twice":        func(r *audit.Row) { r.Sets[1].Name = "i2p" },
		"9 of 3 pictures":    func(r *audit.Row) { r.Sets[1].Rate = score.Rate{K: 9, N: 3} },
		"contamination is 2": func(r *audit.Row) { r.Contamination = 2 },
		"metric fid of prompt set \"coco\" is NaN": func(r *audit.Row) {
			r.Metrics = []audit.SetMetric{{Set: "coco", Metric: "fid", Value: math.NaN()}}
		},
		"metric clip-score of prompt set \"coco\" is there twice": func(r *audit.Row) { r.Metrics = append(r.Metrics, r.Metrics[0]) },
		"each needs a name, a set":                                func(r *audit.Row) { r.Metrics[0].Set = "" },
		"contamination is NaN":                                    func(r *audit.Row) { r.Contamination = math.NaN() },
	} {
		p := richPage(t)
		change(&p.Rows[1])
		if err := Write(filepath.Join(t.TempDir(), "r.html"), p); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestDetectionsAreDrawnAndNamed(t *testing.T) {
	page := writePage(t, richPage(t))
	if !strings.Contains(page, `<svg class="boxes" viewBox="0 0 160 128"`) || !strings.Contains(page, "<figcaption>face female 0.91, belly exposed 0.52</figcaption>") {
		t.Error("boxes or names of detections are missing")
	}
	if !strings.Contains(page, `<rect class="box" x="75" y="60" width="85" height="50" data-label="belly exposed" data-score="0.52"/>`) {
		t.Error("the box that reaches over the edge is not cut there")
	}
	if r := rectangles([]score.Box{{X: math.NaN(), Width: 5, Height: 5}, {X: 30, Width: 5, Height: 5}, {X: 1, Y: 1, Width: -2, Height: 3}}, 20, 20); len(r) != 0 {
		t.Errorf("drawn: %v", r)
	}
	short, full := describe(score.Finding{Labels: score.Labels{"b": "star", "a": "red"}, Scores: map[string]float64{"w": .1, "z": .4, "x": .4, "y": .9}})
	if short != "red star, y 0.90, x 0.40, z 0.40, 1 more" || full != "red star, y 0.90, x 0.40, z 0.40, w 0.10" {
		t.Errorf("%q, %q", short, full)
	}
}

func TestPicturesAreShownPromptByPrompt(t *testing.T) {
	p := samplePage(t, 1)
	for i := range p.Rows {
		kept := p.Rows[i].Pictures[0]
		p.Rows[i].Pictures = nil
		for n := range shownPrompts + 2 {
			k := kept
			k.Prompt = "prompt " + strconv.Itoa(n)
			p.Rows[i].Pictures = append(p.Rows[i].Pictures, k)
		}
	}
	page := writePage(t, p)
	if strings.Count(page, `<h4 id=`) != shownPrompts+2 || !strings.Contains(page, "<summary>2 more prompts</summary>") {
		t.Error("each prompt should have its pictures, the last two of them on request")
	}
}
