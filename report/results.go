package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/score"
)

// Results are the numbers of an audit as they are kept in results.json.
type Results struct {
	Rows     []audit.Row        `json:"rows"`
	Seconds  map[string]float64 `json:"seconds"`  // stage → how long it took
	Versions map[string]string  `json:"versions"` // component → version
	Recipe   map[string]string  `json:"recipe"`   // name → text, word for word
}

// WriteResults writes results.json: indented, keys in a fixed order, the same bytes for the same results. The file
// appears whole or not at all. Rates of more hits than pictures, numbers that are not finite, and two rows of the same
// model, adaptation, steps and seed are refused.
func WriteResults(path string, r Results) error {
	content, err := r.encode()
	if err != nil {
		return fmt.Errorf("results %s: %w", path, err)
	}
	return files.WriteBytes(path, content)
}

// ReadResults reads what WriteResults wrote, and refuses what it would refuse.
func ReadResults(path string) (Results, error) {
	var r Results
	content, err := os.ReadFile(path)
	if err != nil {
		return r, fmt.Errorf("results cannot be read: %w", err)
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return r, fmt.Errorf("results %s: not a results file: %w; make it again", path, err)
	}
	if err := r.check(); err != nil {
		return r, fmt.Errorf("results %s: %w", path, err)
	}
	return r, nil
}

func (r Results) encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	rows := make([]audit.Row, len(r.Rows))
	for i, row := range r.Rows {
		row.IPInterval, row.BenignInterval = row.IP.Wilson(), row.Benign.Wilson() // whoever made the row may not have set them
		row.Sets = slices.Clone(row.Sets)
		for k := range row.Sets {
			row.Sets[k].Interval = row.Sets[k].Rate.Wilson()
		}
		rows[i] = row
	}
	r.Rows = rows
	if r.Seconds == nil {
		r.Seconds = map[string]float64{}
	}
	if r.Versions == nil {
		r.Versions = map[string]string{}
	}
	if r.Recipe == nil {
		r.Recipe = map[string]string{}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(r)
	return b.Bytes(), err
}

// maxCount keeps sums of counts far from overflow.
const maxCount = 1 << 40

func (r Results) check() error {
	type place struct {
		model, adaptation string
		steps             int
		seed              uint64
	}
	seen := map[place]bool{}
	for _, row := range r.Rows {
		at := place{row.Model, row.Adaptation, row.Steps, row.Seed}
		fail := func(format string, args ...any) error {
			return fmt.Errorf("row of model %q, adaptation %q, %d steps, seed %d: %s", at.model, at.adaptation, at.steps, at.seed, fmt.Sprintf(format, args...))
		}
		switch {
		case row.Model == "" || row.Adaptation == "":
			return fail("model and adaptation must be named; use adaptation %q for the model as it is", untouched)
		case (row.Adaptation == untouched) != (row.Steps == 0) || row.Steps < 0:
			return fail("steps must be 0 before any adaptation, that is for adaptation %q, and 1 or more for every other", untouched)
		case seen[at]:
			return fail("there are two such rows; leave one out")
		}
		seen[at] = true
		for i, rate := range []score.Rate{row.IP, row.Benign} {
			if !countable(rate) {
				return fail("%s of %d in %d pictures is not a rate; count again", []string{"ip", "benign"}[i], rate.K, rate.N)
			}
		}
		for i, s := range row.Sets {
			switch {
			case s.Name == "" || s.Kind != harmfulKind && s.Kind != benignKind:
				return fail("prompt set %q is of kind %q; each needs a name, and a kind, %s or %s", s.Name, s.Kind, harmfulKind, benignKind)
			case slices.ContainsFunc(row.Sets[:i], func(o audit.SetRate) bool { return o.Name == s.Name }):
				return fail("prompt set %q is there twice; leave one out", s.Name)
			case !countable(s.Rate):
				return fail("%d of %d pictures of prompt set %q are not a rate; count again", s.Rate.K, s.Rate.N, s.Name)
			}
		}
		for i, m := range row.Metrics {
			bad := !plausible(m.Value) || m.SD != nil && !plausible(*m.SD) || m.Interval != nil && !(plausible(m.Interval.Low) && plausible(m.Interval.High))
			switch {
			case m.Set == "" || m.Metric == "" || m.Pictures < 0 || m.Pictures > maxCount:
				return fail("metric %q of prompt set %q over %d pictures; each needs a name, a set and a number of pictures", m.Metric, m.Set, m.Pictures)
			case bad:
				return fail("metric %s of prompt set %q is %v, which a results file cannot hold; measure again", m.Metric, m.Set, m.Value)
			case slices.ContainsFunc(row.Metrics[:i], func(o audit.SetMetric) bool { return o.Set == m.Set && o.Metric == m.Metric }):
				return fail("metric %s of prompt set %q is there twice; leave one out", m.Metric, m.Set)
			}
		}
		if !(row.Contamination >= 0 && row.Contamination <= 1) {
			return fail("contamination is %v; it is a share, from 0 to 1", row.Contamination)
		}
		for i, value := range []float64{row.HarmMSE, row.Gradients} {
			if !finite(value) {
				return fail("%s is %v, which a results file cannot hold; measure again, or use 0 for not measured", []string{"harm_mse", "gradients"}[i], value)
			}
		}
	}
	for _, stage := range slices.Sorted(maps.Keys(r.Seconds)) {
		if !finite(r.Seconds[stage]) {
			return fmt.Errorf("seconds of stage %q are %v; give a finite number", stage, r.Seconds[stage])
		}
	}
	return nil
}

