package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/weights"
)

func newLoRA() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lora",
		Short: "Convert a LoRA adapter, or merge it into its model",
		Long: `LoRA adapters are read in the naming of diffusers, PEFT and kohya, for the UNet and the text encoders, for linear layers
and convolutions. The format of a file is found by its names.`,
		Example: "  resalign lora convert lora.safetensors kohya.safetensors --to kohya\n  resalign lora merge --model sd14 --lora lora.safetensors --out merged --json",
		Args:    commandsOnly,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLoRAConvert(), newLoRAMerge())
	return cmd
}

// convertedLoRA is the result of `lora convert`.
type convertedLoRA struct {
	Out    string              `json:"out"`
	From   weights.LoRADialect `json:"from"`
	To     weights.LoRADialect `json:"to"`
	Layers int                 `json:"layers"`
	DType  string              `json:"dtype"`
}

func newLoRAConvert() *cobra.Command {
	c := &console{}
	var to, model string
	cmd := &cobra.Command{
		Use:   "convert IN OUT",
		Short: "Write a LoRA adapter in another naming",
		Long: `Convert writes the adapter IN as OUT, in its own data type:

  diffusers  one safetensors file; alpha is multiplied into the up factors, as readers take the scale for one
  kohya      one safetensors file, with alpha; for SDXL the UNet's layers have their original names
  peft       a folder, with unet and text_encoder below it as the adapter needs: adapter_model.safetensors and
             adapter_config.json, which holds ranks and alphas

IN is a file, or a folder in PEFT's layout. With --model every layer is compared with the model's. Kohya's names cannot be
read without it: they write dots as underscores, and only the model tells which is which.`,
		Example: "  resalign lora convert lora.safetensors kohya.safetensors --to kohya\n  resalign lora convert kohya.safetensors lora.safetensors --to diffusers --model sd14",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return misuse(cmd, "two paths are needed, of the adapter and of what to write, not %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "to"); err != nil {
				return err
			}
			in, out, dialect := args[0], args[1], weights.LoRADialect(to)
			if !slices.Contains([]weights.LoRADialect{weights.DiffusersLoRA, weights.PEFTLoRA, weights.KohyaLoRA}, dialect) {
				return misuse(cmd, "--to is %q; use diffusers, peft or kohya", to)
			}
			adapter, err := weights.ReadLoRA(in)
			if err != nil {
				return err
			}
			if adapter.Dialect == weights.KohyaLoRA && model == "" {
				return misuse(cmd, "%s is in kohya's naming, which only the model explains; give --model", in)
			}
			if model != "" {
				layers, err := sd.AdaptableLayers(model)
				if err != nil {
					return err
				}
				if adapter, err = adapter.Resolve(layers); err != nil {
					return fmt.Errorf("%s: %w", in, err)
				}
			}
			dtype := adapter.DType
			if dtype == weights.F64 { // factors are computed with in float32
				dtype = weights.F32
			}
			if err := writeLoRA(out, adapter, dialect, dtype); err != nil {
				return err
			}
			result := convertedLoRA{Out: out, From: adapter.Dialect, To: dialect, Layers: len(adapter.Layers), DType: dtype.String()}
			return c.result(result, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s, %s, from %s to %s\n", printable(out), count(result.Layers, "layer"), result.DType, result.From, result.To)
			})
		},
	}
	addConsole(cmd, c)
	cmd.Flags().StringVar(&to, "to", "", "the naming to write: diffusers, peft or kohya")
	cmd.Flags().StringVar(&model, "model", "", "the diffusers directory that the adapter belongs to")
	return cmd
}

// writeLoRA writes an adapter to a place where nothing is yet.
func writeLoRA(out string, adapter *weights.LoRA, dialect weights.LoRADialect, dtype weights.DType) error {
	if dialect == weights.PEFTLoRA {
		return weights.WritePEFTLoRA(out, adapter, dtype)
	}
	if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("%s exists already; remove it, or choose another name", out)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("output: %w", err)
	}
	if dialect == weights.KohyaLoRA {
		return weights.WriteKohyaLoRA(out, adapter, dtype, nil)
	}
	return weights.WriteLoRA(out, adapter, dtype, nil)
}

// mergedLoRA is the result of `lora merge`.
type mergedLoRA struct {
	Out      string         `json:"out"`
	Strength float64        `json:"strength"`
	Layers   map[string]int `json:"layers"` // by component
}

func newLoRAMerge() *cobra.Command {
	c := &console{}
	var model, lora, out string
	var strength float64
	cmd := &cobra.Command{
		Use:   "merge",
		Short: "Write a model with a LoRA adapter merged into its weights",
		Long: `Merge writes the model to a new folder, with strength·(alpha/rank)·up·down added to the weights that the adapter
changes, in the UNet and in the text encoders. Weights keep their data types; everything else is copied.`,
		Example: "  resalign lora merge --model sd14 --lora lora.safetensors --out merged\n  resalign lora merge --model sdxl --lora style.safetensors --strength 0.7 --out styled",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "model", "lora", "out"); err != nil {
				return err
			}
			if math.IsNaN(strength) || math.IsInf(strength, 0) {
				return misuse(cmd, "--strength %v must be a finite number, such as 1", strength)
			}
			adapter, err := weights.ReadLoRA(lora)
			if err != nil {
				return err
			}
			layers, err := sd.MergeLoRA(model, adapter, strength, out)
			if err != nil {
				return err
			}
			return c.result(mergedLoRA{out, strength, layers}, func(w io.Writer) {
				fmt.Fprintf(w, "model  %s\n", printable(out))
				for _, component := range slices.Sorted(maps.Keys(layers)) {
					fmt.Fprintf(w, "  %s: %s changed\n", component, count(layers[component], "layer"))
				}
			})
		},
	}
	addConsole(cmd, c)
	f := cmd.Flags()
	f.StringVar(&model, "model", "", "the diffusers directory of the model")
	f.StringVar(&lora, "lora", "", "the adapter: a file, or a folder in PEFT's layout")
	f.Float64Var(&strength, "strength", 1, "by which the adapter's change is multiplied")
	f.StringVar(&out, "out", "", "the folder to write, new or empty")
	return cmd
}
