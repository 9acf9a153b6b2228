package report

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// writePage returns the written page. With `go test -artifacts -outputdir DIR` the page of each test stays, to be looked at.
func writePage(t *testing.T, p Page) string {
	t.Helper()
	path := filepath.Join(t.ArtifactDir(), "report.html")
	if err := Write(path, p); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".partial-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return string(b)
}

func TestPageIsWhole(t *testing.T) {
	p := samplePage(t, 8)
	page := writePage(t, p)
	elements := parse(t, page)

	marks := map[string]element{}
	for _, e := range elements {
		if e.attributes["data-model"] != "" && strings.HasPrefix(e.inside, "ip-") {
			marks[e.inside+" "+e.attributes["data-model"]+" "+e.attributes["data-adaptation"]+" "+e.attributes["data-steps"]] = e
		}
	}
	charts := map[string][]string{untouched: {"ip-1", "ip-2"}, "diverse": {"ip-1"}, "subject": {"ip-2"}}
	seen := 0
	for _, r := range p.Rows {
		for _, chart := range charts[r.Adaptation] {
			key := fmt.Sprintf("%s %s %s %d", chart, r.Model, r.Adaptation, r.Steps)
			e, ok := marks[key]
			if !ok {
				t.Errorf("no mark %s", key)
				continue
			}
			seen++
			low, _ := strconv.ParseFloat(e.attributes["data-low"], 64)
			high, _ := strconv.ParseFloat(e.attributes["data-high"], 64)
			if e.attributes["data-k"] != strconv.Itoa(r.IP.K) || e.attributes["data-n"] != strconv.Itoa(r.IP.N) || low != r.IPInterval.Low || high != r.IPInterval.High {
				t.Errorf("mark %s: %v, want %v %v", key, e.attributes, r.IP, r.IPInterval)
			}
		}
		cells := fmt.Sprintf(`%s</th><td data-v="%s">%s</td><td class="number" data-v="%d">%d</td><td class="number" data-v="%s">`,
			p.Labels[r.Model], r.Adaptation, r.Adaptation, r.Steps, r.Steps, plain(r.IP.Value()))
		if !strings.Contains(page, cells) {
			t.Errorf("the table has no row %q", cells)
		}
	}
	if seen != len(marks) {
		t.Errorf("%d marks in the recovery charts, but %d of rows", len(marks), seen)
	}
	for _, text := range []string{p.Title, p.Summary, p.Notes[0].Heading, p.Notes[0].Paragraphs[1], p.Recipes[0].Text, "1.27.3", "fine-tune", "21 s", "26\u202f880"} {
		if !strings.Contains(html.UnescapeString(page), text) {
			t.Errorf("the page does not say %q", text)
		}
	}
	if again := writePage(t, p); again != page {
		t.Error("the same page was written as other bytes")
	}
}

func TestOnlyFlaggedPicturesAreBlurred(t *testing.T) {
	p := samplePage(t, 3)
	page := writePage(t, p)
	last := map[string]int{untouched: 0, "diverse": 200, "subject": 100}
	flagged, shown := 0, 0
	for _, r := range p.Rows {
		for _, k := range r.Pictures {
			if last[r.Adaptation] == r.Steps {
				shown++
				if k.Flagged {
					flagged++
				}
			}
		}
	}
	if flagged == 0 || flagged == shown {
		t.Fatal("the sample must have both kinds")
	}
	tiles := regexp.MustCompile(`(?s)<figure class="tile.*?</figure>`).FindAllString(page, -1)
	veiled := 0
	for _, tile := range tiles {
		harmful := strings.Contains(tile, "red star</figcaption>")
		veil := strings.Contains(tile, `<label class="veil"><input type="checkbox"`) && strings.Contains(tile, "aria-label=")
		if harmful != veil || veil != strings.Contains(tile, "flagged") {
			t.Errorf("harmful %v, veil %v: %.200s", harmful, veil, tile)
		}
		if veil {
			veiled++
		}
	}
	if len(tiles) != shown || veiled != flagged {
		t.Errorf("%d tiles, %d veiled; want %d, %d", len(tiles), veiled, shown, flagged)
	}
	if !strings.Contains(page, fmt.Sprintf("Show all flagged pictures (%d)", flagged)) {
		t.Error("no control to show all")
	}
	if strings.Count(page, `class="show-all"`) != 1 {
		t.Error("only the set with flagged pictures should have the control")
	}
}

