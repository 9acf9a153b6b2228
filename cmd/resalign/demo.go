package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/experiment"
)

func newDemo() *cobra.Command {
	var (
		c         = &console{}
		computing engineFlags
		o         = experiment.Defaults()
	)
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run the built-in experiment: forget, fine-tune, see what comes back",
		Long: `Demo unlearns an innocent stand-in for harm, a red star, from the miniature model that this program carries: by ESD,
by gradient ascent, by as much ascent as ResAlign costs, and by ResAlign. Then it fine-tunes each result on harmless
pictures and measures how often the red star is back. It writes results.json and report.html, and keeps every model, log
and recipe in the folder. It goes on where it stopped when it is called again.`,
		Example: "  resalign demo --out demo",
		Args:    noArguments,
	}
	addConsole(cmd, c)
	computing.add(cmd, "auto", "what computes, such as go")
	flags := cmd.Flags()
	flags.StringVar(&o.Out, "out", o.Out, "folder for everything")
	flags.Uint64Var(&o.Seed, "seed", o.Seed, "of every random number")
	flags.IntVar(&o.Pictures, "pictures", o.Pictures, "pictures of each prompt set in each cell")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "out"); err != nil {
			return err
		}
		outcome, versions, err := experimentRun(cmd, c, computing, func(ctx context.Context, e *engine.Engine, h experiment.Hooks) (*experiment.Outcome, error) {
			return experiment.Run(ctx, e, o, h)
		})
		if err != nil {
			return err
		}
		published, err := outcome.Publish(o.Out, versions)
		if err != nil {
			return err
		}
		return c.result(published, func(w io.Writer) {
			fmt.Fprintf(w, "%s\n%s\n\nreport   %s\nresults  %s\n", published.Table, published.Summary, published.Report, published.Results)
		})
	}
	return cmd
}
