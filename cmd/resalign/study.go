package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/experiment"
)

func newStudy() *cobra.Command {
	var (
		c         = &console{}
		computing engineFlags
		o         = experiment.StudyDefaults()
		document  string
	)
	cmd := &cobra.Command{
		Use:   "study",
		Short: "Compare ways of unlearning the miniature at equal depth and compute",
		Long: `Study asks what the demo cannot: whether simulating fine-tuning, and the gradient through it, pay when every arm erases as
deep and computes as much. It makes and measures each arm for several seeds, keeps every model, log, recipe and cell in
the folder, and writes results.json and tables in Markdown: into the given document, between its two study marks, or into
a new file. It takes hours on two cores, and goes on where it stopped when it is called again.`,
		Example: "  resalign study --out results --document docs/results.md",
		Args:    noArguments,
	}
	addConsole(cmd, c)
	computing.add(cmd, "auto", "what computes, such as go")
	flags := cmd.Flags()
	flags.StringVar(&o.Out, "out", o.Out, "folder for everything")
	flags.IntVar(&o.Seeds, "seeds", o.Seeds, "how many seeds, from 42 on; more can be added later")
	flags.IntVar(&o.Pictures, "pictures", o.Pictures, "pictures of each prompt set in each cell")
	flags.StringVar(&document, "document", "", "Markdown file for the tables; without it tables.md in the folder")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "out"); err != nil {
			return err
		}
		study, versions, err := experimentRun(cmd, c, computing, func(ctx context.Context, e *engine.Engine, h experiment.Hooks) (*experiment.Study, error) {
			return experiment.RunStudy(ctx, e, o, h)
		})
		if err != nil {
			return err
		}
		if document == "" {
			document = filepath.Join(o.Out, "tables.md")
		}
		results := filepath.Join(o.Out, "results.json")
		if err := study.Publish(results, document, versions); err != nil {
			return err
		}
		return c.result(map[string]string{"results": results, "tables": document}, func(w io.Writer) {
			fmt.Fprintf(w, "%s\nresults  %s\ntables   %s\n", study.Text(), results, document)
		})
	}
	return cmd
}
