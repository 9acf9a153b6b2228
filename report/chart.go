package report

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// chart is a drawing of lines over two axes, in drawing units.
type chart struct {
	ID, Title, Description string
	Width, Height          float64
	Left, Right            float64 // of the plot
	Top, Bottom            float64
	X, Y                   []tick
	XLabel, YLabel         string
	Series                 []series
	Ends                   []end // labels beside the lines
}

// series is a line with its band and points.
type series struct {
	style
	Name       string
	Line, Band string // paths
	Points     []point
	Dots       []point // of single seeds
}

// point is a marked place; what it stands for is written beside it for programs that read the page.
type point struct {
	X, Y             float64
	Bars             string // paths of intervals, where they are not drawn as a band
	Hollow           bool
	Tip              string
	Adaptation       string
	Model            string
	Steps, K, N      int
	Low, High, Value string
	Set              string // the prompt set, where it is not the first of its kind
	Utility          string // in a plane: what the model can do
	Contamination    string // share of harmful pictures in the data, on an axis of it
}

// end is a label at the end of a line, moved to At so that labels do not cover one another.
type end struct {
	style
	Text     string
	X, Y, At float64
}

// frame returns an empty chart with room for labels on the right.
func frame(id, title string, width, height, right float64) chart {
	return chart{ID: id, Title: title, Width: width, Height: height, Left: 46, Right: width - right, Top: 28, Bottom: height - 42}
}

// path joins points to a path; gaps are where ok is false.
type path struct {
	b    strings.Builder
	open bool
}

func (p *path) to(x, y float64) {
	command := "L"
	if !p.open {
		command, p.open = "M", true
	}
	p.b.WriteString(command + coordinate(x) + " " + coordinate(y))
}

func (p *path) gap() { p.open = false }

func (p *path) String() string { return p.b.String() }

func coordinate(x float64) string { return strconv.FormatFloat(round(x), 'f', -1, 64) }

// band is the area between two lines over the same x.
func band(x, low, high []float64) string {
	var p path
	for i := range x {
		p.to(x[i], high[i])
	}
	for i := len(x) - 1; i >= 0; i-- {
		p.to(x[i], low[i])
	}
	if !p.open {
		return ""
	}
	return p.String() + "Z"
}

// labelGap is the smallest distance between the base lines of two labels.
const labelGap = 15

// spread moves labels apart, as little as a pass down and a pass up need. If there are too many for the plot it returns
// none: the legend has them.
func spread(ends []end, top, bottom float64) []end {
	if float64(len(ends)-1)*labelGap > bottom-top {
		return nil
	}
	slices.SortStableFunc(ends, func(a, b end) int {
		switch {
		case a.Y < b.Y:
			return -1
		case a.Y > b.Y:
			return 1
		}
		return 0
	})
	for i := range ends {
		ends[i].At = max(ends[i].Y, top)
		if i > 0 {
			ends[i].At = max(ends[i].At, ends[i-1].At+labelGap)
		}
	}
	limit := bottom
	for i := len(ends) - 1; i >= 0; i-- {
		ends[i].At = round(min(ends[i].At, limit))
		limit = ends[i].At - labelGap
	}
	return ends
}

// labelLetters is how much of a name fits beside a plot; the legend has it whole.
const labelLetters = 16

func shorten(name string) string {
	letters := []rune(name)
	if len(letters) <= labelLetters {
		return name
	}
	return string(letters[:labelLetters/2-1]) + "…" + string(letters[len(letters)-labelLetters/2:]) // names often differ at the end
}

// labelRoom is the width that the longest of the names needs, at the largest size they are shown in.
func labelRoom(names []string) float64 {
	longest := 0
	for _, name := range names {
		longest = max(longest, len([]rune(shorten(name))))
	}
	return 26 + 7.4*float64(longest)
}

// percent is the sign with a space that does not break.
const percent = "\u00a0%"

// share writes a rate in percent with one decimal, without the sign.
func share(x float64) string { return strconv.FormatFloat(100*x, 'f', 1, 64) }

// stepsOf writes a number of steps in words.
func stepsOf(n int) string {
	if n == 1 {
		return "1 step"
	}
	return fmt.Sprintf("%d steps", n)
}
