package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/plan"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

func newPlan() *cobra.Command {
	c := &console{}
	var (
		set        []string
		model      string
		engineSpec string
		on         plannedMachine
	)
	cmd := &cobra.Command{
		Use:   "plan [RECIPE]",
		Short: "Say what a recipe needs, in memory and time, before anything starts",
		Long: `Plan compiles the computations of an unlearning recipe, whatever its method, from the model's configurations alone, without
its weights, and goes through the run on paper: parameters, memory and time. Speed is measured on this machine for two
seconds. What a fine-tuning needs is said by "resalign finetune --plan" and its other flags.

With --engine xla it is the memory of the device that is planned. How XLA shares memory within a program is known after
compiling only: where this program has XLA and a plugin is at hand, the run's programs are compiled, which takes as long as in
the run (and serves it, if compiled programs are kept); else, and with --estimate, the memory is estimated from the graphs,
by which large gradients come out up to a third too low and predictions several times too high.

With --timed each of the run's programs is run on zeros and timed, in place of counting operations: that takes the memory
of the run and somewhat longer than a step, and is the only way to know times on XLA.

It exits with 0 if the run fits into the memory that is left (or that --memory names), and with 1 if it does not; then it
names the three settings that save most. Without a recipe it plans the public one, the preset sd14.`,
		Example: `  resalign plan recipe.toml
  resalign plan recipe.toml --preset sdxl --memory 64GB
  resalign plan recipe.toml --engine xla --memory 24GB
  resalign plan --preset sd14 --set hypergradient.products=central_differences`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && on.preset != "" {
				return nil
			}
			return argument("the recipe, a TOML file (or --preset),")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if on.preset != "" && model != "" {
				return misuse(cmd, "--model and --preset both name the model; give one")
			}
			o := plan.Options{Recipe: unlearn.Defaults()}
			if err := on.options(cmd, &o); err != nil {
				return err
			}
			if err := readPlanned(args, set, cmp.Or(model, on.preset), engineSpec, &o.Recipe); err != nil {
				return err
			}
			return c.plan(cmd, o, on, o.Recipe.Model, o.Recipe.Engine)
		},
	}
	addConsole(cmd, c)
	flags := cmd.Flags()
	flags.StringArrayVar(&set, "set", nil, "set a key of the recipe, as in outer.steps=20 (may be repeated)")
	flags.StringVar(&model, "model", "", "the model: a diffusers directory, or owner/name on the hub (default: the recipe's)")
	flags.StringVar(&engineSpec, "engine", "", "what will compute: go, or xla (default: the recipe's)")
	on.add(cmd, "")
	flags.IntVar(&on.threads, "threads", 0, "threads to plan for (0: all the machine has)")
	return cmd
}

// plannedMachine is what a plan is for, beside the work.
type plannedMachine struct {
	preset, memory string
	threads        int
	estimate       bool // with XLA: without its compiler
	timed          bool
}

// add declares the flags that all commands have which plan; with says what they go with.
func (m *plannedMachine) add(cmd *cobra.Command, with string) {
	cmd.Flags().StringVar(&m.preset, "preset", "", with+"plan for a known architecture instead: "+strings.Join(sd.PresetNames(), ", "))
	cmd.Flags().StringVar(&m.memory, "memory", "", with+"memory to plan for, such as 24GB (default: what this machine has left)")
	cmd.Flags().BoolVar(&m.estimate, "estimate", false, with+"with --engine xla: estimate the device's memory, compile nothing")
	cmd.Flags().BoolVar(&m.timed, "timed", false, with+"run each of the computations once, on zeros, to know how long they take")
}

// options takes the flags over.
func (m *plannedMachine) options(cmd *cobra.Command, o *plan.Options) (err error) {
	if m.threads < 0 {
		return misuse(cmd, "--threads %d must not be below 0", m.threads)
	}
	o.Threads = m.threads
	if m.memory != "" {
		if o.Memory, err = plan.ParseMemory(m.memory); err != nil {
			return misuse(cmd, "--memory: %w", err)
		}
	}
	if m.preset != "" {
		if o.Model, err = plan.FromPreset(m.preset); err != nil {
			return misuse(cmd, "--preset: %w", err)
		}
	}
	return nil
}

