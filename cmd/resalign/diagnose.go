package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/resalign/resalign/data"
	diag "github.com/resalign/resalign/diagnose"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/report"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

func newDiagnose() *cobra.Command {
	var (
		c      = &console{}
		engine engineFlags
		d      = diagnosing{Options: diag.Defaults()}
	)
	cmd := &cobra.Command{
		Use:   "diagnose",
		Short: "Look at a model's losses: how flat they are, and what fine-tuning does to them",
		Long: `Diagnose fine-tunes each model a little and measures, at its weights and on the way: the traces and the largest
eigenvalues of the Hessians of the harmful and of the fine-tuning loss, whether the Richardson iteration of the
hypergradient contracts, how far every block of the UNet is from the first model's, and both losses along the straight
line through the fine-tuned weights. It draws them in one page. docs/diagnose.md says what each number means.

The first of --models is the base. --run names a folder of "resalign unlearn" instead: its model is compared with the one
that it began with, and pictures, γ, K and what fine-tuning is like come from the recipe unless they are given. Where
several runs are named these come from the first that simulates fine-tuning.

Finished draws are kept in --out: the same command goes on where it stopped, and more --probes add to those there are.`,
		Example: `  resalign diagnose --models base=sd14 --models safe=runs/unlearned/model --harmful data/harmful --benign data/dogs --out diagnosis
  resalign diagnose --run demo/runs/ascent --run demo/runs/resalign --out diagnosis
  resalign diagnose --models safe=runs/unlearned/model --harmful data/harmful --benign data/dogs --parameters lora --out diagnosis`,
		Args: noArguments,
	}
	addConsole(cmd, c)
	engine.add(cmd, "auto", "what computes, such as go")
	flags := cmd.Flags()
	d.bind(flags)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "out"); err != nil {
			return err
		}
		o, err := d.options(cmd, c)
		if err != nil {
			return err
		}
		e, closeEngine, err := engine.open(cmd)
		if err != nil {
			return err
		}
		defer closeEngine()
		finish, ctx, stop := watchInterrupts(cmd, c, "step")
		defer stop()
		found, err := diag.Run(ctx, e, d.out, o, diag.Hooks{
			Finish: finish, Warn: c.warnOnce(), Program: programVersion(), Command: os.Args,
			OnStep: func(model, quantity string, done, total int) { c.progress(model+": "+quantity, done, total, "") },
			OnPart: func(model, quantity string, took time.Duration, found bool) {
				c.stage(model+": "+quantity, took, found)
			},
		})
		c.endProgress()
		if err != nil {
			again := jobCommand(flags, d.out, false)
			again[1] = cmd.Name()
			return stopped(err, again...)
		}
		page := filepath.Join(d.out, "diagnose.html")
		if err := report.WriteDiagnosis(page, found, map[string]string{"resalign": programVersion(), "engine": e.Description()}); err != nil {
			return err
		}
		out := diagnosed{Page: page, Results: filepath.Join(d.out, diag.ResultFile), Table: filepath.Join(d.out, diag.TableFile)}
		return c.result(out, func(w io.Writer) {
			fmt.Fprintf(w, "%s\n\npage     %s\nresults  %s\ntable    %s\n", found.Text(), out.Page, out.Results, out.Table)
		})
	}
	return cmd
}

// diagnosed is the result of the command as JSON.
type diagnosed struct {
	Page    string `json:"page"`
	Results string `json:"results"`
	Table   string `json:"table"`
}

// diagnosing is what was typed.
type diagnosing struct {
	diag.Options
	models, runs            []string
	harmful, benign, retain string
	out                     string
}

