package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/history"
)

func newRuns() *cobra.Command {
	c := &console{}
	cmd := &cobra.Command{
		Use:   "runs [FOLDER]",
		Short: "List the run folders below a folder, or compare two",
		Long: `Runs lists what is below a folder, or below the working directory: unlearning, fine-tuning, audits and experiments, when
each was worked on, how far it is, and what it logged last. Nothing is changed.`,
		Example: "  resalign runs\n  resalign runs experiments --json\n  resalign runs compare runs/first runs/second",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return misuse(cmd, "%q is one argument too many; give one folder%s", args[1], suggestion(cmd, args[0]))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			folder := "."
			if len(args) == 1 {
				folder = args[0]
			}
			found, err := history.List(folder)
			if err != nil {
				return err
			}
			return c.result(map[string]any{"runs": found}, func(w io.Writer) { writeRuns(w, folder, found) })
		},
	}
	addConsole(cmd, c)
	cmd.AddCommand(newRunsCompare())
	return cmd
}

func newRunsCompare() *cobra.Command {
	c := &console{}
	cmd := &cobra.Command{
		Use:     "compare A B",
		Short:   "Show where the recipes of two runs differ, and their figures side by side",
		Long:    "Compare lists the keys of the recipes whose values differ, and the last figures of both runs.",
		Example: "  resalign runs compare runs/first runs/second\n  resalign runs compare demo other-demo --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return misuse(cmd, "%s given; give the folders of two runs", count(len(args), "argument"))
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			found, err := history.Compare(args[0], args[1])
			if err != nil {
				return err
			}
			return c.result(found, func(w io.Writer) { writeComparison(w, found) })
		},
	}
	addConsole(cmd, c)
	return cmd
}

func writeRuns(w io.Writer, folder string, found []history.Run) {
	if len(found) == 0 {
		fmt.Fprintf(w, "no runs below %s\n", printable(folder))
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "run\twhat\tchanged\tdone\tstate\tlast")
	for _, r := range found {
		what := strings.TrimSpace(r.Kind + " " + r.Method)
		state := "unfinished"
		if r.Finished != nil {
			state = "finished"
		}
		if r.Problem != "" {
			state = "damaged"
		}
		changed := "–"
		if !r.Updated.IsZero() {
			changed = r.Updated.Local().Format("2006-01-02 15:04")
		}
		done := strconv.Itoa(r.Done)
		if r.Total > 0 {
			done += "/" + strconv.Itoa(r.Total)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", cut(r.Path, 60), cut(what, 30), changed, done, state, cut(lastLosses(r), 80))
	}
	_ = t.Flush() // a closed output does not change what was found
}

// lastLosses is what a reader looks at first: the losses and the residual of the last step, or what is damaged.
func lastLosses(r history.Run) string {
	if r.Problem != "" {
		return r.Problem
	}
	var parts []string
	for _, f := range r.Figures {
		if f.Name == "pictures made" {
			parts = append(parts, fmt.Sprintf("%.0f pictures made", float64(f.Value)))
		}
		if f.Name == "residual" || strings.HasSuffix(f.Name, "loss") {
			parts = append(parts, fmt.Sprintf("%s %.4g", f.Name, float64(f.Value)))
		}
	}
	return strings.Join(parts, ", ")
}

func writeComparison(w io.Writer, c *history.Comparison) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "recipe\t%s\t%s\n", cut(c.A.Path, 40), cut(c.B.Path, 40))
	dash := func(s string) string {
		if s == "" {
			return "–"
		}
		return cut(s, 60)
	}
	for _, d := range c.Recipe {
		fmt.Fprintf(t, "%s\t%s\t%s\n", cut(d.Key, 60), dash(d.A), dash(d.B))
	}
	if len(c.Recipe) == 0 {
		fmt.Fprintln(t, "the same\t\t")
	}
	_ = t.Flush()
	fmt.Fprintln(w)
	fmt.Fprintf(t, "figure\t%s\t%s\n", cut(c.A.Path, 40), cut(c.B.Path, 40))
	number := func(n *history.Number) string {
		if n == nil {
			return "–"
		}
		return strconv.FormatFloat(float64(*n), 'g', 6, 64)
	}
	for _, p := range c.Figures {
		fmt.Fprintf(t, "%s\t%s\t%s\n", cut(p.Name, 70), number(p.A), number(p.B))
	}
	_ = t.Flush()
}
