package report

import (
	"fmt"
	"math"

	"github.com/resalign/resalign/diagnose"
)

// strip is a drawing with one axis, below, and a row for each model or block: intervals or bars.
type strip struct {
	ID, Title, Description string
	Width, Height          float64
	Left, Right            float64 // of the plot
	Top, Bottom            float64
	X                      []tick
	XLabel                 string
	Zero                   float64
	HasZero                bool
	Guides                 []tick // limits to look at
	Rows                   []stripRow
	Thick                  float64 // of bars
}

type stripRow struct {
	Label string
	At    float64
	Spans []span
	Bars  []bar
}

// span is an interval, with the value that it is of or without.
type span struct {
	style
	From, To, X, Y   float64
	Point            bool
	Tip, Model       string
	Value, Low, High string
}

type bar struct {
	style
	From, To, Width, Y float64
	Text, Tip, Model   string
	Value              string
}

// rowHeight is that of a row with an interval.
const rowHeight = 30

// stripFrame is an empty strip for rows of the given height.
func stripFrame(id, title string, left float64, rows int, height float64) strip {
	s := strip{ID: id, Title: title, Width: chartWidth, Left: left, Right: chartWidth - 18, Top: 20}
	s.Bottom = s.Top + 6 + height*float64(rows)
	s.Height = s.Bottom + 42
	return s
}

// axis is for values from low to high; 0 is marked where it lies between them.
func (s *strip) axis(low, high float64) axis {
	a := valueAxis(low, high, s.Left+6, s.Right-6, false)
	s.X = unsigned(a.ticks)
	if a.low <= 0 && a.high >= 0 {
		s.Zero, s.HasZero = a.at(0), true
	}
	return a
}

// labelled is the room for models' names on the left.
func (x *examined) labelled() float64 { return math.Max(60, x.labelRoom-12) }

func (x *examined) traces() []strip {
	var out []strip
	for _, loss := range []struct {
		id, title string
		of        func(diagnose.Diagnosed) diagnose.Estimate
	}{
		{"trace-harm", "Trace of ∇²L_harm", func(m diagnose.Diagnosed) diagnose.Estimate { return m.Harm.Trace }},
		{"trace-fine-tuning", "Trace of ∇²L_FT", func(m diagnose.Diagnosed) diagnose.Estimate { return m.FineTuning.Trace }},
	} {
		s := stripFrame(loss.id, loss.title, x.labelled(), len(x.Models), rowHeight)
		s.XLabel, s.Description = "trace", loss.title+" of each model with its 95 % interval; the table below lists the same numbers."
		low, high := 0.0, 0.0
		for _, m := range x.Models {
			low, high = math.Min(low, loss.of(m).Low), math.Max(high, loss.of(m).High)
		}
		a := s.axis(low, high)
		for i, m := range x.Models {
			e := loss.of(m)
			at := s.Top + 6 + rowHeight*(float64(i)+.5)
			s.Rows = append(s.Rows, stripRow{Label: shorten(m.Name), At: at, Spans: []span{{
				style: x.styles[m.Name], From: a.at(e.Low), To: a.at(e.High), X: a.at(e.Value), Y: at, Point: true, Model: m.Name,
				Tip:   fmt.Sprintf("%s: %s [%s, %s], %d probes", m.Name, diagnose.Short(e.Value), diagnose.Short(e.Low), diagnose.Short(e.High), e.N),
				Value: plain(e.Value), Low: plain(e.Low), High: plain(e.High),
			}}})
		}
		out = append(out, s)
	}
	return out
}

// spectrum shows where the eigenvalues of γH lie between the limits of the iteration.
func (x *examined) spectrum() strip {
	gamma, damping := x.Settings.Gamma, x.Settings.Damping
	s := stripFrame("spectrum", "Eigenvalues of γH at the fine-tuned weights", x.labelled(), len(x.Models), rowHeight)
	s.XLabel = "eigenvalues of γH, γ = " + short(gamma)
	limits := []float64{-1, 2/damping - 1}
	low, high := limits[0], limits[1]
	for _, m := range x.Models {
		worst := m.Worst()
		low, high = math.Min(low, gamma*worst.Lowest), math.Max(high, gamma*worst.Highest)
	}
	a := s.axis(low-(high-low)/20, high+(high-low)/20)
	for _, limit := range limits {
		s.Guides = append(s.Guides, tick{a.at(limit), short(limit)})
	}
	for i, m := range x.Models {
		worst := m.Worst()
		at := s.Top + 6 + rowHeight*(float64(i)+.5)
		s.Rows = append(s.Rows, stripRow{Label: shorten(m.Name), At: at, Spans: []span{{
			style: x.styles[m.Name], From: a.at(gamma * worst.Lowest), To: a.at(gamma * worst.Highest), Y: at, Model: m.Name,
			Tip: fmt.Sprintf("%s: γH from %s to %s, %s", m.Name, diagnose.Short(gamma*worst.Lowest), diagnose.Short(gamma*worst.Highest), worst.Verdict),
		}}})
	}
	s.Description = "The range of the eigenvalues of γH of each model, and between which limits the iteration contracts; the table below lists the numbers."
	return s
}

// Sizes of bars: the room for names of blocks, the thickness of a bar and the gap between blocks.
const (
	blockRoom = 156
	barThick  = 11
	barGap    = 9
)

// distances draws the distance of each block from the base's, absolute and relative. There are none for the base alone.
func (x *examined) distances() []strip {
	if len(x.Models) < 2 || x.Models[1].Distance == nil {
		return nil
	}
	var out []strip
	for _, kind := range []struct {
		id, title, label string
		of               func(diagnose.Length) (float64, bool)
	}{
		{"distance-absolute", "Distance by block", "‖W − W₀‖", func(l diagnose.Length) (float64, bool) { return l.Distance, true }},
		{"distance-relative", "Distance by block, relative", "‖W − W₀‖ / ‖W₀‖ in percent", func(l diagnose.Length) (float64, bool) {
			share, ok := l.Relative()
			return 100 * share, ok
		}},
	} {
		out = append(out, x.bars(kind.id, kind.title, kind.label, kind.of))
	}
	return out
}

func (x *examined) bars(id, title, label string, of func(diagnose.Length) (float64, bool)) strip {
	models := x.Models[1:]
	blocks := models[0].Distance.Blocks
	height := barThick*float64(len(models)) + barGap
	s := stripFrame(id, title, blockRoom, len(blocks), height)
	s.Right -= 36 // for the amounts
	s.Thick, s.XLabel = barThick, label
	s.Description = title + " of the UNet, one bar per model; diagnose.csv lists the same numbers."
	high := 0.0
	for _, m := range models {
		for _, block := range m.Distance.Blocks {
			if v, ok := of(block); ok {
				high = math.Max(high, v)
			}
		}
	}
	a := s.axis(0, high)
	if high == 0 { // the same weights
		s.X = nil
	}
	for i, block := range blocks {
		top := s.Top + 6 + height*float64(i)
		row := stripRow{Label: block.Name, At: round(top + height/2)}
		for k, m := range models {
			v, ok := of(m.Distance.Blocks[i])
			if !ok {
				continue
			}
			b := bar{style: x.styles[m.Name], From: a.at(0), To: a.at(v), Y: round(top + barGap/2 + barThick*float64(k)), Model: m.Name, Text: diagnose.Short(v), Value: plain(v)}
			b.Width = round(math.Max(0, b.To-b.From))
			b.Tip = fmt.Sprintf("%s, %s: %s", m.Name, block.Name, b.Text)
			row.Bars = append(row.Bars, b)
		}
		s.Rows = append(s.Rows, row)
	}
	return s
}
