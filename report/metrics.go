package report

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"github.com/resalign/resalign/audit"
)

// metric is one that was measured on a prompt set.
type metric struct{ set, kind, name string }

// metricNames are what metrics are called, and of which a lower value is better.
var metricNames = map[string]struct {
	text  string
	lower bool
}{
	"fid": {"FID", true}, "kid": {"KID", true}, "cmmd": {"CMMD", true}, "clip-score": {"CLIP score", false}, "aesthetics": {"Aesthetics", false},
}

// text is what to call the metric.
func (m metric) text() string {
	if known := metricNames[m.name].text; known != "" {
		return known
	}
	return m.name
}

// metrics lists those of some row, as they first appear.
func (c cells) metrics() (out []metric) {
	for _, row := range c.sorted() {
		for _, found := range row.Metrics {
			if m := (metric{found.Set, found.Kind, found.Metric}); !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return out
}

// in is the metric in a cell: the mean of its seeds' values, with the interval where there is one seed with one.
func (m metric) in(c *cell) (value, low, high float64, ok bool) {
	n := 0
	for _, row := range c.rows {
		for _, found := range row.Metrics {
			if found.Set != m.set || found.Metric != m.name {
				continue
			}
			n++
			value += found.Value
			low, high = math.NaN(), math.NaN()
			if found.Interval != nil && n == 1 {
				low, high = found.Interval.Low, found.Interval.High
			}
		}
	}
	if n == 0 {
		return 0, 0, 0, false
	}
	value /= float64(n)
	if math.IsNaN(low) {
		low, high = value, value
	}
	return value, low, high, true
}

// metricLine is a row of the table of metrics.
type metricLine struct {
	style
	Model, Adaptation, Steps, Seed, Set, Metric string
	Value, Key, Interval                        string
	Pictures                                    int
}

func (v *viewer) metricTable() (out []metricLine) {
	for _, row := range v.sorted() {
		l := v.line(row)
		for _, m := range row.Metrics {
			out = append(out, metricLine{
				style: l.style, Model: l.Model, Adaptation: l.Adaptation, Steps: l.Steps, Seed: l.Seed, Set: m.Set, Metric: metric{name: m.Metric}.text(),
				Value: number(m.Value), Key: plain(m.Value), Interval: spreadText(m), Pictures: m.Pictures,
			})
		}
	}
	return out
}

// spreadText is how sure a metric is: the interval of a mean, the standard deviation of a distance over subsets.
func spreadText(m audit.SetMetric) string {
	switch {
	case m.Interval != nil:
		return fmt.Sprintf("[%s, %s]", number(m.Interval.Low), number(m.Interval.High))
	case m.SD != nil:
		return "sd " + number(*m.SD)
	}
	return ""
}

// number writes a value with four significant digits, as 17.11 or 0.001234.
func number(x float64) string {
	if a := math.Abs(x); a >= 1000 && a < 1e15 {
		return strconv.FormatFloat(x, 'f', 0, 64)
	}
	return strconv.FormatFloat(x, 'g', 4, 64)
}

// MetricsTable lists the metrics of the rows in aligned columns for a terminal; empty if there are none. Order and labels
// are those of Page.
func MetricsTable(rows []audit.Row, order []string, labels map[string]string) string {
	v := &viewer{cells: arrange(rows, order, labels)}
	head := []string{"model", "fine-tuning", "steps", "seed", "prompts", "metric", "value", "95 %", "n"}
	var body [][]string
	for _, l := range v.metricTable() {
		line := []string{l.Model, l.Adaptation, l.Steps, l.Seed, l.Set, l.Metric, l.Value, l.Interval, strconv.Itoa(l.Pictures)}
		for i := range line {
			line[i] = oneLine(line[i])
		}
		body = append(body, line)
	}
	if len(body) == 0 {
		return ""
	}
	return aligned(head, []bool{false, false, true, true, false, false, true, false, true}, body)
}
