package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/unlearn"
)

func newUnlearn() *cobra.Command {
	var (
		c          = &console{}
		engine     engineFlags
		set        []string
		out, model string
		format     string
		resume     bool
	)
	cmd := &cobra.Command{
		Use:   "unlearn RECIPE",
		Short: "Make a model forget a concept as a recipe says",
		Long: `Unlearn carries out a recipe: ResAlign, which simulates fine-tuning and unlearns through it, or one of the plain
baselines. The run's folder gets the resolved recipe, a log, checkpoints, previews, the unlearned model as a diffusers
directory and, where an adapter was trained, its LoRA file (or PEFT's folder, see --lora-format).

Flags win over the recipe, and the recipe over its preset. Paths in a recipe are relative to the working directory.
Ctrl-C finishes the step, saves and says how to go on; what follows is the same as without the break, to the last bit.
Every key is explained in docs/recipes.md; "resalign init" writes a recipe to start from.`,
		Example: `  resalign unlearn recipe.toml
  resalign unlearn recipe.toml --set outer.steps=20 --set objective.lambda=0.5 --out runs/short
  resalign unlearn recipe.toml --resume`,
		Args: argument("the recipe, a TOML file,"),
	}
	addConsole(cmd, c)
	engine.add(cmd, "", "what computes, such as go (default: the recipe's)")
	flags := cmd.Flags()
	flags.StringArrayVar(&set, "set", nil, "set a key of the recipe, as in outer.steps=20 (may be repeated)")
	flags.StringVar(&out, "out", "", "the run's folder (default: the recipe's)")
	flags.StringVar(&model, "model", "", "the model: a diffusers directory, or owner/name on the hub (default: the recipe's)")
	flags.StringVar(&format, "lora-format", "", "how an adapter is saved: "+strings.Join(finetune.LoRAFormats(), ", ")+" (default: the recipe's)")
	flags.BoolVar(&resume, "resume", false, "go on with an interrupted run")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		own := []setting{{"out", out}, {"model", model}, {"lora_format", format}, {"engine", engine.spec}}
		if err := finetune.CheckLoRAFormat(format); err != nil {
			return misuse(cmd, "--lora-format %w", err)
		}
		assignments := assign(set, own...)
		r := unlearn.Defaults()
		if err := recipe.Load(args[0], recipe.Layers{Presets: presets(), Assignments: assignments}, &r); err != nil {
			return err
		}
		again := unlearnCommand(args[0], set, own, engine)
		find := c.findModel
		if resume {
			find = func(ctx context.Context, name string) (string, error) { return c.resumedModel(ctx, name, r.Out) }
		}
		var err error
		if r.Model, err = find(cmd.Context(), r.Model); err != nil {
			return err
		}
		engine.spec = r.Engine
		e, closeEngine, err := engine.open(cmd)
		if err != nil {
			return err
		}
		defer closeEngine()
		finish, ctx, stop := watchInterrupts(cmd, c, "step")
		defer stop()
		result, err := unlearn.Run(ctx, e, r, unlearn.Hooks{
			Resume: resume, Finish: finish, Warn: c.warn, Program: programVersion(), Command: os.Args,
			OnPrepare: func(done, total int) { c.progress("reading pictures", done, total, "") },
			OnEvent: func(event train.Event) {
				if notes, ok := event.Fields["notes"].([]string); ok {
					for _, note := range notes {
						c.warn(fmt.Sprintf("step %d: %s", event.Step, note))
					}
				}
				c.progress("unlearning", event.Step, r.TotalSteps(), eventNote(event))
			},
		})
		c.endProgress()
		if err != nil {
			if train.IsRun(r.Out) {
				again = append(again, "--resume")
			}
			return stopped(err, again...)
		}
		return c.result(unlearned{Out: r.Out, Model: result.Model, LoRA: result.LoRA, Steps: result.Steps}, func(w io.Writer) {
			fmt.Fprintf(w, "model  %s\n", result.Model)
			if result.LoRA != "" {
				fmt.Fprintf(w, "LoRA   %s\n", result.LoRA)
			}
			fmt.Fprintf(w, "log    %s\n", filepath.Join(r.Out, "events.jsonl"))
		})
	}
	return cmd
}

// unlearned is the result of the command as JSON.
type unlearned struct {
	Out   string `json:"out"`
	Model string `json:"model"`
	LoRA  string `json:"lora,omitempty"`
	Steps int    `json:"steps"`
}

// setting is a key of a recipe that has a flag of its own; an empty value was not given.
type setting struct{ key, value string }

// flag is the setting's flag.
func (s setting) flag() string { return "--" + strings.ReplaceAll(s.key, "_", "-") }

// assign adds the settings that were given to those of --set.
func assign(set []string, settings ...setting) []string {
	out := slices.Clone(set)
	for _, s := range settings {
		if s.value != "" {
			out = append(out, s.key+"="+s.value)
		}
	}
	return out
}

// unlearnCommand is the command line of a run; with --resume it continues it.
func unlearnCommand(path string, set []string, settings []setting, e engineFlags) []string {
	words := []string{"resalign", "unlearn", path}
	for _, s := range set {
		words = append(words, "--set", s)
	}
	for _, s := range settings {
		if s.value != "" {
			words = append(words, s.flag(), s.value)
		}
	}
	if e.threads != 0 {
		words = append(words, "--threads", fmt.Sprint(e.threads))
	}
	return words
}

// eventNote shows the losses of a step beside the progress bar.
func eventNote(e train.Event) string {
	var parts []string
	for _, field := range []struct{ key, label string }{
		{"loss", "loss"},
		{"harmful_loss", "harmful"},
		{"harmful_loss_after", "after fine-tuning"},
		{"retain_loss", "retain"},
		{"erased_error", "erased, off by"},
		{"preserved_error", "preserved, off by"},
	} {
		if x, ok := e.Number(field.key); ok {
			parts = append(parts, fmt.Sprintf("%s %.4g", field.label, x))
		}
	}
	return strings.Join(parts, ", ")
}
