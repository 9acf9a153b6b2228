package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/convert"
	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/weights"
)

// dtypeFlags are the types a model can be written in, by the names its users give them.
var dtypeFlags = map[string]weights.DType{"": 0, "keep": 0, "fp32": weights.F32, "fp16": weights.F16, "bf16": weights.BF16}

func newConvert() *cobra.Command {
	c := &console{}
	var o convert.Options
	var to, dtype, prediction string
	cmd := &cobra.Command{
		Use:   "convert IN OUT",
		Short: "Carry a model between diffusers directories, single files and UNet state dictionaries",
		Long: `Convert reads a diffusers directory (.safetensors or .bin, in shards, in half precision), a single file with the names
of the original code (.safetensors or .ckpt; nothing in it is executed) or the state dictionary of a UNet (.pt, .pth,
.safetensors), which it tells apart by content. It writes a directory, or a .safetensors file if OUT has that ending: a
single file, or with --to unet the UNet alone. Tensors keep their bits unless --dtype says otherwise.

A single file holds no configurations, tokenizers and scheduler. They are those of the published models of its family
(Stable Diffusion 1.x, 2.x, XL), whose architecture it must have, or those of the directory in --base. A UNet alone needs
--base for the rest of its model. OUT is never overwritten, and appears whole or not at all.`,
		Example: `  resalign convert v1-5-pruned-emaonly.safetensors sd15
  resalign convert v2-1_768-ema-pruned.ckpt sd21 --prediction v_prediction --dtype fp16
  resalign convert runs/unlearned/model unlearned.safetensors
  resalign convert esd-nudity.pt esd --base sd14`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return misuse(cmd, "give the model to read and the one to write, not %s", count(len(args), "argument"))
			}
			return nil
		},
	}
	addConsole(cmd, c)
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "what to write: diffusers, single-file or unet (default: as OUT is called)")
	f.StringVar(&o.Base, "base", "", "a diffusers directory that gives what IN does not hold")
	f.StringVar(&dtype, "dtype", "keep", "type of the numbers written: keep, fp32, fp16 or bf16")
	f.BoolVar(&o.EMA, "ema", false, "take the moving average of the UNet from a single file that holds it")
	f.StringVar(&prediction, "prediction", "", "what the UNet of a single file predicts, where the file does not say: epsilon or v_prediction")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var known bool
		if o.DType, known = dtypeFlags[dtype]; !known {
			return misuse(cmd, "--dtype is %q; use keep, fp32, fp16 or bf16", dtype)
		}
		switch o.To = convert.Kind(to); o.To {
		case "", convert.Diffusers, convert.SingleFile, convert.UNetFile:
		default:
			return misuse(cmd, "--to is %q; use %s, %s or %s", to, convert.Diffusers, convert.SingleFile, convert.UNetFile)
		}
		switch o.Prediction = diffusion.PredictionType(prediction); o.Prediction {
		case "", diffusion.Epsilon, diffusion.VPrediction:
		default:
			return misuse(cmd, "--prediction is %q; use %s or %s", prediction, diffusion.Epsilon, diffusion.VPrediction)
		}
		o.Progress = func(done, total int) { c.progress("writing tensors", done, total, "") }
		ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		result, err := convert.Convert(ctx, args[0], args[1], o)
		c.endProgress()
		if err != nil {
			return err
		}
		return c.result(result, func(w io.Writer) { writeConverted(w, args[1], result) })
	}
	return cmd
}

func writeConverted(w io.Writer, out string, r *convert.Result) {
	fmt.Fprintf(w, "wrote %s: %s of the family %s as %s, %s, %s bytes\n", printable(out), r.From, r.Family, r.To, count(r.Tensors, "tensor"), grouped(r.Bytes))
	for _, l := range r.LeftOut {
		fmt.Fprintf(w, "left out: %s (%s)\n", l.What, count(l.Tensors, "tensor"))
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "note: %s\n", printable(note))
	}
}
