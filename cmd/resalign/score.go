package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/hub"
	"github.com/resalign/resalign/judge/detectors"
	"github.com/resalign/resalign/judge/folders"
	"github.com/resalign/resalign/judge/spec"
)

// scoring are the flags of resalign score.
type scoring struct {
	job       folders.Job
	detectors []string
	metrics   []string
	labels    string
	above     float64
	isAbove   bool // above was given
}

func newScore() *cobra.Command {
	var (
		c      = &console{}
		engine engineFlags
		s      scoring
	)
	cmd := &cobra.Command{
		Use:   "score FOLDER...",
		Short: "Judge folders of pictures: how many are harmful, how good they are, what differs between models",
		Long: `Score has detectors and metrics look at every picture of one or more folders, and writes into --out what they find:
score.json with rates, metrics and their 95 % intervals, and pictures.csv with a row for each picture. With two folders or
more each is compared with the first, prompt by prompt (a bootstrap over prompts); prompts come from metadata.jsonl, as
resalign generate writes it, and pictures without prompts are paired by their names.

What is found about each picture is kept in --out under the hash of its file, so an interrupted call is continued by the
same command, and further folders, detectors and metrics may be added later. No weights are carried by this program but
the miniature's: name the files. A .npz of pytorch-fid may stand for the reference pictures of fid.

Detectors, with what counts as harmful unless --labels and --above say otherwise:
` + kindsHelp(detectors.Kinds()) + `
Metrics:
` + kindsHelp(folders.MetricKinds()),
		Example: `  resalign score pictures/base pictures/unlearned --detector mhsc:clip-vit-l-14,heads --out scores
  resalign score pictures/base --metric fid:pt_inception-2015-12-05-6726825d.pth --reference coco.npz --out scores
  resalign score pictures/unlearned --metric lpips:alexnet.pth,alex.pth --against pictures/base --out scores`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return misuse(cmd, "a folder of pictures is missing")
			}
			return nil
		},
	}
	addConsole(cmd, c)
	engine.add(cmd, "auto", "what computes, such as go")
	f := cmd.Flags()
	f.StringArrayVar(&s.detectors, "detector", nil, "what looks for harm, such as mini (may be repeated)")
	f.StringArrayVar(&s.metrics, "metric", nil, "what measures, such as fid:WEIGHTS (may be repeated)")
	f.StringVar(&s.labels, "labels", "", "labels that count as harmful, with commas, any of which suffices; or ASPECT=VALUE, all of which must hold")
	f.Float64Var(&s.above, "above", 0, "the score above which a label counts (default: the detector's usual one)")
	f.StringVar(&s.job.Reference, "reference", "", "the pictures that fid, kid and cmmd compare with: a folder, or for fid a .npz")
	f.StringVar(&s.job.SaveReference, "save-reference", "", "a .npz to write the statistics of the reference folder to, for fid")
	f.StringVar(&s.job.Against, "against", "", "the folder of pictures of the same names that lpips compares with")
	f.Uint64Var(&s.job.Seed, "seed", 0, "of the bootstrap")
	f.StringVar(&s.job.Out, "out", "", "folder for what is found, new or of an earlier call")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s.job.Folders = args
		if err := s.check(cmd); err != nil {
			return err
		}
		e, closeEngine, err := engine.open(cmd)
		if err != nil {
			return err
		}
		defer closeEngine()
		finish, ctx, stop := watchInterrupts(cmd, c, "batch of pictures")
		defer stop()
		result, err := s.run(ctx, c, e, folders.Hooks{
			Finish: finish, Warn: c.warnOnce(),
			OnPicture: func(measure string, done, total int) { c.progress(measure, done, total, "") },
		})
		c.endProgress()
		if err != nil {
			return stopped(err, append([]string{"resalign"}, os.Args[1:]...)...)
		}
		return c.result(result, func(w io.Writer) { writeScores(w, result, s.job.Out) })
	}
	return cmd
}

// kindsHelp lists kinds for the help text.
func kindsHelp(kinds []spec.Kind) string {
	var out strings.Builder
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, k := range kinds {
		fmt.Fprintf(t, "  %s\t%s\n", k.Usage, k.What)
	}
	_ = t.Flush() // a builder takes everything
	return out.String()
}

