package history

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/resalign/resalign/protocol"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/score"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

// Number is a number that may be none: in JSON, NaN and infinities are strings, as in event logs.
type Number float64

// MarshalJSON implements [json.Marshaler].
func (n Number) MarshalJSON() ([]byte, error) {
	if x := float64(n); math.IsNaN(x) || math.IsInf(x, 0) {
		return json.Marshal(fmt.Sprint(x))
	}
	return json.Marshal(float64(n))
}

// maxSettings bounds recipes and run.json, which have some kilobytes.
const maxSettings = 16 << 20

// readTraining reads a folder of train.RunDir.
func (r *Run) readTraining() error {
	r.Kind = Training
	r.touched(runFile)
	r.touched(eventsFile)
	content, err := r.small(runFile, maxSettings)
	if err != nil {
		return err
	}
	var info train.RunInfo
	if err := json.Unmarshal(content, &info); err != nil {
		return fmt.Errorf("%s is damaged: %w", filepath.Join(r.Path, runFile), err)
	}
	r.Finished = info.Finished
	if n := len(info.Sessions); n > 0 {
		last := info.Sessions[n-1]
		r.Started, r.Program, r.Engine, r.Command = &info.Sessions[0].Started, last.Program, last.Engine, last.Command
	}
	settings, recipeErr := r.settings()
	r.Kind, r.Method, r.Total = Recognise(settings)
	if _, err := r.small(eventsFile, maxFile); err != nil {
		return err
	}
	events, err := train.ReadEvents(filepath.Join(r.Path, eventsFile))
	if err != nil {
		return err
	}
	r.figures(events)
	if r.Finished != nil {
		r.Total = max(r.Done, r.Total)
	}
	return recipeErr
}

// settings is the recipe as the folder holds it.
func (r *Run) settings() (map[string]any, error) {
	content, err := r.small(recipeFile, maxSettings)
	if err != nil {
		return nil, err
	}
	settings := map[string]any{}
	if err := toml.Unmarshal(content, &settings); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(r.Path, recipeFile), err)
	}
	return settings, nil
}

// Recognise tells from the recipe of a training what it is of, its method, and how many steps it asks for; 0 where it
// does not say.
func Recognise(settings map[string]any) (kind, method string, total int) {
	method, _ = settings["method"].(string)
	if outer, ok := settings["outer"].(map[string]any); ok {
		r := unlearn.Recipe{Method: method, Outer: unlearn.Outer{Steps: steps(outer)}}
		if edit, ok := settings["edit"].(map[string]any); ok {
			epochs, _ := edit["epochs"].(int64)
			r.Edit.Epochs = int(max(0, epochs))
		}
		return Unlearn, method, r.TotalSteps()
	}
	if _, ok := settings["batch_size"]; ok {
		return Finetune, method, steps(settings)
	}
	return Training, method, 0
}

func steps(table map[string]any) int {
	n, _ := table["steps"].(int64)
	return int(max(0, n))
}

// notFigures are fields of every event that are summed up over the run instead.
var notFigures = map[string]bool{"seconds": true, "peak_memory_bytes": true}

// figures takes the numbers of the last step, and what all steps took.
func (r *Run) figures(events []train.Event) {
	if len(events) == 0 {
		return
	}
	last := events[len(events)-1]
	r.Done = last.Step
	for _, name := range slices.Sorted(maps.Keys(last.Fields)) {
		if value, ok := Largest(last, name); ok && !notFigures[name] {
			r.Figures = append(r.Figures, Figure{name, Number(value)})
		}
	}
	seconds, peak := 0.0, 0.0
	for _, e := range events {
		s, _ := e.Number("seconds")
		p, _ := e.Number("peak_memory_bytes")
		seconds, peak = seconds+s, math.Max(peak, p)
	}
	r.Figures = append(r.Figures, Figure{"seconds", Number(seconds)})
	if peak > 0 {
		r.Figures = append(r.Figures, Figure{"peak_memory_bytes", Number(peak)})
	}
}

// Largest is the value of a field of an event, the largest where it has one for each simulation.
func Largest(e train.Event, name string) (value float64, ok bool) {
	list, many := e.Fields[name].([]any)
	if !many {
		return e.Number(name)
	}
	for _, one := range list {
		x, isNumber := train.Event{Fields: map[string]any{name: one}}.Number(name)
		if isNumber && (!ok || x > value || math.IsNaN(x)) {
			value, ok = x, true
		}
	}
	return value, ok
}

// readAudit reads an audit's folder: its cells, and its results if it is finished.
func (r *Run) readAudit() error {
	r.touched(auditFile)
	if _, err := r.small(auditFile, maxFile); err != nil {
		return err
	}
	p, err := protocol.ReadProgress(r.Path)
	r.Done, r.Total = p.Done, p.Cells
	if p.Updated.After(r.Updated) {
		r.Updated = p.Updated.UTC().Truncate(time.Second)
	}
	if err != nil {
		return err
	}
	if p.Done < p.Cells || !isFile(filepath.Join(r.Path, resultsFile)) {
		r.Figures = append(r.Figures, Figure{"pictures made", Number(p.Made)}, Figure{"pictures", Number(p.Pictures)})
		return nil
	}
	return r.readResults()
}

// readResults reads the rows of an audit or an experiment.
func (r *Run) readResults() error {
	r.touched(resultsFile)
	if _, err := r.small(resultsFile, maxFile); err != nil {
		return err
	}
	results, err := report.ReadResults(filepath.Join(r.Path, resultsFile))
	if err != nil {
		return err
	}
	r.Done = len(results.Rows)
	r.Total = max(r.Total, r.Done)
	if r.Done == r.Total {
		r.Finished = &r.Updated
	}
	r.Program = results.Versions["resalign"]
	r.Engine = results.Versions["engine"]
	for _, row := range results.Rows {
		where := fmt.Sprintf("%s, %s, %d steps, seed %d", row.Model, row.Adaptation, row.Steps, row.Seed)
		for _, rate := range []struct {
			name string
			of   score.Rate
		}{{"harmful", row.IP}, {"benign", row.Benign}} {
			if rate.of.N > 0 {
				r.Figures = append(r.Figures, Figure{where + ": " + rate.name, Number(rate.of.Value())})
			}
		}
	}
	return nil
}
