package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/inspect"
)

func newInspect() *cobra.Command {
	c := &console{}
	var tensors bool
	cmd := &cobra.Command{
		Use:   "inspect PATH",
		Short: "Show what a checkpoint, adapter, model directory or run folder holds",
		Long: `Inspect recognises safetensors and PyTorch files (nothing in them is executed), LoRA adapters, diffusers directories,
folders of one component and run folders, and shows what they hold. A file that breaks its format's rules is an error that
says where.`,
		Example: "  resalign inspect lora.safetensors\n  resalign inspect models/stable-diffusion-v1-4 --json\n  resalign inspect unet.bin --tensors",
		Args:    argument("the path of a file or folder"),
		RunE: func(_ *cobra.Command, args []string) error {
			found, err := inspect.Path(args[0], tensors)
			if err != nil {
				return err
			}
			return c.result(found, func(w io.Writer) { writeFound(w, found) })
		},
	}
	addConsole(cmd, c)
	cmd.Flags().BoolVar(&tensors, "tensors", false, "list every tensor with its type and shape")
	return cmd
}
