package train

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func mustAppend(t *testing.T, l *EventLog, events ...Event) {
	t.Helper()
	for _, e := range events {
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
}

func mustOpenLog(t *testing.T, path string, after int) *EventLog {
	t.Helper()
	l, err := OpenEventLog(path, after)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.file.Close() })
	return l
}

func mustRead(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestEventLogLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l := mustOpenLog(t, path, -1)
	mustAppend(
		t, l, Event{Step: 0, Kind: "start"},
		Event{Step: 1, Kind: "loss", Fields: map[string]any{
			"z": 1e-7, "harm": math.NaN(), "norms": []float64{1, math.Inf(1)}, "f32": float32(0.1), "prompt": "a \xff\nb",
			"report": struct {
				Residual float64 `json:"residual"`
			}{math.Inf(-1)},
		}},
	)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := `{"step":0,"kind":"start"}` + "\n" +
		`{"step":1,"kind":"loss","fields":{"f32":0.1,"harm":"NaN","norms":[1,"+Inf"],"prompt":"a ` + "\ufffd" + `\nb","report":{"residual":"-Inf"},"z":1e-07}}` + "\n"
	if got := mustRead(t, path); got != want {
		t.Errorf("log\n%swant\n%s", got, want)
	}
	events, err := ReadEvents(path)
	if err != nil || len(events) != 2 {
		t.Fatalf("%v, %v", events, err)
	}
	if x, ok := events[1].Number("harm"); !ok || !math.IsNaN(x) {
		t.Errorf("harm is %v, %v", x, ok)
	}
	if x, ok := events[1].Number("z"); !ok || x != 1e-7 {
		t.Errorf("z is %v, %v", x, ok)
	}
	for _, field := range []string{"prompt", "absent", "norms"} {
		if x, ok := events[1].Number(field); ok {
			t.Errorf("%s is the number %v", field, x)
		}
	}
}

// TestResumedLogHasEveryStepOnce compares a run that is killed at step 7, having a checkpoint of step 4, with one that
// is not.
func TestResumedLogHasEveryStepOnce(t *testing.T) {
	dir := t.TempDir()
	steps := func(l *EventLog, from, to int) {
		for s := from; s <= to; s++ {
			mustAppend(t, l, Event{s, "loss", map[string]any{"value": 1 / float64(s)}}, Event{Step: s, Kind: "clip"})
		}
	}
	whole := filepath.Join(dir, "whole.jsonl")
	steps(mustOpenLog(t, whole, -1), 1, 10)
	for _, tail := range []string{"", `{"step":8,"ki`, "{\"step\":8\x00\n"} {
		path := filepath.Join(dir, "killed.jsonl")
		l := mustOpenLog(t, path, -1)
		steps(l, 1, 7)
		if _, err := l.file.Write([]byte(tail)); err != nil {
			t.Fatal(err)
		}
		steps(mustOpenLog(t, path, 4), 5, 10)
		if mustRead(t, path) != mustRead(t, whole) {
			t.Errorf("tail %q: the log of the resumed run differs:\n%s", tail, mustRead(t, path))
		}
	}
	fresh := mustOpenLog(t, whole, -1) // killed before the first checkpoint
	mustAppend(t, fresh, Event{Step: 0, Kind: "start"})
	if got := mustRead(t, whole); strings.Count(got, "\n") != 1 {
		t.Errorf("log\n%s", got)
	}
}

