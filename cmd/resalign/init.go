package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newInit() *cobra.Command {
	c := &console{}
	var preset, out string
	names := slices.Sorted(maps.Keys(presets()))
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a commented recipe to start from",
		Long: `Init writes one of the built-in recipes, with comments, for you to put your own paths in:

  sd14    ResAlign with the constants and the 15 simulations of the public recipe for Stable Diffusion 1.4
  quick   ResAlign on small pictures, few steps and two simulations, to see whether everything works
  ascent  the plain baseline: gradient ascent on harmful pictures, distillation on others
  esd     the bounded baseline: negative-guidance distillation, distillation on others

Methods that others have published, with their constants (docs/methods):

  esd-x, esd-u   negative-guidance distillation of cross-attention, or of the rest, from prompts alone
  uce, rece      closed-form edits of cross-attention, from prompts alone
  safegen        self-attention that sees harmful pictures coarsely, whatever the prompt
  advunlearn     adversarial training of the text encoder
  lcfdsd-ng/-lt  predictions for harmful pictures driven away from others, by noise or by latents
  salun          relabelling of harmful pictures by the most salient weights
  meta-unlearn   a first-order gradient against relearning

Ablations of sd14, each without one part of the method:

  resalign-first-order      no hypergradient
  resalign-one-simulation   no meta-learning
  resalign-data-only        meta-learning over data sets, not over ways of fine-tuning

An existing file is never overwritten.`,
		Example: "  resalign init\n  resalign init --preset quick --out quick.toml",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			content, ok := presets()[preset]
			if !ok {
				return misuse(cmd, "preset %q is not known; there are %s", preset, strings.Join(names, ", "))
			}
			if err := writeNew(out, content); err != nil {
				return err
			}
			v := struct {
				Preset string `json:"preset"`
				Recipe string `json:"recipe"`
			}{preset, out}
			return c.result(v, func(w io.Writer) {
				fmt.Fprintf(w, "wrote %s; put your model and folders in it, then run\n  %s\n", out, commandLine("resalign", "unlearn", out))
			})
		},
	}
	addConsole(cmd, c)
	cmd.Flags().StringVar(&preset, "preset", "sd14", "which recipe: "+strings.Join(names, ", "))
	cmd.Flags().StringVar(&out, "out", "recipe.toml", "the file to write")
	return cmd
}

// writeNew writes a file that must not exist.
func writeNew(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s exists already; move it away or choose another name with --out", path)
	case err != nil:
		return fmt.Errorf("the recipe cannot be written: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(fmt.Errorf("the recipe cannot be written: %w", err), os.Remove(path))
		}
	}()
	_, err = f.Write(content)
	return err
}