func TestPageLoadsNothing(t *testing.T) {
	page := writePage(t, samplePage(t, 1))
	for _, e := range parse(t, page) {
		for _, name := range []string{"src", "href", "srcset", "action", "data", "poster"} {
			if value, ok := e.attributes[name]; ok && !strings.HasPrefix(value, "data:") {
				t.Errorf("<%s %s=%q>", e.name, name, value)
			}
		}
	}
	if strings.Contains(styleSheet, "url(") || strings.Contains(styleSheet, "@import") {
		t.Error("the style sheet loads something")
	}
	policy := html.UnescapeString(regexp.MustCompile(`Policy" content="([^"]*)"`).FindStringSubmatch(page)[1])
	for tag, kind := range map[string]string{"script": "script-src", "style": "style-src"} {
		text := regexp.MustCompile(`(?s)<` + tag + `>(.*?)</` + tag + `>`).FindStringSubmatch(page)
		if text == nil || !strings.Contains(policy, kind+" '"+digest(text[1])+"'") {
			t.Errorf("the policy %q does not allow the <%s> of the page", policy, tag)
		}
	}
}

func TestDownloadsAreTheResults(t *testing.T) {
	p := samplePage(t, 1)
	page := writePage(t, p)
	for name, kind := range map[string]string{"results.json": "application/json;base64,", "results.csv": "text/csv;charset=utf-8;base64,"} {
		m := regexp.MustCompile(`download="` + name + `" href="data:` + kind + `([^"]*)"`).FindStringSubmatch(page)
		if m == nil {
			t.Fatalf("no link to %s", name)
		}
		content, err := base64.StdEncoding.DecodeString(html.UnescapeString(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		want, err := p.results().encode()
		if name == "results.csv" {
			want, err = p.results().csv()
			if lines := bytes.Count(content, []byte("\n")); lines != len(p.Rows)+1 {
				t.Errorf("%d lines of CSV for %d rows", lines, len(p.Rows))
			}
		}
		if err != nil || !bytes.Equal(content, want) {
			t.Errorf("%s is not the results, %v", name, err)
		}
	}
}

func TestNamesAreEscaped(t *testing.T) {
	evil := `"><script>alert(1)</script><img src=x onerror=alert(1)> ' javascript:alert(1) </style></title>` + "\u202e"
	p := samplePage(t, 1)
	for i := range p.Rows {
		p.Rows[i].Model += evil
		if p.Rows[i].Adaptation != untouched {
			p.Rows[i].Adaptation += evil
		}
		for j := range p.Rows[i].Pictures {
			p.Rows[i].Pictures[j].Prompt += evil
			p.Rows[i].Pictures[j].Labels["shape"] += evil
		}
	}
	p.Order, p.Labels, p.Baseline = nil, map[string]string{"esd" + evil: evil}, "base"+evil
	p.Title, p.Summary = evil, evil
	p.Notes = []Section{{evil, []string{evil}}}
	p.Recipes, p.Versions, p.Seconds = []NamedText{{evil, evil}}, map[string]string{evil: evil}, []Stage{{evil, 1}}
	p.Curves[0].Name, p.Curves[0].XLabel, p.Curves[0].YLabel = evil, evil, evil
	scripts := 0
	for _, e := range parse(t, writePage(t, p)) {
		if e.name == "script" {
			scripts++
		}
		for name, value := range e.attributes {
			if strings.HasPrefix(name, "on") || name == "style" || (name == "src" && !strings.HasPrefix(value, "data:image/")) {
				t.Errorf("<%s %s=%q>", e.name, name, value)
			}
		}
	}
	if scripts != 1 {
		t.Errorf("%d scripts", scripts)
	}
}

func TestPagesWithLittleToShow(t *testing.T) {
	row := func(model, adaptation string, steps, k, n int) audit.Row {
		return audit.Row{Model: model, Adaptation: adaptation, Steps: steps, IP: score.Rate{K: k, N: n}, Benign: score.Rate{K: n - k, N: n}}
	}
	for name, c := range map[string]struct {
		page          Page
		with, without string
	}{
		"nothing":             {Page{}, "Nothing was measured", "<svg"},
		"before only":         {Page{Rows: []audit.Row{row("a", "none", 0, 1, 9)}}, "Before fine-tuning", "How fast harm"},
		"after only":          {Page{Rows: []audit.Row{row("a", "x", 5, 1, 9)}}, "After 5 steps of “x”", "NaN"},
		"no pictures counted": {Page{Rows: []audit.Row{row("a", "none", 0, 0, 0), row("a", "x", 1, 0, 0)}}, `data-v="">–`, "NaN"},
		"one of one":          {Page{Rows: []audit.Row{row("a", "none", 0, 1, 1), row("a", "x", 1, 0, 1)}}, "How fast harm", "NaN"},
		"level baseline":      {Page{Baseline: "b", Rows: []audit.Row{row("b", "none", 0, 9, 9), row("a", "none", 0, 0, 9), row("a", "x", 1, 1, 9), row("c", "none", 0, 3, 9)}}, `(baseline)`, "NaN"},
		"flat training":       {Page{Curves: []TrainingCurve{{"loss", "step", "loss", []float64{0, 1}, []float64{0, 0}}}}, `id="training-1"`, "NaN"},
		"no finite training":  {Page{Curves: []TrainingCurve{{"loss", "step", "loss", nil, nil}}}, "Nothing was measured", `id="training-1"`},
	} {
		t.Run(name, func(t *testing.T) {
			c.page.Title = "Test"
			page := writePage(t, c.page)
			parse(t, page)
			if !strings.Contains(page, c.with) || strings.Contains(page, c.without) {
				t.Errorf("the page should have %q, and not %q", c.with, c.without)
			}
		})
	}
}

func TestLevelBaselineReachesAcross(t *testing.T) {
	rows := []audit.Row{
		{Model: "base", Adaptation: untouched, IP: score.Rate{K: 9, N: 10}},
		{Model: "a", Adaptation: untouched, IP: score.Rate{K: 0, N: 10}},
		{Model: "a", Adaptation: "x", Steps: 10, IP: score.Rate{K: 1, N: 10}},
		{Model: "given", Adaptation: untouched, IP: score.Rate{K: 5, N: 10}},
	}
	v := &viewer{cells: arrange(rows, nil, nil), baseline: "base"}
	v.styles = styles(v.models, "base")
	c, ok := v.rateChart(harmful, "x")
	if !ok || len(c.Series) != 2 || c.Series[0].Name != "base" || c.Series[1].Name != "a" {
		t.Fatalf("%v %+v", ok, c.Series)
	}
	if !strings.HasSuffix(c.Series[0].Line, fmt.Sprintf("L%s %s", coordinate(c.Right), coordinate(c.Series[0].Points[0].Y))) || c.Series[0].Band != "" {
		t.Errorf("the baseline's line is %q, its band %q", c.Series[0].Line, c.Series[0].Band)
	}
}

func TestSeedsArePooledInChartsAndListedInTheTable(t *testing.T) {
	p := Page{Title: "Seeds", Rows: append(sampleRows(1), sampleRows(2)...), Order: sampleModels}
	p.Rows = append(p.Rows, sampleRows(3)...)
	page := writePage(t, p)
	if !strings.Contains(page, `data-model="ascent" data-adaptation="diverse" data-steps="200" data-k="288" data-n="600"`) {
		t.Error("the counts of three seeds were not added")
	}
	if got := strings.Count(page, `<th scope="row" data-v=`); got != len(p.Rows) {
		t.Errorf("%d lines for %d rows", got, len(p.Rows))
	}
	if !strings.Contains(page, "Charts pool 3 seeds") || !strings.Contains(page, `class="seed"`) {
		t.Error("the page does not show the seeds")
	}
}

func TestOrder(t *testing.T) {
	c := arrange(sampleRows(1), []string{"resalign", "unknown", "esd", "esd"}, nil)
	if got := fmt.Sprint(c.models); got != "[resalign esd base ascent ascent-matched]" {
		t.Error(got)
	}
	if got := fmt.Sprint(c.adaptations, c.steps("diverse"), c.last("subject")); got != "[diverse subject] [0 50 100 200] 100" {
		t.Error(got)
	}
}
