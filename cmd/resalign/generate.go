package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/generate"
)

func newGenerate() *cobra.Command {
	var (
		c         = &console{}
		engine    engineFlags
		l         = generate.List{Options: generate.Defaults()}
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
	f.StringVar(&l.Model, "model", "", "the model: a diffusers directory, or owner/name on the hub")
	f.StringVar(&l.LoRA, "lora", "", "an adapter to merge into the model first: a file, or a folder in PEFT's layout")
	f.StringArrayVar(&l.Embeddings, "embedding", nil, "a word that textual inversion learnt, as a file (may be repeated)")
	f.StringArrayVar(&texts, "prompt", nil, "a prompt (may be repeated)")
	f.StringVar(&list, "prompts", "", "a list of prompts: .csv, .jsonl or .txt")
	f.IntVar(&l.Images, "images", 1, "pictures for each prompt")
	f.StringVar(&l.Negative, "negative-prompt", "", "what guidance steers away from")
	f.IntVar(&l.Steps, "steps", l.Steps, "sampling steps")
	f.Float64Var(&l.Guidance, "guidance", l.Guidance, "guidance scale; 1 or less: none")
	f.StringVar(&l.Scheduler, "scheduler", "", "sampler (default: the model's own)")
	f.IntVar(&l.Height, "height", 0, "pixels (default: the size the model was trained on)")
	f.IntVar(&l.Width, "width", 0, "pixels (default: the size the model was trained on)")
	f.IntVar(&l.Batch, "batch", 0, "pictures that go through the model at once (0: one)")
	addCompute(f, &l.Compute)
	f.BoolVar(&l.VAESlicing, "vae-slicing", false, "decode the pictures of a batch one at a time, which saves memory")
	f.BoolVar(&l.VAETiling, "vae-tiling", false, "decode large pictures by overlapping tiles, which bounds memory and changes them a little")
	f.IntVar(&l.VAETileSize, "vae-tile-size", 0, "side of a tile in pixels (0: the size the VAE was trained on)")
	f.Uint64Var(&l.Seed, "seed", 42, "seed of every picture")
	f.StringVar(&share, "shard", "0/1", "make only the pictures of share i of n, as in 0/4")
	f.StringVar(&out, "out", "", "folder for the pictures")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "model", "out"); err != nil {
			return err
		}
		if (len(texts) > 0) == (list != "") {
			return misuse(cmd, "give either --prompt or --prompts")
		}
		var err error
		if l.Shard, err = generate.ParseShard(share); err != nil {
			return settingMisuse(cmd, err)
		}
		if l.Prompts, err = prompts(texts, list); err != nil {
			return err
		}
		if err := l.Validate(); err != nil {
			return settingMisuse(cmd, err)
		}
		if l.Model, err = c.findModel(cmd.Context(), l.Model); err != nil {
			return err
		}
		e, closeEngine, err := engine.open(cmd)
		if err != nil {
			return err
		}
		defer closeEngine()
		finish, ctx, stop := watchInterrupts(cmd, c, "picture")
		defer stop()
		filled, err := generate.Fill(ctx, e, l, out, generate.FillHooks{
			Finish: finish, Warn: c.warn,
			OnPicture: func(done, total int, prompt string) { c.progress("making pictures", done, total, cut(prompt, 40)) },
		})
		c.endProgress()
		if err != nil {
			return stopped(err, append([]string{"resalign"}, os.Args[1:]...)...)
		}
		result := generated{Out: out, Made: filled.Made, Skipped: filled.Skipped}
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

// generated is the result of the command as JSON.
type generated struct {
	Out     string `json:"out"`
	Made    int    `json:"made"`
	Skipped int    `json:"skipped"`
}

// prompts are those of the command line or of a list.
func prompts(texts []string, list string) ([]data.Prompt, error) {
	if list != "" {
		return data.ReadPrompts(list)
	}
	var out []data.Prompt
	for i, text := range texts {
		out = append(out, data.Prompt{Text: text, Row: i + 1})
	}
	return out, nil
}

// settingMisuse names the flag of a setting that cannot be used.
func settingMisuse(cmd *cobra.Command, err error) error {
	if setting := new(generate.SettingError); errors.As(err, &setting) {
		return misuse(cmd, "--%s %s", setting.Key, setting.Message)
	}
	return err
}