// plan plans and prints. Where the options hold no architecture it is that of the model.
func (c *console) plan(cmd *cobra.Command, o plan.Options, on plannedMachine, model, spec string) error {
	why := ""
	if on.estimate && !strings.HasPrefix(spec, "xla") {
		return misuse(cmd, "--estimate goes with --engine xla; on the Go engine nothing needs to be estimated")
	}
	switch name, _, _ := strings.Cut(strings.TrimSuffix(spec, ",tf32"), ":"); name {
	case "go":
	case "", "auto": // what the run will take
		e, err := engine.Open(spec)
		if err != nil {
			return err
		}
		defer e.Close()
		if e.Kind() != "go" {
			o.XLA, o.Device = true, e
		}
	case "xla":
		var err error
		if o.XLA = true; !on.estimate {
			if o.Device, err = engine.Open(spec); err != nil && strings.Contains(spec, ":") && engine.HasXLA {
				return err // this very plugin was asked for
			} else if err != nil {
				why = err.Error()
			} else {
				defer o.Device.Close()
			}
		}
	default:
		return fmt.Errorf("engine %q is not known; plans are made for go and xla", spec)
	}
	if on.timed {
		switch {
		case o.Device != nil:
			o.Timer = o.Device
		case o.XLA && why != "":
			return fmt.Errorf("nothing can be timed: %s", why)
		case o.XLA:
			return misuse(cmd, "--timed runs what --estimate does not even compile; give one")
		default:
			e, err := engine.Open("go")
			if err != nil {
				return err
			}
			defer e.Close()
			o.Timer = e
		}
	}
	if o.Model == nil {
		folder, err := c.findModel(cmd.Context(), model)
		if err != nil {
			return err
		}
		if o.Model, err = plan.ReadArchitecture(folder); err != nil {
			return err
		}
	}
	p, err := plan.Make(cmd.Context(), o)
	if err != nil {
		return err
	}
	if why != "" {
		p.Notes = append(p.Notes, "the memory is an estimate, as no plugin could be asked: "+why)
	}
	if err := c.result(p, func(w io.Writer) { writePlan(w, p) }); err != nil {
		return err
	}
	if !p.Fits {
		return fmt.Errorf("the run does not fit: it needs %s, and there are %s", train.FormatBytes(p.PeakHigh), train.FormatBytes(p.Memory))
	}
	return nil
}

// readPlanned reads the recipe, or the public one where none is named, and checks it.
func readPlanned(args, set []string, model, engine string, r *unlearn.Recipe) error {
	layers := recipe.Layers{Presets: presets(), Assignments: assign(set, setting{"model", model}, setting{"engine", engine})}
	if len(args) == 0 {
		if err := recipe.LoadBytes("preset sd14", presets()["sd14"], layers, r); err != nil {
			return err
		}
	} else if err := recipe.Load(args[0], layers, r); err != nil {
		return err
	}
	if problems := r.Validate(); len(problems) > 0 {
		name := "preset sd14"
		if len(args) > 0 {
			name = args[0]
		}
		return &recipe.Error{Name: name, Problems: problems}
	}
	return nil
}

func writePlan(w io.Writer, p *plan.Plan) {
	n := p.Parameters
	fmt.Fprintf(w, "model       %s\n", p.Model)
	fmt.Fprintf(w, "method      %s, on the engine %s\n", p.Method, p.Engine)
	fmt.Fprintf(w, "parameters  UNet %s, text %s, VAE %s; θ %s\n", grouped(int64(n.UNet)), grouped(int64(n.Text)), grouped(int64(n.VAE)), grouped(int64(n.Theta)))
	section(w, "stays in memory", p.Resident)
	section(w, "at its height, beside what it is given", p.Evaluations)
	if p.Engine == "xla" {
		how := "an estimate of the device's"
		if p.Compiled {
			how = "with what its compiler says of the device's"
		}
		fmt.Fprintf(w, "\nmemory      %s at the highest, %s; there are %s\n", train.FormatBytes(p.Peak), how, train.FormatBytes(p.Memory))
	} else {
		fmt.Fprintf(w, "\nmemory      %s at the highest (%s to %s, as the garbage collector runs); there are %s\n", train.FormatBytes(p.Peak),
			train.FormatBytes(p.PeakLow), train.FormatBytes(p.PeakHigh), train.FormatBytes(p.Memory))
	}
	if p.Engine == "xla" && !p.Timed {
		fmt.Fprintf(w, "%-10s  %s; how long it takes on XLA is only known with --timed\n", p.StepName, plan.FormatFLOPs(p.StepFLOPs))
	} else {
		fmt.Fprintf(w, "%-10s  %s, %s (%s to %s)\n", p.StepName, plan.FormatFLOPs(p.StepFLOPs), duration(p.StepSeconds), duration(p.StepLow), duration(p.StepHigh))
		fmt.Fprintf(w, "run         %s: %s to prepare, %s, %s for previews\n", duration(p.Seconds), duration(p.Prepare), count(p.Steps, p.StepName), duration(p.Previews))
	}
	switch {
	case p.Timed:
		fmt.Fprintln(w, "measured    each of the run's programs, on zeros")
	case p.Engine != "xla":
		fmt.Fprintf(w, "measured    %.0f GFLOP/s, %.1f GB/s\n", p.Rates.FLOPs/1e9, p.Rates.Bytes/1e9)
	}
	for _, note := range p.Notes {
		fmt.Fprintf(w, "note: %s\n", printable(note))
	}
	if len(p.Switches) > 0 {
		fmt.Fprintln(w, "\nwhat helps most, one at a time")
	}
	for _, s := range p.Switches {
		fits := "does not fit either"
		if s.Fits {
			fits = "fits"
		}
		fmt.Fprintf(w, "  %s  → %s, %s; gives up %s\n", s.Set, train.FormatBytes(s.Peak), fits, s.Costs)
	}
}

func section(w io.Writer, title string, list []plan.Item) {
	fmt.Fprintf(w, "\n%s\n", title)
	for _, i := range list {
		fmt.Fprintf(w, "  %10s  %s\n", train.FormatBytes(i.Bytes), i.Name)
	}
}

// duration writes seconds for people.
func duration(s float64) string {
	if s < 10 {
		return fmt.Sprintf("%.2g s", s)
	}
	return time.Duration(s * float64(time.Second)).Round(time.Second).String()
}
