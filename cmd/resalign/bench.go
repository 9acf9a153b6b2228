package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/bench"
	"github.com/resalign/resalign/train"
)

func newBench() *cobra.Command {
	c := &console{}
	var e engineFlags
	var what []string
	o := bench.Options{Preset: "small", Repeat: 5}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure the speed of the steps that training and sampling consist of",
		Long: `Bench times the UNet of a known model with random weights:

  forward    the denoising loss
  step       the loss, its gradient and an Adam step over all weights
  lora-step  the same over an adapter of rank 4 on q, k, v and out of every attention
  hvp        an exact Hessian–vector product over all weights
  lora-hvp   the same over the adapter
  outer      a ResAlign step as the public recipe does it, over the adapter: three simulations, 15 inner steps each on
             average, and six Hessian products each. Fewer are measured (--simulations, --inner-steps), and what all
             would take is printed beside it
  generate   30 DDIM steps with guidance

and prints the best and the median of several repetitions, and the largest memory of the process so far.`,
		Example: "  resalign bench\n  resalign bench --preset sd14-256 --what forward,lora-step --repeat 3 --json\n  resalign bench --preset sdxl --size 512 --what outer --repeat 1",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.What = what
			if err := o.Validate(); err != nil {
				return misuse(cmd, "%w", err)
			}
			eng, closeEngine, err := e.open(cmd)
			if err != nil {
				return err
			}
			defer closeEngine()
			o.OnStart = func(what string) { c.say(what + " …") }
			report, err := bench.Run(cmd.Context(), eng, o)
			if err != nil {
				return err
			}
			return c.result(report, func(w io.Writer) { writeBench(w, report) })
		},
	}
	addConsole(cmd, c)
	e.add(cmd, "auto", "what computes, such as go")
	cmd.Flags().StringVar(&o.Preset, "preset", o.Preset, "the UNet: "+strings.Join(bench.Presets(), ", "))
	cmd.Flags().StringSliceVar(&what, "what", []string{bench.Forward, bench.Step, bench.HessianProduct}, "what to measure: "+strings.Join(bench.Works(), ","))
	cmd.Flags().IntVar(&o.Repeat, "repeat", o.Repeat, "repetitions, after one that does not count")
	cmd.Flags().IntVar(&o.Batch, "batch", 0, "latents per batch (0: the preset's)")
	cmd.Flags().IntVar(&o.Size, "size", 0, "side of the pictures in pixels (0: the preset's)")
	addCompute(cmd.Flags(), (*string)(&o.Compute))
	cmd.Flags().BoolVar(&o.GradientCheckpointing, "gradient-checkpointing", false, "compute derivatives with less memory and more work")
	cmd.Flags().IntVar(&o.Simulations, "simulations", 1, "outer: simulations")
	cmd.Flags().IntVar(&o.InnerSteps, "inner-steps", 2, "outer: steps of each simulation")
	return cmd
}

func writeBench(w io.Writer, r *bench.Report) {
	fmt.Fprintf(w, "%s: %s parameters, latents [%d, 4, %d, %d], %.4g GFLOP a pass, %s, %s, %s\n", r.Preset, grouped(int64(r.Parameters)), r.Batch,
		r.Latent, r.Latent, r.ForwardFLOPs/1e9, r.Compute, r.Engine, count(r.Threads, "thread"))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tbest s\tmedian s\tGFLOP/s\tpeak memory")
	for _, m := range r.Measurements {
		fmt.Fprintf(t, "%s\t%.3f\t%.3f\t%.1f\t%s\n", m.What, m.Best, m.Median, m.FLOPs/m.Best/1e9, train.FormatBytes(m.PeakBytes))
	}
	_ = t.Flush() // a closed output does not change what was measured
	for _, m := range r.Measurements {
		if o := m.Outer; o != nil {
			fmt.Fprintf(w, "outer measured with %s of %s: direct %.3f s, inner step %.3f s, implicit %.3f s, update %.3f s\n",
				count(o.Simulations, "simulation"), count(o.InnerSteps, "inner step"), o.Direct, o.InnerStep, o.Implicit, o.Update)
			fmt.Fprintf(w, "outer as in the public recipe, projected: %.3f s\n", o.Projected)
		}
	}
}
