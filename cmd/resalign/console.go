package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/train"
)

// console is where a command writes: its result to out, as text or one JSON object, progress and warnings to err. It may
// be used concurrently.
type console struct {
	out, err io.Writer
	json     bool

	mu    sync.Mutex
	bar   *train.Progress
	label string
}

// addConsole gives a command its --json flag; the console is valid once the command runs.
func addConsole(cmd *cobra.Command, c *console) {
	cmd.Flags().BoolVar(&c.json, "json", false, "print the result as one JSON object")
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { c.out, c.err = cmd.OutOrStdout(), cmd.ErrOrStderr() }
}

// progress shows that done units of total are done of what the label says. The first call for a label starts its bar:
// a run that is resumed has units that were done earlier.
func (c *console) progress(label string, done, total int, note string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bar == nil || c.label != label {
		c.finish()
		c.bar, c.label = train.NewProgress(c.err, label, max(0, done-1), total), label
	}
	c.bar.Update(done, note)
	if done == total {
		c.finish()
	}
}

// warn writes a sentence about something odd on a line of its own.
func (c *console) warn(sentence string) { c.say("warning: " + sentence) }

// warnOnce is warn for sentences that may come several times.
func (c *console) warnOnce() func(sentence string) {
	var seen sync.Map
	return func(sentence string) {
		if _, before := seen.LoadOrStore(sentence, true); !before {
			c.warn(sentence)
		}
	}
}

// say writes a line beside the result.
func (c *console) say(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bar != nil {
		c.bar.Print(printable(line))
		return
	}
	fmt.Fprintln(c.err, printable(line))
}

// endProgress ends a bar that stands before its last unit.
func (c *console) endProgress() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finish()
}

func (c *console) finish() {
	if c.bar != nil {
		c.bar.Finish()
		c.bar, c.label = nil, ""
	}
}

// result writes what the command found: v as JSON, or what text writes.
func (c *console) result(v any, text func(w io.Writer)) error {
	c.endProgress()
	if !c.json {
		text(c.out)
		return nil
	}
	encoder := json.NewEncoder(c.out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
