package report

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/diagnose"
	"github.com/resalign/resalign/files"
)

//go:embed diagnosis.html.tmpl
var diagnosisText string

//go:embed diagnosis.css
var diagnosisSheet string

// diagnosisTemplate draws charts with the definitions of the other page.
var diagnosisTemplate = template.Must(template.Must(template.New("page").Parse(pageText)).New("diagnosis").Parse(diagnosisText))

// WriteDiagnosis writes what a diagnosis found as one HTML file that needs nothing but itself, with the numbers embedded
// as JSON and CSV. The same diagnosis gives the same bytes; the file appears whole or not at all. versions are listed as
// they are.
func WriteDiagnosis(path string, d *diagnose.Diagnosis, versions map[string]string) error {
	v, err := newDiagnosisView(d, versions)
	if err != nil {
		return fmt.Errorf("report %s: %w", path, err)
	}
	var page bytes.Buffer
	if err := diagnosisTemplate.Execute(&page, v); err != nil {
		return fmt.Errorf("report %s: %w", path, err)
	}
	return files.WriteBytes(path, page.Bytes())
}

// diagnosisView is what the template shows.
type diagnosisView struct {
	Title, Policy string
	StyleSheet    template.CSS
	Summary       []string
	Theta, Tuning string
	Base          string
	Models        []legendEntry

	Traces, Distances                                       []strip
	Spectrum                                                strip
	Residuals, Lines                                        []chart
	CurvatureTable, SystemTable, LineTable, DifferenceTable *sheet
	OtherFiles                                              []string

	Facts, Versions []NamedText
	JSON, CSV       template.URL
}

// sheet is a table whose rows belong to models, or to pairs of them.
type sheet struct {
	Name string
	Head []string
	Rows []sheetRow
}

type sheetRow struct {
	style
	Name  string
	Cells []sheetCell
}

type sheetCell struct{ Text, Interval, Class string }

// examined draws a diagnosis.
type examined struct {
	*diagnose.Diagnosis
	styles    map[string]style
	labelRoom float64
}

func newDiagnosisView(d *diagnose.Diagnosis, versions map[string]string) (*diagnosisView, error) {
	if len(d.Models) == 0 {
		return nil, fmt.Errorf("the diagnosis has no model; diagnose at least one")
	}
	base := d.Models[0].Name
	var names []string
	for _, m := range d.Models {
		if len(m.Systems) == 0 || !slices.Contains(m.Line.S, 0) || !slices.Contains(m.Line.S, 1) {
			return nil, fmt.Errorf("the diagnosis of model %s is not complete; finish it first", m.Name)
		}
		names = append(names, m.Name)
	}
	x := &examined{Diagnosis: d, styles: styles(names, base), labelRoom: labelRoom(names)}
	sheet := styleSheet + diagnosisSheet
	s := d.Settings
	v := &diagnosisView{
		Title: "Diagnosis of " + joined(names), Summary: d.Summary(), Base: base, StyleSheet: template.CSS(sheet),
		Policy: fmt.Sprintf("default-src 'none'; img-src data:; style-src '%s'; base-uri 'none'; form-action 'none'", digest(sheet)),
		Theta:  fmt.Sprintf("all %s weights of the UNet", grouped(float64(s.Size))),
		Tuning: fmt.Sprintf("%s of %s fine-tuning on the benign pictures", stepsOf(s.Steps), s.Method),
		Traces: x.traces(), Spectrum: x.spectrum(), Distances: x.distances(), Residuals: x.residuals(), Lines: x.lines(),
		CurvatureTable: x.curvatureTable(), SystemTable: x.systemTable(), LineTable: x.lineTable(), DifferenceTable: x.differenceTable(),
	}
	if s.Parameters == diagnose.LoRA {
		v.Theta = fmt.Sprintf("the %s factors of a fresh adapter of rank %d", grouped(float64(s.Size)), s.Rank)
	}
	for _, m := range d.Models {
		v.Models = append(v.Models, legendEntry{x.styles[m.Name], m.Name, m.Name == base && len(d.Models) > 1})
		if len(m.OtherFiles) > 0 {
			v.OtherFiles = append(v.OtherFiles, fmt.Sprintf("%s differs from it in the files of %s as well.", m.Name, joined(m.OtherFiles)))
		}
	}
	v.Facts = facts(s)
	for _, name := range slices.Sorted(maps.Keys(versions)) {
		v.Versions = append(v.Versions, NamedText{name, versions[name]})
	}
	object, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, err
	}
	table, err := d.CSV()
	if err != nil {
		return nil, err
	}
	v.JSON = template.URL("data:application/json;base64," + base64.StdEncoding.EncodeToString(object))
	v.CSV = template.URL("data:text/csv;charset=utf-8;base64," + base64.StdEncoding.EncodeToString(table))
	return v, nil
}

func facts(s diagnose.Settings) []NamedText {
	return []NamedText{
		{"θ", s.Parameters + ", " + grouped(float64(s.Size)) + " numbers"},
		{"fine-tuning", fmt.Sprintf("%s, %s, %s at %s", s.Method, stepsOf(s.Steps), s.Optimizer, short(s.LearningRate))},
		{"pictures per batch", fmt.Sprintf("%d, fine-tuning × %d", s.BatchSize, s.Accumulation)},
		{"probes per trace", strconv.Itoa(s.Probes)},
		{"draws per spectrum", strconv.Itoa(s.Draws)},
		{"power iterations", fmt.Sprintf("%d, tolerance %s", s.PowerIterations, short(s.Tolerance))},
		{"γ, K, μ", fmt.Sprintf("%s, %d, %s", short(s.Gamma), s.Iterations, short(s.Damping))},
		{"batches per loss", strconv.Itoa(s.LossBatches)},
		{"seed", strconv.FormatUint(s.Seed, 10)},
	}
}

// joined lists names as people do.
func joined(names []string) string {
	n := len(names)
	if n == 1 {
		return names[0]
	}
	return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
}