func (d *diagnosing) bind(f *pflag.FlagSet) {
	f.StringArrayVar(&d.models, "models", nil, "a model as NAME=FOLDER or NAME=owner/name on the hub; the first is the base (may be repeated)")
	f.StringArrayVar(&d.runs, "run", nil, "folder of an unlearning run, in place of --models (may be repeated)")
	f.StringVar(&d.harmful, "harmful", "", "folder of harmful captioned pictures")
	f.StringVar(&d.benign, "benign", "", "folder of captioned pictures to fine-tune on")
	f.StringVar(&d.retain, "retain", "", "folder of captioned pictures whose loss is shown as well")
	f.StringVar(&d.out, "out", "", "folder for everything")

	o := &d.Options
	f.StringVar(&o.Parameters, "parameters", o.Parameters, "what derivatives are taken by: all weights of the UNet, or lora, a fresh adapter of --rank on --targets")
	f.Float64Var(&o.DownStd, "down-std", o.DownStd, "lora: standard deviation of the adapter's down factors; 0: 1/rank, as fine-tuning begins")
	f.IntVar(&o.Probes, "probes", o.Probes, "random probes of each trace, each on pictures of its own")
	f.IntVar(&o.Draws, "draws", o.Draws, "batches that eigenvalues and Richardson iterations are taken at")
	f.IntVar(&o.PowerIterations, "power-iterations", o.PowerIterations, "of power iteration at most, and as many of Lanczos' method")
	f.Float64Var(&o.Tolerance, "tolerance", o.Tolerance, "of eigenvalues, relative")
	f.Float64Var(&o.Gamma, "gamma", o.Gamma, "γ, radius of the Moreau envelope")
	f.IntVar(&o.Iterations, "iterations", o.Iterations, "K, Richardson iterations")
	f.Float64Var(&o.Damping, "damping", o.Damping, "μ of the damped Richardson iteration; 1: plain")
	f.Float64Var(&o.From, "from", o.From, "where the line through the fine-tuned weights begins; 0 is the model")
	f.Float64Var(&o.To, "to", o.To, "where it ends; 1 is the fine-tuned model")
	f.IntVar(&o.Points, "points", o.Points, "places on the line")
	f.IntVar(&o.LossBatches, "loss-batches", o.LossBatches, "batches that losses on the line are averaged over")

	bindTuning(f, &o.Tuning)
	for name, usage := range map[string]string{
		"method":        "of fine-tuning: full, lora, custom or svdiff",
		"steps":         "optimizer steps of fine-tuning",
		"batch-size":    "pictures per batch, of fine-tuning and of everything that is measured",
		"learning-rate": "learning rate (default: that of resalign finetune with this method)",
		"rank":          "of adapters, with --method lora and with --parameters lora",
		"alpha":         "of adapters; 0: equal to the rank",
		"targets":       "of adapters: parts of the names of attention layers (default: all)",
		"flip":          "mirror half of the pictures in fine-tuning",
	} {
		f.Lookup(name).Usage = usage
	}
	f.Uint64Var(&o.Seed, "seed", o.Seed, "of every random number")
}

// options are what was typed, on top of what the runs' recipes say.
func (d *diagnosing) options(cmd *cobra.Command, c *console) (diag.Options, error) {
	given := cmd.Flags()
	if len(d.models) > 0 && len(d.runs) > 0 {
		return d.Options, misuse(cmd, "give either --models or --run")
	}
	o := d.Options
	if !given.Changed("learning-rate") {
		o.Tuning.LearningRate = finetune.Defaults(o.Tuning.Method).LearningRate
	}
	sets := map[string]unlearn.Dataset{}
	if len(d.runs) > 0 {
		r, err := d.recipes(&o)
		if err != nil {
			return o, err
		}
		if sets, err = fromRecipe(r, &o); err != nil {
			return o, err
		}
		if m := r.Hypergradient.Metric; r.Method == unlearn.ResAlign && m != unlearn.PlainMetric {
			c.warn(fmt.Sprintf("the run solves its system in the metric %q; the Hessian is diagnosed without one", m))
		}
		if err := overrule(given, &o); err != nil {
			return o, err
		}
	}
	for _, m := range d.models {
		name, dir, ok := strings.Cut(m, "=")
		if !ok {
			return o, misuse(cmd, "--models %q must be NAME=FOLDER, as in base=%s", m, m)
		}
		o.Models = append(o.Models, diag.Model{Name: name, Dir: dir})
	}
	o.Tuning.Seed = o.Seed
	for _, set := range []struct {
		flag, folder string
		into         *data.Mixture
	}{{"harmful", d.harmful, &o.Harmful}, {"benign", d.benign, &o.Benign}, {"retain", d.retain, &o.Retain}} {
		s, known := sets[set.flag]
		if set.folder != "" {
			s, known = unlearn.Dataset{Folder: set.folder}, true
		}
		if !known {
			continue
		}
		var err error
		if *set.into, err = openSet(s); err != nil {
			return o, err
		}
	}
	if err := jobMisuse(o.Problems()); err != nil {
		return o, err
	}
	for i := range o.Models {
		var err error
		if o.Models[i].Dir, err = c.findModel(cmd.Context(), o.Models[i].Dir); err != nil {
			return o, err
		}
	}
	return o, nil
}