// check refuses flags that do not go together, before anything is opened.
func (s *scoring) check(cmd *cobra.Command) error {
	if err := needFlags(cmd, "out"); err != nil {
		return err
	}
	if len(s.detectors)+len(s.metrics) == 0 {
		return misuse(cmd, "say what to look for: give --detector or --metric")
	}
	seen := map[string]bool{}
	for _, dir := range s.job.Folders {
		if seen[filepath.Clean(dir)] {
			return misuse(cmd, "the folder %s is given twice", dir)
		}
		seen[filepath.Clean(dir)] = true
	}
	for _, d := range s.detectors {
		if err := detectors.Check(d); err != nil {
			return specMisuse(cmd, "detector", err)
		}
	}
	s.isAbove = cmd.Flags().Changed("above")
	if (s.labels != "" || s.isAbove) && len(s.detectors) != 1 {
		return misuse(cmd, "--labels and --above are for one --detector, not %d; score with each by itself, into the same --out", len(s.detectors))
	}
	needs := map[string]string{"fid": "reference", "kid": "reference", "cmmd": "reference", "lpips": "against"}
	given := map[string]string{"reference": s.job.Reference, "against": s.job.Against}
	used := map[string]bool{}
	for _, m := range s.metrics {
		kind, err := folders.CheckMetric(m)
		if err != nil {
			return specMisuse(cmd, "metric", err)
		}
		if flag := needs[kind]; flag != "" {
			if given[flag] == "" {
				return misuse(cmd, "--metric %s needs --%s", kind, flag)
			}
			used[flag] = true
		}
		used[kind] = true
	}
	for flag, value := range given {
		if value != "" && !used[flag] {
			return misuse(cmd, "no --metric uses --%s", flag)
		}
	}
	if s.job.SaveReference != "" && (!used["fid"] || strings.EqualFold(filepath.Ext(s.job.Reference), ".npz")) {
		return misuse(cmd, "--save-reference needs --metric fid and a folder as --reference")
	}
	return nil
}

// specMisuse is the error for a text that names no detector or metric.
func specMisuse(cmd *cobra.Command, flag string, err error) error {
	if wrong := new(spec.Error); errors.As(err, &wrong) {
		return misuse(cmd, "--%s: %w", flag, err)
	}
	return err
}

// run opens what is to look at the pictures, all of it before the first is looked at, and scores them.
func (s *scoring) run(ctx context.Context, c *console, e *engine.Engine, h folders.Hooks) (*folders.Result, error) {
	var above *float64
	if s.isAbove {
		above = &s.above
	}
	locate := func(text string) (string, error) {
		return spec.Locate(text, func(id hub.ID, file string) (string, error) { return c.findFile(ctx, id, file, true) })
	}
	for _, text := range s.detectors {
		text, err := locate(text)
		if err != nil {
			return nil, err
		}
		d, err := detectors.Open(e, text)
		if err != nil {
			return nil, err
		}
		defer d.Close()
		criterion, err := d.Criterion(s.labels, above)
		if err != nil {
			return nil, err
		}
		s.job.Judges = append(s.job.Judges, folders.Judge{Detector: d, Criterion: criterion})
	}
	for _, text := range s.metrics {
		text, err := locate(text)
		if err != nil {
			return nil, err
		}
		m, err := folders.OpenMetric(e, text)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		s.job.Metrics = append(s.job.Metrics, m)
	}
	return folders.Run(ctx, e, s.job, h)
}

// writeScores writes the result as tables.
func writeScores(w io.Writer, r *folders.Result, out string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "folder\tmeasure\tvalue\t95 %\tpictures")
	for _, f := range r.Folders {
		for _, rate := range f.Rates {
			fmt.Fprintf(t, "%s\t%s\t%.4f\t%.4f … %.4f\t%d of %d\n", printable(f.Folder), rate.Detector, rate.Share, rate.Interval.Low, rate.Interval.High, rate.K, rate.N)
		}
		for _, m := range f.Metrics {
			interval := ""
			switch {
			case m.Interval != nil:
				interval = fmt.Sprintf("%.4f … %.4f", m.Interval.Low, m.Interval.High)
			case m.SD != nil:
				interval = fmt.Sprintf("± %.4f (sd)", *m.SD)
			}
			fmt.Fprintf(t, "%s\t%s\t%.4f\t%s\t%d\n", printable(f.Folder), m.Metric, m.Value, interval, m.Pictures)
		}
	}
	_ = t.Flush() // a closed output does not change what was found
	if len(r.Comparisons) > 0 {
		fmt.Fprintln(w)
		fmt.Fprintln(t, "against "+printable(r.Comparisons[0].A)+"\tmeasure\tdifference\t95 %\tpaired")
		for _, d := range r.Comparisons {
			fmt.Fprintf(t, "%s\t%s\t%+.4f\t%+.4f … %+.4f\t%d %s\n", printable(d.B), d.Measure, d.Value, d.Interval.Low, d.Interval.High, d.Pairs, d.Over)
		}
		_ = t.Flush()
	}
	fmt.Fprintf(w, "\nscores    %s\npictures  %s\n", filepath.Join(out, "score.json"), filepath.Join(out, "pictures.csv"))
}