func TestEventLogRefusals(t *testing.T) {
	dir := t.TempDir()
	if _, err := OpenEventLog(filepath.Join(dir, "none"), 3); err == nil || !strings.Contains(err.Error(), "is missing") {
		t.Errorf("error %v", err)
	}
	if _, err := ReadEvents(filepath.Join(dir, "none")); err == nil {
		t.Error("missing log read")
	}
	for want, text := range map[string]string{
		"line 2 is not an event":    "{\"step\":1,\"kind\":\"a\"}\nnonsense\n{\"step\":2,\"kind\":\"a\"}\n",
		"line 1 is not an event":    "nonsense\n{\"step\":2,\"ki",
		"line 2: step 4 follows":    "{\"step\":5,\"kind\":\"a\"}\n{\"step\":4,\"kind\":\"a\"}\n",
		"its step is -1":            "{\"step\":-1,\"kind\":\"a\"}\n{}\n",
		"its kind is empty":         "{\"step\":1}\n{}\n",
		"line 1 is not an event: j": "{\"step\":1,\"kind\":\"a\",\"other\":1}\n{}\n",
	} {
		path := filepath.Join(dir, "bad.jsonl")
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenEventLog(path, 9); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
		if mustRead(t, path) != text {
			t.Errorf("a refused log was changed to %q", mustRead(t, path))
		}
	}
	l := mustOpenLog(t, filepath.Join(dir, "new.jsonl"), -1)
	mustAppend(t, l, Event{Step: 5, Kind: "a"})
	for want, e := range map[string]Event{
		"in order":      {Step: 4, Kind: "a"},
		"kind is empty": {Step: 5},
		"func":          {Step: 5, Kind: "a", Fields: map[string]any{"f": func() {}}},
	} {
		if err := l.Append(e); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", e, err, want)
		}
	}
	if got := mustRead(t, l.path); strings.Count(got, "\n") != 1 {
		t.Errorf("refused events are in the log:\n%s", got)
	}
}

// fullFile writes half of a line when room runs out.
type fullFile struct {
	*os.File
	full        bool
	truncateErr error
}

func (f *fullFile) Write(b []byte) (int, error) {
	if f.full {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, syscall.ENOSPC
	}
	return f.File.Write(b)
}

func (f *fullFile) Truncate(size int64) error {
	if f.truncateErr != nil {
		return f.truncateErr
	}
	return f.File.Truncate(size)
}

func TestEventLogOnAFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l := mustOpenLog(t, path, -1)
	file := &fullFile{File: l.file.(*os.File)}
	l.file = file
	mustAppend(t, l, Event{Step: 1, Kind: "a"})
	file.full = true
	if err := l.Append(Event{Step: 2, Kind: "b"}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	file.full = false
	mustAppend(t, l, Event{Step: 2, Kind: "c"})
	want := "{\"step\":1,\"kind\":\"a\"}\n{\"step\":2,\"kind\":\"c\"}\n"
	if got := mustRead(t, path); got != want {
		t.Errorf("log\n%s", got)
	}
	file.full, file.truncateErr = true, syscall.EIO
	if err := l.Append(Event{Step: 3, Kind: "d"}); !errors.Is(err, syscall.EIO) {
		t.Errorf("error %v", err)
	}
	file.full = false
	if err := l.Append(Event{Step: 3, Kind: "e"}); !errors.Is(err, syscall.EIO) {
		t.Errorf("appended after a torn line: error %v", err)
	}
}

func TestEventLogIsSafeForConcurrentUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	l := mustOpenLog(t, path, -1)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				if err := l.Append(Event{Step: 1, Kind: "loss", Fields: map[string]any{"text": strings.Repeat("x", 300)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if events, err := ReadEvents(path); err != nil || len(events) != 400 {
		t.Errorf("%d events, %v", len(events), err)
	}
}

// FuzzOpenEventLog: whatever the file holds, the log is refused unchanged, or opens and can be continued.
func FuzzOpenEventLog(f *testing.F) {
	f.Add([]byte("{\"step\":1,\"kind\":\"a\",\"fields\":{\"x\":\"NaN\"}}\n{\"step\":7,\"kind\":\"b\"}\n{\"st"), 3)
	f.Add([]byte("\n\n"), -1)
	f.Add([]byte("{\"step\":1e3,\"kind\":\"a\"}\nx\ny"), 0)
	f.Fuzz(func(t *testing.T, data []byte, after int) {
		path := filepath.Join(t.TempDir(), "events.jsonl")
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		l, err := OpenEventLog(path, after)
		if err != nil {
			if mustRead(t, path) != string(data) {
				t.Fatal("a refused log was changed")
			}
			return
		}
		defer l.Close()
		if after < math.MaxInt {
			mustAppend(t, l, Event{Step: max(after, 0) + 1, Kind: "next"})
		}
		events, err := ReadEvents(path)
		if err != nil {
			t.Fatalf("continued log cannot be read: %v", err)
		}
		for i, e := range events[:max(len(events)-1, 0)] {
			if e.Step > after || i > 0 && e.Step < events[i-1].Step {
				t.Fatalf("event %d is of step %d after a cut at %d", i, e.Step, after)
			}
		}
	})
}
