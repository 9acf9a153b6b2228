package train

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/term"
)

const (
	redrawEvery = 100 * time.Millisecond // of the bar on a terminal
	lineEvery   = 10 * time.Second       // of plain lines elsewhere
)

// Progress shows how far a run is: a bar that redraws itself where the writer is a terminal, a plain line now and then
// elsewhere. It is safe for concurrent use. Errors of the writer are ignored, as a closed terminal must not end a run.
type Progress struct {
	mutex    sync.Mutex
	out      io.Writer
	label    string
	terminal bool
	columns  func() int
	now      func() time.Time

	started  time.Time
	first    int // units that were done before this process, e.g. in the run that is resumed
	done     int
	total    int
	note     string
	shown    time.Time
	lastDone int // what the last plain line said, -1 for nothing yet
	finished bool
}

// NewProgress starts a progress display of total units, of which done were done earlier; these do not count for the
// time left.
func NewProgress(out io.Writer, label string, done, total int) *Progress {
	p := &Progress{out: out, label: label, now: time.Now, columns: func() int { return 80 }, lastDone: -1}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = true
		p.columns = func() int {
			if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
				return width
			}
			return 80
		}
	}
	p.start(done, total)
	return p
}

func (p *Progress) start(done, total int) {
	p.started, p.first, p.done, p.total = p.now(), done, done, total
}

// Update says that done units are done; note, e.g. "loss 0.123", is shown beside them.
func (p *Progress) Update(done int, note string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.finished {
		return
	}
	p.done, p.note = done, note
	now, every := p.now(), lineEvery
	if p.terminal {
		every = redrawEvery
	}
	if p.shown.IsZero() || now.Sub(p.shown) >= every {
		p.show(now)
	}
}

// Print writes a line of its own, above the bar where there is one.
func (p *Progress) Print(line string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if !p.terminal {
		fmt.Fprintln(p.out, line)
		return
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s\n", line)
	if !p.finished && !p.shown.IsZero() {
		p.show(p.now())
	}
}

// Finish shows the last state and ends the line. Later updates are ignored.
func (p *Progress) Finish() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.finished {
		return
	}
	p.finished = true
	if p.terminal {
		p.show(p.now())
		fmt.Fprintln(p.out)
	} else if p.lastDone != p.done {
		p.show(p.now())
	}
}

// show writes the current state; the mutex is held.
func (p *Progress) show(now time.Time) {
	p.shown, p.lastDone = now, p.done
	text := fmt.Sprintf("%s %d/%d", p.label, p.done, p.total)
	if rest := p.timing(now); rest != "" {
		text += " " + rest
	}
	if p.note != "" {
		text += " " + p.note
	}
	// A prompt in the note may hold line ends and terminal codes.
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if !p.terminal {
		fmt.Fprintln(p.out, text)
		return
	}
	const barWidth = 20
	bar := ""
	if p.total > 0 {
		filled := min(max(p.done, 0), p.total) * barWidth / p.total
		bar = "[" + strings.Repeat("#", filled) + strings.Repeat(".", barWidth-filled) + "] "
	}
	// One column stays free: writing into the last one wraps the line on some terminals.
	runes := []rune(bar + text)
	fmt.Fprintf(p.out, "\r%s\x1b[K", string(runes[:min(len(runes), max(p.columns()-1, 0))]))
}

// timing returns the time passed, and the time left once the speed is known.
func (p *Progress) timing(now time.Time) string {
	passed := now.Sub(p.started)
	text := formatDuration(passed)
	if made := p.done - p.first; made > 0 && p.done < p.total {
		left := time.Duration(float64(passed) / float64(made) * float64(p.total-p.done))
		text += " (" + formatDuration(left) + " left)"
	}
	return text
}

// formatDuration writes m:ss, or h:mm:ss from an hour on.
func formatDuration(d time.Duration) string {
	s := int64(d.Round(time.Second) / time.Second)
	if s < 3600 {
		return fmt.Sprintf("%d:%02d", s/60, s%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
}
