package train

import (
	"bufio"
	"bytes"
	"encoding/json/jsontext"
	"encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"sync"
)

// Event is one line of an event log: what happened in a step.
type Event struct {
	Step   int            `json:"step"`
	Kind   string         `json:"kind"` // e.g. "loss", "hypergradient", "checkpoint"
	Fields map[string]any `json:"fields,omitempty"`
}

// Number returns a field as a number, also one that was logged as NaN or infinite.
func (e Event) Number(field string) (float64, bool) {
	switch v := e.Fields[field].(type) {
	case float64:
		return v, true
	case string:
		switch v {
		case "NaN", "+Inf", "-Inf":
			x, err := strconv.ParseFloat(v, 64)
			return x, err == nil
		}
	}
	return 0, false
}

// EventLog appends events to a file of JSON lines. Each event is one write of one line, so a crash can tear the last
// line only. NaN and infinities, which JSON cannot hold, are written as the strings "NaN", "+Inf" and "-Inf". It is safe
// for concurrent use.
type EventLog struct {
	mutex sync.Mutex
	path  string
	file  eventFile
	size  int64
	step  int // of the last event
	torn  error
}

// eventFile is the part of os.File that the log needs.
type eventFile interface {
	io.WriteCloser
	Truncate(size int64) error
	Sync() error
}

// OpenEventLog opens the log at path to continue after the given step: events of later steps, and a torn last line, are
// removed, so that a resumed run logs every step once. A new run, or one resumed without a checkpoint, passes −1, for
// which the file may be missing and all events are removed. Any other line that is not an event is an error.
func OpenEventLog(path string, after int) (*EventLog, error) {
	flags := os.O_RDWR | os.O_APPEND
	if after < 0 {
		flags |= os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o666)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("event log %s of the resumed run is missing; restore it or start a new run folder", path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open the event log: %w", err)
	}
	kept, last, err := keptBytes(f, path, after)
	if err == nil {
		err = f.Truncate(kept)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &EventLog{path: path, file: f, size: kept, step: last}, nil
}

// keptBytes returns the length of the part of the log that has steps up to after, and its last step.
func keptBytes(r io.Reader, path string, after int) (kept int64, last int, err error) {
	cut := false
	err = eachEvent(r, path, func(e Event, length int64) error {
		switch {
		case e.Step < last:
			return fmt.Errorf("step %d follows step %d", e.Step, last)
		case e.Step > after:
			cut = true
		case !cut:
			kept += length
		}
		last = e.Step
		return nil
	})
	return kept, min(last, max(after, 0)), err
}

// eachEvent calls do for every whole line. A last line without an end, or that is not an event, is passed over: that is
// how a crash leaves it.
func eachEvent(r io.Reader, path string, do func(e Event, length int64) error) error {
	lines := bufio.NewReader(r)
	var damage error
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) && (len(line) == 0 || damage == nil) {
			return nil
		}
		if damage != nil {
			return damage
		}
		if err != nil {
			return fmt.Errorf("cannot read the event log: %w", err)
		}
		var e Event
		err = json.Unmarshal(bytes.TrimSuffix(line, []byte("\n")), &e, json.RejectUnknownMembers(true))
		if err == nil {
			err = e.check()
		}
		if err != nil {
			damage = fmt.Errorf("event log %s, line %d is not an event: %w; remove the line or start a new run folder", path, number, err)
			continue
		}
		if err := do(e, int64(len(line))); err != nil {
			return fmt.Errorf("event log %s, line %d: %w; restore the file or start a new run folder", path, number, err)
		}
	}
}

func (e Event) check() error {
	if e.Step < 0 {
		return fmt.Errorf("its step is %d; it must be ≥ 0", e.Step)
	}
	if e.Kind == "" {
		return errors.New("its kind is empty")
	}
	return nil
}

// Append writes one event. Steps must not decrease. When the write fails, the log is cut back to whole lines.
func (l *EventLog) Append(e Event) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.torn != nil {
		return l.torn
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("cannot log an event: %w", err)
	}
	if e.Step < l.step {
		return fmt.Errorf("cannot log %q of step %d after step %d; the event log is in order of steps", e.Kind, e.Step, l.step)
	}
	line, err := encodeEvent(e)
	if err != nil {
		return fmt.Errorf("cannot log %q of step %d: %w", e.Kind, e.Step, err)
	}
	if _, err := l.file.Write(line); err != nil {
		err = fmt.Errorf("cannot write the event log %s: %w", l.path, err)
		if cutErr := l.file.Truncate(l.size); cutErr != nil {
			// Another line after a torn one would damage the middle of the log.
			l.torn = errors.Join(err, fmt.Errorf("cannot cut the torn line off: %w", cutErr))
			return l.torn
		}
		return err
	}
	l.size += int64(len(line))
	l.step = e.Step
	return nil
}

// encodeEvent returns the line with its end. Equal events have equal bytes.
func encodeEvent(e Event) ([]byte, error) {
	line, err := json.Marshal(e, json.Deterministic(true), jsontext.AllowInvalidUTF8(true),
		json.WithMarshalers(json.JoinMarshalers(
			json.MarshalFunc(func(x float64) ([]byte, error) { return encodeFloat(x, 64) }),
			json.MarshalFunc(func(x float32) ([]byte, error) { return encodeFloat(float64(x), 32) }),
		)))
	return append(line, '\n'), err
}

func encodeFloat(x float64, bits int) ([]byte, error) {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return strconv.AppendQuote(nil, strconv.FormatFloat(x, 'g', -1, bits)), nil
	}
	return strconv.AppendFloat(nil, x, 'g', -1, bits), nil
}

// Sync flushes the log to the disk. Call it before a checkpoint is saved, so that the log is never behind it.
func (l *EventLog) Sync() error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("cannot flush the event log %s: %w", l.path, err)
	}
	return nil
}

// Close flushes and closes the log.
func (l *EventLog) Close() error {
	return errors.Join(l.Sync(), l.file.Close())
}

// ReadEvents returns the events of a log in their order, without a torn last line.
func ReadEvents(path string) ([]Event, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the event log: %w", err)
	}
	defer f.Close()
	var events []Event
	err = eachEvent(f, path, func(e Event, _ int64) error {
		events = append(events, e)
		return nil
	})
	return events, err
}
