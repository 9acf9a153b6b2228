package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/plan"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
)

func newFinetune() *cobra.Command {
	var (
		c        = &console{}
		engine   engineFlags
		typed    = finetune.DefaultJob(finetune.Full) // what was typed on top of the defaults of "full"
		out      string
		resume   bool
		planOnly bool
		on       plannedMachine
	)
	cmd := &cobra.Command{
		Use:   "finetune",
		Short: "Fine-tune a model as its users do: all weights, an adapter, a subject or a new word",
		Long: `Finetune adapts a model to a folder of captioned pictures. The defaults are the published evaluation's downstream
fine-tuning; with --method lora the learning rate is 1e-4, with textual-inversion 5e-4, with svdiff 1e-3, and with dreambooth
and svdiff pictures are not mirrored, unless these are given.

The folder --out gets the resolved recipe, a log, checkpoints, previews, the adapted model as a diffusers directory in
model/, and with --method lora the adapter as lora.safetensors, or in PEFT's layout in lora/ (--lora-format); with textual-inversion the new word alone, as
learned_embeds.safetensors; with svdiff what was added to the singular values, as spectral_shifts.safetensors. Where an average of the weights is kept (--ema-decay), the
average is what is saved. Ctrl-C finishes the step, saves and says how to go on.

With --plan nothing is trained: it says what the same command without it will need, in memory and time, as "resalign plan"
does for recipes.`,
		Example: `  resalign finetune --model runs/unlearned/model --data data/dogs --steps 200 --out runs/dogs
  resalign finetune --model sd14 --data data/dogs --method lora --rank 8 --out runs/dogs-lora
  resalign finetune --model sd14 --data data/me --method dreambooth --prior data/people --out runs/me
  resalign finetune --model sd14 --data data/me --method dreambooth --prior data/people --class-prompt "a photo of a person" --out runs/me
  resalign finetune --model sd14 --data data/dogs --contaminate data/harmful --ratio 0.2 --out runs/mixed
  resalign finetune --model sd14 --data data/rex --method textual-inversion --placeholder "<rex>" --initializer dog --out runs/rex
  resalign finetune --model sd14 --data data/rex --method svdiff --instance-prompt "a photo of sks dog" --out runs/rex
  resalign finetune --model sd14 --data data/dogs --method lora --plan
  resalign finetune --out runs/dogs --resume`,
		Args: noArguments,
	}
	addConsole(cmd, c)
	engine.add(cmd, "auto", "what computes, such as go")
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "the run's folder, new or empty")
	flags.BoolVar(&resume, "resume", false, "go on with the interrupted run in --out; other flags need not be repeated")
	flags.BoolVar(&planOnly, "plan", false, "say what this needs, in memory and time, and do nothing")
	on.add(cmd, "with --plan: ")
	bindJob(flags, &typed)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !planOnly && (on.preset != "" || on.memory != "" || on.estimate || on.timed) {
			return misuse(cmd, "--preset, --memory, --estimate and --timed go with --plan")
		}
		needed := []string{"model", "data", "out"}
		switch {
		case resume:
			needed = []string{"out"}
		case planOnly:
			needed = nil // see below: a preset may name the model
		}
		if err := needFlags(cmd, needed...); err != nil {
			return err
		}
		j := finetune.DefaultJob(typed.Method)
		if resume {
			stored, err := finetune.ReadJob(out)
			if err != nil {
				return err
			}
			j = stored
		}
		if err := copyChanged(flags, &j); err != nil {
			return err
		}
		if j.Model == "" && on.preset != "" {
			j.Model = on.preset
		} else if on.preset != "" {
			return misuse(cmd, "--model and --preset both name the model; give one")
		}
		if j.Model == "" || j.Data == "" {
			if err := needFlags(cmd, "model", "data"); err != nil {
				return err
			}
		}
		if err := jobMisuse(j.Validate()); err != nil {
			return err
		}
		if planOnly {
			on.threads = engine.threads
			o := plan.Options{Job: &j}
			if err := on.options(cmd, &o); err != nil {
				return err
			}
			return c.plan(cmd, o, on, j.Model, engine.spec)
		}
		var err error
		if j.Model, err = c.findModel(cmd.Context(), j.Model); err != nil {
			return err
		}
		e, closeEngine, err := engine.open(cmd)
		if err != nil {
			return err
		}
		defer closeEngine()
		finish, ctx, stop := watchInterrupts(cmd, c, "step")
		defer stop()
		result, err := finetune.RunJob(ctx, e, out, j, finetune.JobHooks{
			Resume: resume, Finish: finish, Warn: c.warnOnce(), Program: programVersion(), Command: os.Args,
			OnPrepare: func(done, total int) { c.progress("reading pictures", done, total, "") },
			OnWork:    func(what string, done, total int) { c.progress(what, done, total, "") },
			OnBuckets: func(sizes []data.BucketCount) { c.say(bucketNote(sizes)) },
			OnEvent:   func(event train.Event) { c.progress("fine-tuning", event.Step, j.Steps, eventNote(event)) },
		})
		c.endProgress()
		if err != nil {
			return stopped(err, jobCommand(flags, out, train.IsRun(out))...)
		}
		return c.result(tuned{Out: out, Model: result.Model, LoRA: result.LoRA, Embedding: result.Embedding, Shifts: result.Shifts, Log: result.Log, Steps: result.Steps}, func(w io.Writer) {
			if result.Model != "" {
				fmt.Fprintf(w, "model  %s\n", result.Model)
			}
			if result.LoRA != "" {
				fmt.Fprintf(w, "LoRA   %s\n", result.LoRA)
			}
			if result.Embedding != "" {
				fmt.Fprintf(w, "word   %s\n", result.Embedding)
			}
			if result.Shifts != "" {
				fmt.Fprintf(w, "shifts %s\n", result.Shifts)
			}
			fmt.Fprintf(w, "log    %s\n", result.Log)
		})
	}
	return cmd
}

// tuned is the result of the command as JSON.
type tuned struct {
	Out   string `json:"out"`
	Model string `json:"model,omitempty"`
	LoRA  string `json:"lora,omitempty"`

	Embedding string `json:"embedding,omitempty"`
	Shifts    string `json:"shifts,omitempty"`

	Log   string `json:"log"`
	Steps int    `json:"steps"`
}

// bucketNote tells how many pictures have each size.
func bucketNote(sizes []data.BucketCount) string {
	var parts []string
	for _, s := range sizes {
		parts = append(parts, fmt.Sprintf("%v: %s", s.Size, count(s.Pictures, "picture")))
	}
	return "buckets  " + strings.Join(parts, ", ")
}

// jobMisuse names the flags of the settings that cannot be used.
func jobMisuse(problems []recipe.Problem) error {
	var parts []string
	for _, p := range problems {
		parts = append(parts, "--"+strings.NewReplacer("_", "-", ".", "-").Replace(p.Key)+": "+p.Message)
	}
	if len(parts) == 0 {
		return nil
	}
	return usageError{errors.New(strings.Join(parts, "; "))}
}

// jobCommand is the command line that takes the work up again: the run's folder says the rest, once there is one.
func jobCommand(given *pflag.FlagSet, out string, started bool) []string {
	words := []string{"resalign", "finetune"}
	if started {
		return append(words, "--out", out, "--resume")
	}
	given.Visit(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, value := range list.GetSlice() {
				words = append(words, "--"+f.Name, value)
			}
			return
		}
		if f.Value.Type() == "bool" {
			words = append(words, "--"+f.Name+"="+strings.TrimSpace(f.Value.String()))
			return
		}
		words = append(words, "--"+f.Name, f.Value.String())
	})
	return words
}
