package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/plan"
	"github.com/resalign/resalign/protocol"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
)

//go:embed presets/audit/*.toml
var auditPresetFiles embed.FS

// auditPresets are the built-in recipes of audits by name.
func auditPresets() map[string][]byte {
	files, err := fs.Glob(auditPresetFiles, "presets/audit/*.toml")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	out := map[string][]byte{}
	for _, file := range files {
		content, err := auditPresetFiles.ReadFile(file)
		if err != nil {
			panic(err) // it was listed in the same program
		}
		out[strings.TrimSuffix(path.Base(file), ".toml")] = content
	}
	return out
}

// auditFlags are what the command line says about an audit.
type auditFlags struct {
	set, limits         []string
	preset, out, share  string
	jobs                string
	dryRun, printRecipe bool
}

func newAudit() *cobra.Command {
	var (
		c      = &console{}
		engine engineFlags
		f      auditFlags
	)
	cmd := &cobra.Command{
		Use:   "audit [RECIPE]",
		Short: "Measure how safe models are, and how safe they stay when somebody fine-tunes them",
		Long: `Audit carries out a recipe: it makes pictures of every prompt set with every model, as it is and after each way of
fine-tuning it, lets detectors and metrics look at them, and writes results.json, results.csv, metrics.csv and report.html,
with the resolved recipe beside them.

Every picture is kept as it is made, and is the same whoever makes it: an audit that was stopped or killed is continued by
the same command. Several machines share the work with --shard 0/4, --shard 1/4, …: in one folder, where the last one to
finish writes the report, or each in its own, joined by "resalign audit merge". --write-jobs prints such an array of jobs
for Kubernetes or Slurm.

--fail-above makes it a gate for releases: SET=RATE@STEPS, where ip stands for the first harmful prompt set. The rate over
all seeds must not lie above RATE after STEPS of any fine-tuning, for any model but the baseline (for benign sets: not
below); without @STEPS it holds everywhere, and SET:upper=RATE judges the upper end of the 95 % interval. If one is not kept,
everything is written all the same, and the exit code is 3.

Presets: paper is the published protocol, quick a small audit. See what they do with --dry-run, and their text with
--print-recipe.`,
		Example: `  resalign audit audit.toml
  resalign audit --preset paper --dry-run
  resalign audit audit.toml --fail-above ip=0.05@200 --fail-above ip:upper=0.02@0
  resalign audit audit.toml --shard 0/2 --out shard0
  resalign audit merge shard0 shard1 --out audit
  resalign audit audit.toml --write-jobs slurm:16 > audit.slurm`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && f.preset != "" {
				return nil
			}
			return argument("the recipe, a TOML file (or --preset),")(cmd, args)
		},
	}
	addConsole(cmd, c)
	engine.add(cmd, "", "what computes, such as go (default: the recipe's)")
	flags := cmd.Flags()
	flags.StringArrayVar(&f.set, "set", nil, "set a key of the recipe, as in generate.steps=20 (may be repeated)")
	flags.StringVar(&f.preset, "preset", "", "the recipe to start from: paper or quick")
	flags.StringVar(&f.out, "out", "", "the audit's folder (default: the recipe's)")
	flags.StringVar(&f.share, "shard", "0/1", "make only the pictures of share i of n, as in 0/4")
	flags.StringArrayVar(&f.limits, "fail-above", nil, "exit with 3 if a rate is above its limit, as in ip=0.05@200 (may be repeated)")
	flags.BoolVar(&f.dryRun, "dry-run", false, "only say what would be done, and for how long")
	flags.BoolVar(&f.printRecipe, "print-recipe", false, "only print the preset's text, or the resolved recipe of a file")
	flags.StringVar(&f.jobs, "write-jobs", "", "only print an array of jobs, k8s:N or slurm:N")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return f.run(cmd, c, engine, args) }
	cmd.AddCommand(newAuditMerge())
	return cmd
}

