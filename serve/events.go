package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/resalign/resalign/history"
	"github.com/resalign/resalign/train"
)

// series is a logged quantity: y[i] at step x[i], nil where it was no number.
type series struct {
	Name string     `json:"name"`
	X    []int      `json:"x"`
	Y    []*float64 `json:"y"`
}

// eventLog follows a growing event log: each read goes on where the last one ended.
type eventLog struct {
	root *os.Root

	mu     sync.Mutex
	offset int64
	first  []byte // how the log begins: another beginning is another log
	found  map[string]*series
	skip   map[string]int // of every how many steps of a series one is kept
	seen   map[string]int
	step   int
	took   []float64 // seconds of the last steps
	torn   bool      // a line was no event
}

// logged is what a log says so far.
type logged struct {
	series  []series
	step    int
	pace    float64 // seconds for a step
	changed time.Time
	problem string
}

// Limits of what is kept of a log, however long it grows.
const (
	maxSeries = 48
	maxPoints = 2000
	maxLine   = 1 << 20
	chunk     = 1 << 20
	paceOver  = 20 // steps
	headBytes = 256
)

// read takes in what is new in the log.
func (l *eventLog) read() logged {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out logged
	if err := l.follow(&out); err != nil {
		out.problem = "events.jsonl cannot be read"
	} else if l.torn {
		out.problem = "events.jsonl has lines that are no events; they were passed over"
	}
	for _, name := range slices.SortedFunc(maps.Keys(l.found), byImportance) {
		s := l.found[name]
		out.series = append(out.series, series{name, slices.Clone(s.X), slices.Clone(s.Y)})
	}
	if out.series == nil {
		out.series = []series{}
	}
	out.step = l.step
	for _, seconds := range l.took {
		out.pace += seconds / float64(len(l.took))
	}
	return out
}

// byImportance sorts losses first, then what tells how well the hypergradient was solved, then the rest by name.
func byImportance(a, b string) int {
	rank := func(name string) int {
		switch {
		case strings.Contains(name, "loss"):
			return 0
		case strings.HasPrefix(name, "residual") && name != "residual_of":
			return 1
		case strings.Contains(name, "norm"):
			return 2
		}
		return 3
	}
	if x, y := rank(a), rank(b); x != y {
		return x - y
	}
	return strings.Compare(a, b)
}

func (l *eventLog) follow(out *logged) error {
	file, err := l.root.Open("events.jsonl")
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a plain file")
	}
	out.changed = info.ModTime()
	head := make([]byte, headBytes)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	// A resumed run cuts steps off and writes them again.
	if info.Size() < l.offset || !bytes.HasPrefix(head, l.first) {
		l.offset, l.found = 0, nil
	}
	if l.found == nil {
		l.found, l.skip, l.seen, l.step, l.took, l.torn = map[string]*series{}, map[string]int{}, map[string]int{}, 0, nil, false
	}
	l.first = head
	buffer := make([]byte, 0, chunk)
	for {
		part := buffer[len(buffer):min(cap(buffer), len(buffer)+chunk)]
		n, err := file.ReadAt(part, l.offset+int64(len(buffer)))
		buffer = buffer[:len(buffer)+n]
		last := bytes.LastIndexByte(buffer, '\n') + 1
		for line := range bytes.Lines(buffer[:last]) {
			l.take(line)
		}
		l.offset += int64(last)
		buffer = append(buffer[:0], buffer[last:]...)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil // what is left is a line that is being written
			}
			return err
		}
		if len(buffer) >= maxLine { // no event is that long
			l.torn, l.offset, buffer = true, l.offset+int64(len(buffer)), buffer[:0]
		}
	}
}

// take adds one line.
func (l *eventLog) take(line []byte) {
	var e train.Event
	if err := json.Unmarshal(line, &e); err != nil || e.Step < 0 || e.Kind == "" {
		l.torn = true
		return
	}
	if e.Step < l.step { // the steps from here on are done again
		for _, s := range l.found {
			keep, _ := slices.BinarySearch(s.X, e.Step)
			s.X, s.Y = s.X[:keep], s.Y[:keep]
		}
	}
	l.step = e.Step
	if seconds, ok := e.Number("seconds"); ok && !math.IsNaN(seconds) && !math.IsInf(seconds, 0) {
		l.took = append(l.took, seconds)
		l.took = l.took[max(0, len(l.took)-paceOver):]
	}
	for name := range e.Fields {
		if value, ok := history.Largest(e, name); ok && len(name) < 80 {
			l.add(name, e.Step, value)
		}
	}
}

func (l *eventLog) add(name string, step int, value float64) {
	s := l.found[name]
	if s == nil {
		if len(l.found) == maxSeries {
			return
		}
		s = &series{Name: name}
		l.found[name], l.skip[name] = s, 1
	}
	if l.seen[name]++; l.seen[name]%l.skip[name] != 0 {
		return
	}
	var y *float64
	if !math.IsNaN(value) && !math.IsInf(value, 0) {
		y = &value
	}
	s.X, s.Y = append(s.X, step), append(s.Y, y)
	if len(s.X) < maxPoints {
		return
	}
	for i := range maxPoints / 2 { // every other one tells the same
		s.X[i], s.Y[i] = s.X[2*i+1], s.Y[2*i+1]
	}
	s.X, s.Y = s.X[:maxPoints/2], s.Y[:maxPoints/2]
	l.skip[name] *= 2
}
