package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/train"
)

// Exit codes; 70 is EX_SOFTWARE of sysexits.h, 130 what shells give for a process that SIGINT ended.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitLimit       = 3 // a limit of an audit is not kept
	exitInternal    = 70
	exitInterrupted = 130
)

// run carries out one command line and returns its exit code. Results go to out; progress, warnings and the error, as one
// sentence, to errOut.
func run(ctx context.Context, args []string, out, errOut io.Writer) (code int) {
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintf(errOut, "resalign: internal error: %v; this is a bug, please report it with the lines below\n%s", r, debug.Stack())
			code = exitInternal
		}
	}()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.ExecuteContext(ctx)
	if err != nil {
		fmt.Fprintf(errOut, "resalign: %s\n", printableLines(err.Error()))
	}
	return exitCode(err)
}

func exitCode(err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, new(errLimit)):
		return exitLimit
	case isInterrupt(err):
		return exitInterrupted
	case errors.Is(err, engine.ErrInternal):
		return exitInternal
	}
	return exitFailed
}

// isInterrupt tells whether a run ended because its user asked for it.
func isInterrupt(err error) bool {
	return errors.Is(err, train.ErrInterrupted) || errors.Is(err, train.ErrAborted) || errors.Is(err, context.Canceled)
}

// usageError is a command line that cannot be carried out, as opposed to one that failed.
type usageError struct{ error }

func misuse(cmd *cobra.Command, format string, args ...any) error {
	return usageError{fmt.Errorf(format+"; see `%s --help`", append(args, cmd.CommandPath())...)}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "resalign",
		Short: "Unlearn concepts from Stable Diffusion models so that they stay unlearned",
		Long: `resalign makes a text-to-image diffusion model forget a concept, and keeps it forgotten when somebody
fine-tunes the model later (ResAlign, NeurIPS 2025). Models are diffusers directories; data sets are folders of captioned
pictures. Paths are relative to the working directory, those in recipes too.`,
		Example:       "  resalign init\n  resalign unlearn recipe.toml\n  resalign generate --model runs/unlearned/model --prompt \"a photo of a dog\" --out pictures",
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       programVersion(),
	}
	root.Args = commandsOnly
	root.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	root.SetVersionTemplate("resalign {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return misuse(cmd, "%w", err) })
	root.AddCommand(
		newUnlearn(), newFinetune(), newGenerate(), newScore(), newVerify(), newInspect(), newDownload(), newConvert(), newLoRA(), newDoctor(), newInit(), newBench(), newPlan(), newModel(), newMini(), newDemo(), newStudy(), newCompare(), newAudit(), newDiagnose(), newRuns(), newServe(), newVersion(),
	)
	return root
}

// commandsOnly is the check for commands that only hold others: what is left to them is no command.
func commandsOnly(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return misuse(cmd, "there is no command %q%s", strings.TrimPrefix(cmd.CommandPath()+" "+args[0], cmd.Root().Name()+" "), suggestion(cmd, args[0]))
}

// suggestion names the commands below one that are spelled nearly so.
func suggestion(cmd *cobra.Command, name string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return ""
}

// argument is the check for commands that take exactly one argument; what says what it is.
func argument(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch len(args) {
		case 1:
			return nil
		case 0:
			return misuse(cmd, "%s is missing", what)
		}
		return misuse(cmd, "%q is one argument too many; give only %s", args[1], what)
	}
}

// noArguments is the check for commands that have flags only.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return misuse(cmd, "%q is not expected here; this command takes flags only", args[0])
	}
	return nil
}

// needFlags returns an error unless all of the named flags have a value.
func needFlags(cmd *cobra.Command, names ...string) error {
	var missing []string
	for _, name := range names {
		if f := cmd.Flags().Lookup(name); f.Value.String() == "" {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) > 0 {
		return misuse(cmd, "%s must be given", strings.Join(missing, " and "))
	}
	return nil
}