func (f *auditFlags) run(cmd *cobra.Command, c *console, engine engineFlags, args []string) error {
	if f.printRecipe && len(args) == 0 && len(f.set) == 0 {
		content, known := auditPresets()[f.preset]
		if !known {
			return misuse(cmd, "--preset %q is not known; there are paper and quick", f.preset)
		}
		_, err := c.out.Write(content)
		return err
	}
	shard, err := generate.ParseShard(f.share)
	if err != nil {
		return settingMisuse(cmd, err)
	}
	r, err := f.read(args, engine.spec)
	if err != nil {
		return err
	}
	gates, err := parseGates(cmd, f.limits)
	if err != nil {
		return err
	}
	if err := r.CheckGates(gates); err != nil {
		return misuse(cmd, "--fail-above: %w", err)
	}
	options := protocol.Options{
		Shard: shard, Find: c.findModel, Program: programVersion(), Command: os.Args,
		FindFile: func(ctx context.Context, id hub.ID, file string) (string, error) {
			return c.findFile(ctx, id, file, !f.dryRun) // a plan fetches nothing
		},
	}
	switch {
	case f.printRecipe:
		text, err := recipe.Encode(r)
		if err != nil {
			return err
		}
		_, err = c.out.Write(text)
		return err
	case f.jobs != "":
		return f.writeJobs(cmd, c, args, r.Out, engine)
	case f.dryRun:
		e, err := r.Plan(cmd.Context(), options, plan.Rates{})
		if err != nil {
			return err
		}
		return c.result(e, func(w io.Writer) { writeEstimate(w, e) })
	}
	again := f.command(args, engine, f.share)
	engine.spec = r.Engine
	e, closeEngine, err := engine.open(cmd)
	if err != nil {
		return err
	}
	defer closeEngine()
	finish, ctx, stop := watchInterrupts(cmd, c, "picture")
	defer stop()
	outcome, err := protocol.Run(ctx, e, r, options, protocol.Hooks{
		Finish: finish, Warn: c.warnOnce(),
		OnPicture:   func(done, total int, cell string) { c.progress("making pictures", done, total, cell) },
		OnReference: func(done, total int, folder string) { c.progress("looking at reference pictures", done, total, folder) },
		OnTune:      func(what string, event train.Event, of int) { c.progress(what, event.Step, of, eventNote(event)) },
	})
	c.endProgress()
	if err != nil {
		return stopped(err, again...)
	}
	return audited(c, outcome, gates)
}

// read reads the recipe.
func (f *auditFlags) read(args []string, engine string) (protocol.Recipe, error) {
	r := protocol.DefaultRecipe()
	assignments := slices.Clone(f.set)
	for _, a := range [][2]string{{"preset", f.preset}, {"out", f.out}, {"engine", engine}} {
		if a[1] != "" {
			assignments = append(assignments, a[0]+"="+a[1])
		}
	}
	layers := recipe.Layers{Presets: auditPresets(), Assignments: assignments}
	if len(args) == 0 {
		return r, recipe.LoadBytes("the command line", nil, layers, &r)
	}
	return r, recipe.Load(args[0], layers, &r)
}

func parseGates(cmd *cobra.Command, limits []string) (gates []protocol.Gate, err error) {
	for _, limit := range limits {
		g, err := protocol.ParseGate(limit)
		if err != nil {
			return nil, misuse(cmd, "--fail-above %w", err)
		}
		gates = append(gates, g)
	}
	return gates, nil
}

// command is the command line of an audit, without --shard where share is empty or everything.
func (f *auditFlags) command(args []string, e engineFlags, share string) []string {
	words := append([]string{"resalign", "audit"}, args...)
	add := func(name, value string) {
		if value != "" {
			words = append(words, "--"+name, value)
		}
	}
	add("preset", f.preset)
	for _, s := range f.set {
		add("set", s)
	}
	for _, s := range f.limits {
		add("fail-above", s)
	}
	add("out", f.out)
	add("engine", e.spec)
	if e.threads != 0 {
		add("threads", fmt.Sprint(e.threads))
	}
	if share != "0/1" {
		add("shard", share)
	}
	return words
}

func (f *auditFlags) writeJobs(cmd *cobra.Command, c *console, args []string, out string, e engineFlags) error {
	cluster, number, _ := strings.Cut(f.jobs, ":")
	n, err := strconv.Atoi(number)
	if err != nil {
		return misuse(cmd, "--write-jobs %q is not k8s:N or slurm:N with the number of jobs, such as slurm:16", f.jobs)
	}
	text, err := protocol.Jobs(cluster, n, f.command(args, e, ""))
	if err != nil {
		return misuse(cmd, "--write-jobs: %w", err)
	}
	return c.result(map[string]any{"jobs": text, "shards": n, "out": out}, func(w io.Writer) { fmt.Fprint(w, text) })
}

func newAuditMerge() *cobra.Command {
	var (
		c      = &console{}
		out    string
		limits []string
	)
	cmd := &cobra.Command{
		Use:   "merge DIR...",
		Short: "Join the folders of an audit's shards, and write the report",
		Long: `Merge puts the pictures and findings of shards that were made in folders of their own into one, and writes the same
results.json, results.csv and report.html as an audit that was never divided. Pictures are linked where the disk allows it.`,
		Example: "  resalign audit merge shard0 shard1 --out audit",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return misuse(cmd, "the folders of the shards are missing")
			}
			return nil
		},
	}
	addConsole(cmd, c)
	cmd.Flags().StringVar(&out, "out", "", "the folder for the whole audit, new or empty")
	cmd.Flags().StringArrayVar(&limits, "fail-above", nil, "exit with 3 if a rate is above its limit, as in ip=0.05@200 (may be repeated)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := needFlags(cmd, "out"); err != nil {
			return err
		}
		gates, err := parseGates(cmd, limits)
		if err != nil {
			return err
		}
		outcome, err := protocol.Merge(cmd.Context(), args, out)
		if err != nil {
			return err
		}
		if err := outcome.Recipe.CheckGates(gates); err != nil {
			return misuse(cmd, "--fail-above: %w", err)
		}
		if outcome.Missing > 0 {
			return fmt.Errorf("the shards do not make a whole: %s missing, such as %s; run those that did not finish again, then merge again",
				were(outcome.Missing), outcome.First)
		}
		return audited(c, outcome, gates)
	}
	return cmd
}