// recipes reads the runs, puts their models into the options, and returns the recipe that settings are taken from.
func (d *diagnosing) recipes(o *diag.Options) (from unlearn.Recipe, err error) {
	for i, dir := range d.runs {
		path := filepath.Join(dir, "recipe.toml")
		r := unlearn.Defaults()
		if !train.IsRun(dir) {
			return from, usageError{fmt.Errorf("--run %s: it holds no run; name a folder that `resalign unlearn` made", dir)}
		}
		if err := recipe.Decode(path, &r); err != nil {
			if _, tuned := finetune.ReadJob(dir); tuned == nil {
				return from, usageError{fmt.Errorf("--run %s: it holds a fine-tuning; name a folder that `resalign unlearn` made", dir)}
			}
			return from, err
		}
		if i == 0 {
			from = r
			o.Models = []diag.Model{{Name: "base", Dir: r.Model}}
		}
		if base := o.Models[0].Dir; filepath.Clean(r.Model) != filepath.Clean(base) {
			return from, usageError{fmt.Errorf("--run %s began with the model %s, and %s with %s; diagnose runs of one model together", dir, r.Model, d.runs[0], base)}
		}
		if len(from.Simulations) == 0 && len(r.Simulations) > 0 {
			from = r
		}
		o.Models = append(o.Models, diag.Model{Name: filepath.Base(filepath.Clean(dir)), Dir: filepath.Join(dir, "model")})
	}
	return from, nil
}

// fromRecipe takes over what a recipe says of the quantities that are diagnosed, and returns its sets of pictures by the
// names of the flags.
func fromRecipe(r unlearn.Recipe, o *diag.Options) (map[string]unlearn.Dataset, error) {
	o.Seed = r.Seed
	t := &o.Tuning
	t.Resolution, t.GradientCheckpointing = r.Resolution, r.Memory.GradientCheckpointing
	o.Gamma, o.Iterations, o.Damping = r.Hypergradient.Gamma, r.Hypergradient.Iterations, r.Hypergradient.Damping
	if r.Trainable.Parameters == "lora" {
		o.Parameters, o.DownStd = diag.LoRA, r.Trainable.DownStd
		t.Rank, t.Targets, t.Alpha = r.Trainable.Rank, r.Trainable.Targets, r.Trainable.Scale*float64(r.Trainable.Rank)
	}
	sets := map[string]unlearn.Dataset{}
	for _, name := range []string{"harmful", "retain"} {
		if s, ok := r.Data[name]; ok {
			sets[name] = s
		}
	}
	if len(r.Simulations) == 0 {
		return sets, nil
	}
	s := r.Simulations[0]
	pictures, ok := r.Data[s.Data]
	if !ok {
		return nil, fmt.Errorf("the recipe of the run: simulation %q names the pictures %q, which the recipe does not have; give --benign", s.Name, s.Data)
	}
	sets["benign"] = pictures
	t.Optimizer, t.LearningRate, t.WeightDecay, t.Momentum, t.Nesterov, t.ClipNorm = s.Optimizer, s.LearningRate, s.WeightDecay, s.Momentum, s.Nesterov, s.ClipNorm
	t.BatchSize, t.Accumulation, t.Flip = cmp.Or(pictures.Batch, 1), 1, pictures.Flip
	if s.Adapts == unlearn.FreshAdapter || (r.Trainable.Parameters == "lora" && s.Adapts != unlearn.AllWeights) {
		t.Method, t.Rank = finetune.LoRA, cmp.Or(s.Rank, r.Trainable.Rank, t.Rank)
	}
	return sets, nil
}

// overrule applies the flags that were given to options from a recipe.
func overrule(given *pflag.FlagSet, o *diag.Options) error {
	typed := diagnosing{Options: *o}
	own := pflag.NewFlagSet("", pflag.ContinueOnError)
	targets := o.Tuning.Targets
	typed.bind(own)
	typed.Tuning.Targets = targets // declaring a list empties it
	err := copyFlags(given, own)
	*o = typed.Options
	return err
}

// openSet opens the folders of a set of pictures.
func openSet(s unlearn.Dataset) (data.Mixture, error) {
	parts := s.Parts
	if len(parts) == 0 {
		parts = []unlearn.Part{{Folder: s.Folder, Weight: 1}}
	}
	var out data.Mixture
	for _, p := range parts {
		read := data.ReadFolder
		if s.Prompt != "" {
			read = data.ReadPictures
		}
		folder, err := read(p.Folder)
		if err == nil && s.Prompt != "" {
			folder, err = folder.WithCaption(s.Prompt)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, data.Part{Folder: folder, Weight: p.Weight})
	}
	return out, nil
}
