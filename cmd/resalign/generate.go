package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/generate"
)

func newGenerate() *cobra.Command {
	var (
		c         = &console{}
		engine    engineFlags
		g         = generation{Options: generate.Defaults()}
		texts     []string
		list, out string
		share     string
	)
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Make pictures from prompts",
		Long: `Generate makes pictures called 00000-00.png (number of the prompt, number of its picture) and a metadata.jsonl with
their prompts and seeds, so that the folder can be used as a data set.

Every picture depends on its own seed alone: it is the same in whatever order, on whatever shard it is made. Pictures
that are there already are skipped, so an interrupted run is continued by the same command, and several machines may fill
one folder with --shard 0/4, --shard 1/4, … The folder remembers its settings and refuses others.

A list of prompts is a .csv or .jsonl file with a column prompt and, if wanted, seed and guidance, which win over the
flags; or a .txt file with one prompt per line.`,
		Example: `  resalign generate --model sd14 --prompt "a photo of a dog" --images 4 --out pictures
  resalign generate --model sd14 --lora lora.safetensors --prompts prompts.csv --scheduler ddim --out pictures
  resalign generate --model sd14 --prompts prompts.csv --shard 0/2 --out /shared/pictures`,
		Args: noArguments,
	}
	addConsole(cmd, c)
	engine.add(cmd, "auto", "what computes, such as go")
	f := cmd.Flags()
	f.StringVar(&g.Model, "model", "", "the model, a diffusers directory")
	f.StringVar(&g.LoRA, "lora", "", "an adapter to merge into the model first")
	f.StringArrayVar(&texts, "prompt", nil, "a prompt (may be repeated)")
	f.StringVar(&list, "prompts", "", "a list of prompts: .csv, .jsonl or .txt")
	f.IntVar(&g.Images, "images", 1, "pictures for each prompt")
	f.StringVar(&g.Negative, "negative-prompt", "", "what guidance steers away from")
	f.IntVar(&g.Steps, "steps", g.Steps, "sampling steps")
	f.Float64Var(&g.Guidance, "guidance", g.Guidance, "guidance scale; 1 or less: none")
	f.StringVar(&g.Scheduler, "scheduler", "", "sampler (default: the model's own)")
	f.IntVar(&g.Height, "height", 0, "pixels (default: the size the model was trained on)")
	f.IntVar(&g.Width, "width", 0, "pixels (default: the size the model was trained on)")
	f.Uint64Var(&g.Seed, "seed", 42, "seed of every picture")
	f.StringVar(&share, "shard", "0/1", "make only the pictures of share i of n, as in 0/4")
	f.StringVar(&out, "out", "", "folder for the pictures")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "model", "out"); err != nil {
			return err
		}
		var err error
		if g.Shard, err = parseShard(share); err != nil {
			return misuse(cmd, "%w", err)
		}
		if (len(texts) > 0) == (list != "") {
			return misuse(cmd, "give either --prompt or --prompts")
		}
		if g.Images < 1 || g.Images > maxImages {
			return misuse(cmd, "--images %d must lie between 1 and %d", g.Images, maxImages)
		}
		if g.Prompts, err = prompts(texts, list); err != nil {
			return err
		}
		e, closeEngine, err := engine.open(cmd)
		if err != nil {
			return err
		}
		defer closeEngine()
		finish, ctx, stop := watchInterrupts(cmd, c, "picture")
		defer stop()
		result, err := g.run(ctx, e, out, finish, c)
		c.endProgress()
		if err != nil {
			return stopped(err, append([]string{"resalign"}, os.Args[1:]...)...)
		}
		return c.result(result, func(w io.Writer) {
			fmt.Fprintf(w, "made %s in %s", count(result.Made, "picture"), out)
			if result.Skipped > 0 {
				fmt.Fprintf(w, "; %d were there already", result.Skipped)
			}
			fmt.Fprintln(w)
		})
	}
	return cmd
}
