package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/experiment"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

func newCompare() *cobra.Command {
	var (
		c             = &console{}
		computing     engineFlags
		set           []string
		out, document string
		show          bool
	)
	cmd := &cobra.Command{
		Use:   "compare [RECIPE]",
		Short: "Compare methods of unlearning on the miniature, before and after adaptations",
		Long: `Compare carries out a recipe of methods × adaptations on the built-in miniature: every method unlearns the red star for each
seed, in a process of its own, so that its time and memory can be told; then the result is measured as it is and after each
adaptation. Without a recipe it is the one behind docs/results.md; --show prints that one, as a start for others.

The folder gets every model, log, recipe and cell, results.json, report.html and tables in Markdown, which also go into the
given document between its two comparison marks. It goes on where it stopped when it is called again, also with more
seeds, methods or adaptations.`,
		Example: `  resalign compare --out comparison
  resalign compare --show > mine.toml
  resalign compare mine.toml --set seeds=[42]`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return misuse(cmd, "%q is one argument too many; give at most one recipe", args[1])
			}
			return nil
		},
	}
	addConsole(cmd, c)
	computing.add(cmd, "", "what computes, such as go (default: the recipe's)")
	flags := cmd.Flags()
	flags.StringArrayVar(&set, "set", nil, "set a key of the recipe, as in pictures=50 (may be repeated)")
	flags.StringVar(&out, "out", "", "folder for everything (default: the recipe's)")
	flags.StringVar(&document, "document", "", "Markdown file for the tables; without it tables.md in the folder")
	flags.BoolVar(&show, "show", false, "print the built-in recipe and end")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if show {
			_, err := cmd.OutOrStdout().Write(experiment.PublishedComparison())
			return err
		}
		layers := recipe.Layers{Assignments: assign(set, setting{"out", out}, setting{"engine", computing.spec})}
		r := experiment.ComparisonDefaults()
		var err error
		if len(args) == 1 {
			err = recipe.Load(args[0], layers, &r)
		} else {
			err = recipe.LoadBytes("the built-in comparison", experiment.PublishedComparison(), layers, &r)
		}
		if err != nil {
			return err
		}
		computing.spec = r.Engine
		compared, versions, err := experimentRun(cmd, c, computing, func(ctx context.Context, e *engine.Engine, h experiment.Hooks) (*experiment.Compared, error) {
			h.Unlearn = unlearnApart
			return experiment.RunComparison(ctx, e, r, h)
		})
		if err != nil {
			return err
		}
		if document == "" {
			document = filepath.Join(r.Out, "tables.md")
		}
		p, err := compared.Publish(document, versions)
		if err != nil {
			return err
		}
		return c.result(map[string]string{"results": p.Results, "report": p.Report, "tables": document}, func(w io.Writer) {
			fmt.Fprintf(w, "%s\nreport   %s\nresults  %s\ntables   %s\n", p.Summary, p.Report, p.Results, document)
		})
	}
	return cmd
}

// unlearnApart is `resalign unlearn` in a process of its own, on one thread: models of the miniature's size cannot keep
// more busy. An interrupt is passed on, and what the process saves then is where it goes on.
func unlearnApart(ctx context.Context, path string, resume bool, finish <-chan struct{}) (u experiment.Usage, err error) {
	program, err := os.Executable()
	if err != nil {
		return u, fmt.Errorf("cannot find the program itself: %w", err)
	}
	args := []string{"unlearn", path, "--threads", "1"}
	if resume {
		args = append(args, "--resume")
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr, cmd.Cancel, cmd.WaitDelay = &said, func() error { return cmd.Process.Signal(os.Interrupt) }, time.Minute
	if err := cmd.Start(); err != nil {
		return u, fmt.Errorf("cannot start %s: %w", program, err)
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-finish:
			_ = cmd.Process.Signal(os.Interrupt) // it may have ended by itself
		case <-ended:
		}
	}()
	err = cmd.Wait()
	close(ended)
	if cmd.ProcessState != nil {
		u.CPUSeconds = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	}
	u.PeakMemory = loggedPeak(path)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return u, nil
	case errors.As(err, &exit) && exit.ExitCode() == exitInterrupted:
		return u, train.ErrInterrupted
	case ctx.Err() != nil:
		return u, context.Cause(ctx)
	}
	return u, fmt.Errorf("%s unlearn %s failed: %s", filepath.Base(program), path, lastLine(said.String(), err))
}

// loggedPeak is the highest memory that the run of a recipe says it needed; 0 where it does not say.
func loggedPeak(path string) int64 {
	r := unlearn.Defaults()
	if recipe.Load(path, recipe.Layers{}, &r) != nil {
		return 0
	}
	events, err := train.ReadEvents(filepath.Join(r.Out, "events.jsonl"))
	if err != nil {
		return 0
	}
	peak := 0.0
	for _, e := range events {
		if bytes, ok := e.Number("peak_memory_bytes"); ok {
			peak = max(peak, bytes)
		}
	}
	return int64(peak)
}

// lastLine is what a process said last, without its name.
func lastLine(said string, err error) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	last := strings.TrimPrefix(lines[len(lines)-1], "resalign: ")
	if last == "" {
		return err.Error()
	}
	return last
}