func were(pictures int) string {
	if pictures == 1 {
		return "1 picture is"
	}
	return fmt.Sprintf("%d pictures are", pictures)
}

// auditResult is the result of the command as JSON.
type auditResult struct {
	Out     string             `json:"out"`
	Results string             `json:"results,omitempty"`
	Table   string             `json:"table,omitempty"`
	Metrics string             `json:"metrics,omitempty"`
	Report  string             `json:"report,omitempty"`
	Summary string             `json:"summary,omitempty"`
	Missing int                `json:"missing"` // pictures that other shards have to make
	Failed  []protocol.Failure `json:"failed"`
}

// errLimit says that a limit of --fail-above is not kept.
type errLimit struct{ error }

// audited shows an audit's result and judges it.
func audited(c *console, o *protocol.Outcome, gates []protocol.Gate) error {
	result := auditResult{Out: o.Recipe.Out, Results: o.Results, Table: o.Table, Metrics: o.Metrics, Report: o.Report, Missing: o.Missing, Failed: []protocol.Failure{}}
	if o.Missing > 0 {
		return c.result(result, func(w io.Writer) {
			fmt.Fprintf(w, "this share is finished; %s still to be made by others, such as %s\n", were(o.Missing), o.First)
			if len(gates) > 0 {
				fmt.Fprintln(w, "limits are judged when all pictures are there")
			}
		})
	}
	result.Summary = o.Summary()
	result.Failed = append(result.Failed, o.Judge(gates)...)
	if err := c.result(result, func(w io.Writer) {
		fmt.Fprintf(w, "%s\n%s\n\nreport   %s\nresults  %s\ntable    %s\n", o.TextTable(), result.Summary, o.Report, o.Results, o.Table)
		if o.Metrics != "" {
			fmt.Fprintf(w, "metrics  %s\n", o.Metrics)
		}
	}); err != nil {
		return err
	}
	if len(result.Failed) == 0 {
		return nil
	}
	var parts []string
	for _, f := range result.Failed {
		parts = append(parts, f.String())
	}
	return errLimit{errors.New("limits are not kept: " + strings.Join(parts, "; "))}
}

func writeEstimate(w io.Writer, e *protocol.Estimate) {
	fmt.Fprintln(w, "prompt sets")
	for _, s := range e.Sets {
		line := fmt.Sprintf("  %s, %s: %s → %s in each of its cells", s.Name, s.Kind, count(s.Prompts, "prompt"), count(s.Pictures, "picture"))
		if s.Detector != "" {
			line += "; " + s.Detector + ": " + s.Counted
		}
		if len(s.Metrics) > 0 {
			line += "; measured by " + strings.Join(s.Metrics, ", ")
		}
		fmt.Fprintln(w, printable(line))
	}
	fmt.Fprintln(w, "\ncells")
	for _, p := range e.Cells {
		what := ""
		if p.What != "" {
			what = " (" + p.What + ")"
		}
		fmt.Fprintln(w, printable(fmt.Sprintf("  %s, %s%s: after steps %v, %s: %s", p.Model, p.Adaptation, what, p.Steps, count(len(p.Seeds), "seed"), count(p.Pictures, "picture"))))
	}
	fmt.Fprintf(w, "\nin all       %s, %s, %s of the UNet\n", count(e.Rows, "cell"), count(e.Pictures, "picture"), count(e.ModelCalls, "call"))
	fmt.Fprintf(w, "fine-tuning  %s, which see %s\n", count(e.TuneSteps, "step"), count(e.TuneSamples, "picture"))
	fmt.Fprintf(w, "disk         at most %s for pictures, %s for fine-tuned models\n", train.FormatBytes(e.PictureBytes), train.FormatBytes(e.ModelBytes))
	fmt.Fprintf(w, "time         %s on this machine with the Go engine, without detectors and metrics: %s a picture, %s a picture of fine-tuning\n",
		duration(e.Seconds), duration(e.PerPicture), duration(e.PerSample))
	for _, note := range e.Notes {
		fmt.Fprintf(w, "note: %s\n", printable(note))
	}
}
