package train

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeProgress has a clock that the test moves.
func fakeProgress(terminal bool, columns, done, total int) (*Progress, *bytes.Buffer, func(time.Duration)) {
	var out bytes.Buffer
	p := NewProgress(&out, "step", done, total)
	now := time.Unix(1000, 0)
	p.now = func() time.Time { return now }
	p.terminal, p.columns = terminal, func() int { return columns }
	p.start(done, total)
	return p, &out, func(d time.Duration) { now = now.Add(d) }
}

func TestProgressPlainLines(t *testing.T) {
	p, out, wait := fakeProgress(false, 0, 40, 160)
	for step := 41; step <= 100; step++ {
		wait(time.Second)
		p.Update(step, "loss 0.5")
	}
	p.Print("saved")
	p.Finish()
	p.Finish()
	p.Update(160, "too late")
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	// One at once, then one in ten seconds; 60 steps took 60 s, so 60 are left for 60 s.
	want := []string{
		"step 41/160 0:01 (1:59 left) loss 0.5", "step 51/160 0:11 (1:49 left) loss 0.5", "step 61/160 0:21 (1:39 left) loss 0.5",
		"step 71/160 0:31 (1:29 left) loss 0.5", "step 81/160 0:41 (1:19 left) loss 0.5", "step 91/160 0:51 (1:09 left) loss 0.5",
		"saved", "step 100/160 1:00 (1:00 left) loss 0.5",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("lines\n%s", out.String())
	}
	if strings.ContainsAny(out.String(), "\r\x1b") {
		t.Error("terminal codes in plain output")
	}
}

func TestProgressBar(t *testing.T) {
	p, out, wait := fakeProgress(true, 60, 0, 4)
	wait(time.Hour)
	p.Update(1, "")
	wait(redrawEvery / 2)
	p.Update(2, "skipped: too soon")
	wait(redrawEvery)
	p.Print("saved")
	p.Update(4, "done")
	p.Finish()
	want := "\r[#####...............] step 1/4 1:00:00 (3:00:00 left)\x1b[K" +
		"\r\x1b[Ksaved\n" +
		"\r[##########..........] step 2/4 1:00:00 (1:00:00 left) skip\x1b[K" +
		"\r[####################] step 4/4 1:00:00 done\x1b[K\n"
	if out.String() != want {
		t.Errorf("terminal shows\n%q, want\n%q", out.String(), want)
	}
}

func TestProgressAtItsEdges(t *testing.T) {
	for _, columns := range []int{0, 1, 5} { // a window too narrow for anything
		p, out, _ := fakeProgress(true, columns, 0, 0)
		p.Update(3, "é\n")
		p.Finish()
		if shown := strings.Count(out.String(), "step"); shown > 0 && columns < 5 {
			t.Errorf("%d columns: %q", columns, out.String())
		}
	}
	p, out, _ := fakeProgress(false, 0, 0, 1)
	p.Update(1, "a\nb\x1b[2J")
	if got := out.String(); got != "step 1/1 0:00 a b [2J\n" {
		t.Errorf("a note with control characters gives %q", got)
	}
	p, out, _ = fakeProgress(true, 50, 0, 2)
	p.Update(-1, "")
	p.Update(5, "")
	p.Finish()
	if !strings.Contains(out.String(), "[####################] step 5/2") {
		t.Errorf("%q", out.String())
	}
}

func TestProgressIsSafeForConcurrentUse(t *testing.T) {
	var out bytes.Buffer
	p := NewProgress(&out, "step", 0, 100)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			for j := range 100 {
				p.Update(j, "note")
				if j == 50 && i == 0 {
					p.Print("line")
				}
			}
		})
	}
	group.Wait()
	p.Finish()
	for line := range strings.Lines(out.String()) {
		if line != "line\n" && !strings.HasPrefix(line, "step ") {
			t.Errorf("torn line %q", line)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0:00", 59600 * time.Millisecond: "1:00", 3599 * time.Second: "59:59", 3600 * time.Second: "1:00:00", 100 * time.Hour: "100:00:00",
	} {
		if got := formatDuration(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}
