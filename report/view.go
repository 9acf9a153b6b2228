package report

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strconv"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

//go:embed page.html.tmpl
var pageText string

//go:embed page.css
var styleSheet string

// StyleSheet is the style of all pages, for other pages that should look like them.
func StyleSheet() string { return styleSheet }

//go:embed page.js
var script string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// viewer turns rows into drawings.
type viewer struct {
	cells
	baseline  string
	styles    map[string]style
	labelRoom float64
}

// view is what the template shows.
type view struct {
	Page
	StyleSheet template.CSS
	Script     template.JS
	Policy     string // what a browser may load and run: this style sheet, this script, embedded pictures
	Models     []legendEntry
	Seeds      int

	Harmful, Benign, Training      []chart
	Planes, MorePlanes             []planes // safety against utility; more: those to be opened
	Metrics                        []metricLine
	Contaminated                   []chart // rates against the share of harmful pictures in the data
	Sets                           []setView
	SetTable                       []setLine
	First                          string // which prompt sets IP and benign accuracy are of
	HasContamination               bool
	Table                          []line
	ManySeeds, HasMSE, HasCost     bool
	Galleries                      []gallery
	Versions                       []NamedText
	Times                          []NamedText
	JSON, CSV, SetsCSV, MetricsCSV template.URL
}

type legendEntry struct {
	style
	Name     string
	Baseline bool
}

// line is a row of the table.
type line struct {
	Model, Adaptation, Steps, Seed string
	style
	IP, Benign      rateText
	MSE, Cost       string // "" if not measured
	MSEKey, CostKey string
	Share, ShareKey string // of harmful pictures in the data
}

// rateText is a rate with its interval as it is written; Key sorts it.
type rateText struct {
	Value, Interval, Count, Key string
	Measured                    bool
}

func newView(p Page) (*view, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	v := &viewer{cells: arrange(p.Rows, p.Order, p.Labels), baseline: p.Baseline}
	v.styles = styles(v.models, p.Baseline)
	var names []string
	out := &view{Page: p, StyleSheet: template.CSS(styleSheet), Script: template.JS(script), Seeds: v.seeds, ManySeeds: v.seeds > 1}
	out.Policy = fmt.Sprintf("default-src 'none'; img-src data:; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'", digest(styleSheet), digest(script))
	for _, model := range v.models {
		names = append(names, v.label(model))
		out.Models = append(out.Models, legendEntry{v.styles[model], v.label(model), model == p.Baseline})
	}
	v.labelRoom = labelRoom(names)
	v.charts(out)
	v.promptSets(out)
	for i, t := range p.Curves {
		if c, ok := trainingChart(i+1, t); ok {
			out.Training = append(out.Training, c)
		}
	}
	for _, row := range v.sorted() {
		out.Table = append(out.Table, v.line(row))
		out.HasMSE, out.HasCost = out.HasMSE || row.HarmMSE != 0, out.HasCost || row.Gradients != 0
		out.HasContamination = out.HasContamination || row.Contamination != 0
	}
	var err error
	if out.Galleries, err = v.galleries(p.PictureRoot); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Versions)) {
		out.Versions = append(out.Versions, NamedText{name, p.Versions[name]})
	}
	total := 0.0
	for _, s := range p.Seconds {
		total += s.Seconds
		out.Times = append(out.Times, NamedText{s.Name, duration(s.Seconds)})
	}
	if len(p.Seconds) > 1 {
		out.Times = append(out.Times, NamedText{"all", duration(total)})
	}
	return out, out.downloads()
}

func (v *viewer) charts(out *view) {
	for _, adaptation := range v.adaptations {
		if c, ok := v.rateChart(harmful, adaptation); ok {
			out.Harmful = append(out.Harmful, c)
		}
		if c, ok := v.rateChart(benign, adaptation); ok {
			out.Benign = append(out.Benign, c)
		}
	}
	for _, f := range v.families() {
		if c, ok := v.contaminationChart(harmful, f); ok {
			out.Contaminated = append(out.Contaminated, c)
		}
	}
	out.Planes, out.MorePlanes = v.planePairs()
	out.Metrics = v.metricTable()
}

func (v *viewer) line(r audit.Row) line {
	l := line{
		Model: v.label(r.Model), style: v.styles[r.Model], Adaptation: v.label(r.Adaptation),
		Steps: strconv.Itoa(r.Steps), Seed: strconv.FormatUint(r.Seed, 10), IP: write(r.IP), Benign: write(r.Benign),
	}
	l.Share, l.ShareKey = shareText(r.Contamination), plain(r.Contamination)
	if r.HarmMSE != 0 {
		l.MSE, l.MSEKey = strconv.FormatFloat(r.HarmMSE, 'f', 3, 64), plain(r.HarmMSE)
	}
	if r.Gradients != 0 {
		l.Cost, l.CostKey = grouped(r.Gradients), plain(r.Gradients)
	}
	return l
}

func write(r score.Rate) rateText {
	if r.N == 0 {
		return rateText{}
	}
	i := r.Wilson()
	return rateText{
		Value: share(r.Value()), Interval: fmt.Sprintf("[%s, %s]", share(i.Low), share(i.High)), Count: fmt.Sprintf("%d / %d", r.K, r.N),
		Key: plain(r.Value()), Measured: true,
	}
}

// downloads embeds the results, so that whoever has the page has the numbers.
func (v *view) downloads() error {
	r := v.results()
	object, err := r.encode()
	if err != nil {
		return err
	}
	table, err := r.csv()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(r.Rows, func(row audit.Row) bool { return len(row.Sets) > 0 }) {
		sets, err := SetsCSV(r.Rows)
		if err != nil {
			return err
		}
		v.SetsCSV = csvURL(sets)
	}
	if slices.ContainsFunc(r.Rows, func(row audit.Row) bool { return len(row.Metrics) > 0 }) {
		metrics, err := MetricsCSV(r.Rows)
		if err != nil {
			return err
		}
		v.MetricsCSV = csvURL(metrics)
	}
	v.JSON = template.URL("data:application/json;base64," + base64.StdEncoding.EncodeToString(object))
	v.CSV = csvURL(table)
	return nil
}

func csvURL(table []byte) template.URL {
	return template.URL("data:text/csv;charset=utf-8;base64," + base64.StdEncoding.EncodeToString(table))
}

// digest names a text in a content security policy.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// slug is the part of an identifier that stands for a name, which may hold any letter.
func slug(names []string, name string) string { return strconv.Itoa(slices.Index(names, name) + 1) }

// duration writes seconds as people say them.
func duration(seconds float64) string {
	switch {
	case seconds < 10:
		return strconv.FormatFloat(seconds, 'f', 1, 64) + " s"
	case seconds < 120:
		return strconv.FormatFloat(seconds, 'f', 0, 64) + " s"
	case seconds < 7200:
		return fmt.Sprintf("%d min %02d s", int(seconds)/60, int(seconds)%60)
	}
	return strconv.FormatFloat(seconds/3600, 'f', 1, 64) + " h"
}

// grouped writes a count with thin spaces between thousands.
func grouped(x float64) string {
	digits := strconv.FormatFloat(math.Abs(x), 'f', 0, 64)
	out := ""
	for len(digits) > 3 {
		out = "\u202f" + digits[len(digits)-3:] + out
		digits = digits[:len(digits)-3]
	}
	if x < 0 {
		digits = "−" + digits
	}
	return digits + out
}
