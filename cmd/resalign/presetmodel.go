package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/sd"
)

func newModel() *cobra.Command {
	model := &cobra.Command{
		Use:     "model",
		Short:   "Make models of known architectures",
		Long:    `Model makes models from scratch: architectures of known models with random weights, for tests, measurements and training.`,
		Example: "  resalign model new --preset tiny --out tiny-model",
		Args:    commandsOnly,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	addConsole(model, &console{})
	c := &console{}
	var preset, out string
	var seed uint64
	var configOnly bool
	create := &cobra.Command{
		Use:   "new",
		Short: "Write a model with random weights as a diffusers directory",
		Long: "New writes a model of a known architecture with random weights, CLIP's tokenizer and the published scheduler. It has the\n" +
			"size and speed of the real one, and can draw nothing.\n\nPresets:\n" + presetList(),
		Example: "  resalign model new --preset tiny --out tiny-model\n  resalign model new --preset sd15 --seed 1 --out sd15-random",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "preset", "out"); err != nil {
				return err
			}
			p, err := sd.FindPreset(preset)
			if err != nil {
				return misuse(cmd, "%w", err)
			}
			if err := p.Write(out, seed, configOnly); err != nil {
				return err
			}
			made := madeModel{Preset: p.Name, Source: p.Source, Model: out, Seed: seed}
			return c.result(made, func(w io.Writer) { fmt.Fprintf(w, "model  %s\n", out) })
		},
	}
	addConsole(create, c)
	create.Flags().StringVar(&preset, "preset", "", "the architecture: "+strings.Join(sd.PresetNames(), ", "))
	create.Flags().StringVar(&out, "out", "", "folder for the model, new or empty")
	create.Flags().Uint64Var(&seed, "seed", 42, "of the random weights")
	create.Flags().BoolVar(&configOnly, "config-only", false, "write no weights")
	model.AddCommand(create)
	return model
}

// madeModel is the result of the command as JSON.
type madeModel struct {
	Preset string `json:"preset"`
	Source string `json:"source"`
	Model  string `json:"model"`
	Seed   uint64 `json:"seed"`
}

func presetList() string {
	var b strings.Builder
	for _, p := range sd.Presets() {
		fmt.Fprintf(&b, "  %-13s %s\n", p.Name, p.Source)
	}
	return b.String()
}