// Kinds of prompt sets.
const (
	harmfulKind = "harmful"
	benignKind  = "benign"
)

func countable(r score.Rate) bool { return r.K >= 0 && r.K <= r.N && r.N <= maxCount }

// plausible values of metrics can be added up and drawn.
func plausible(x float64) bool { return math.Abs(x) < 1e100 }

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }

// csv is one line per row; rates without pictures are empty.
func (r Results) csv() ([]byte, error) {
	lines := [][]string{{
		"model", "adaptation", "steps", "seed",
		"ip_k", "ip_n", "ip", "ip_low", "ip_high",
		"benign_k", "benign_n", "benign", "benign_low", "benign_high",
		"harm_mse", "gradients", "contamination",
	}}
	for _, row := range r.Rows {
		line := []string{row.Model, row.Adaptation, strconv.Itoa(row.Steps), strconv.FormatUint(row.Seed, 10)}
		for _, rate := range []score.Rate{row.IP, row.Benign} {
			line = append(line, strconv.Itoa(rate.K), strconv.Itoa(rate.N))
			if rate.N == 0 {
				line = append(line, "", "", "")
				continue
			}
			interval := rate.Wilson()
			line = append(line, plain(rate.Value()), plain(interval.Low), plain(interval.High))
		}
		lines = append(lines, append(line, plain(row.HarmMSE), plain(row.Gradients), plain(row.Contamination)))
	}
	return table(lines)
}

// SetsCSV is a table with one line for each row and prompt set: its rate with the 95 % interval.
func SetsCSV(rows []audit.Row) ([]byte, error) {
	lines := [][]string{append(placeColumns(), "prompts", "kind", "k", "n", "rate", "low", "high")}
	for _, row := range rows {
		for _, s := range row.Sets {
			line := append(placeOf(row), s.Name, s.Kind, strconv.Itoa(s.Rate.K), strconv.Itoa(s.Rate.N))
			if s.Rate.N > 0 {
				interval := s.Rate.Wilson()
				line = append(line, plain(s.Rate.Value()), plain(interval.Low), plain(interval.High))
			} else {
				line = append(line, "", "", "")
			}
			lines = append(lines, line)
		}
	}
	return table(lines)
}

// MetricsCSV is a table with one line for each row and metric of a prompt set. Means have the ends of a 95 % interval,
// distances over subsets a standard deviation.
func MetricsCSV(rows []audit.Row) ([]byte, error) {
	lines := [][]string{append(placeColumns(), "prompts", "metric", "value", "low", "high", "sd", "pictures", "by")}
	for _, row := range rows {
		for _, m := range row.Metrics {
			line := append(placeOf(row), m.Set, m.Metric, plain(m.Value), "", "", "", strconv.Itoa(m.Pictures), m.By)
			if m.Interval != nil {
				line[8], line[9] = plain(m.Interval.Low), plain(m.Interval.High)
			}
			if m.SD != nil {
				line[10] = plain(*m.SD)
			}
			lines = append(lines, line)
		}
	}
	return table(lines)
}

func placeColumns() []string {
	return []string{"model", "adaptation", "contamination", "steps", "seed"}
}

func placeOf(row audit.Row) []string {
	return []string{row.Model, row.Adaptation, plain(row.Contamination), strconv.Itoa(row.Steps), strconv.FormatUint(row.Seed, 10)}
}

func table(lines [][]string) ([]byte, error) {
	var b bytes.Buffer
	err := csv.NewWriter(&b).WriteAll(lines)
	return b.Bytes(), err
}

// plain writes a number so that it reads back the same.
func plain(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
