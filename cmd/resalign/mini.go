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

func newMini() *cobra.Command {
	var (
		c         = &console{}
		computing engineFlags
		out       string
		t         = experiment.PublishedTraining()
	)
	cmd := &cobra.Command{
		Use:   "mini",
		Short: "Make the built-in miniature from nothing: drawings, base model, detector",
		Long: `Mini draws the miniature world and trains what the built-in experiment begins with: an ordinary diffusers directory in
model/ and a detector in detector.safetensors. The ones that this program carries were made by this command with its
defaults; "resalign demo" uses those and needs no training of its own. It takes about fifteen minutes on two cores, and
goes on where it stopped when it is called again.`,
		Example: "  resalign mini --out miniature",
		Args:    noArguments,
	}
	addConsole(cmd, c)
	computing.add(cmd, "auto", "what computes, such as go")
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "folder for everything, new or of an interrupted call")
	flags.Uint64Var(&t.Seed, "seed", t.Seed, "of every random number")
	flags.IntVar(&t.Autoencoder, "autoencoder-steps", t.Autoencoder, "training steps of the autoencoder")
	flags.IntVar(&t.Detector, "detector-steps", t.Detector, "training steps of the detector")
	flags.IntVar(&t.UNet, "steps", t.UNet, "pre-training steps of the UNet")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "out"); err != nil {
			return err
		}
		_, _, err := experimentRun(cmd, c, computing, func(ctx context.Context, e *engine.Engine, h experiment.Hooks) (struct{}, error) {
			return struct{}{}, experiment.TrainMiniature(ctx, e, out, t, h)
		})
		if err != nil {
			return err
		}
		found := struct {
			Model    string `json:"model"`
			Detector string `json:"detector"`
		}{filepath.Join(out, "model"), filepath.Join(out, "detector.safetensors")}
		return c.result(found, func(w io.Writer) { fmt.Fprintf(w, "model     %s\ndetector  %s\n", found.Model, found.Detector) })
	}
	return cmd
}
