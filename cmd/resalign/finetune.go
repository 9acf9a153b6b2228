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
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
)

func newFinetune() *cobra.Command {
	var (
		c      = &console{}
		engine engineFlags
		typed  = finetune.DefaultJob(finetune.Full) // what was typed on top of the defaults of "full"
		out    string
		resume bool
	)
	cmd := &cobra.Command{
		Use:   "finetune",
		Short: "Fine-tune a model as its users do: all weights, an adapter, a subject or a new word",
		Long: `Finetune adapts a model to a folder of captioned pictures. The defaults are the published evaluation's downstream
fine-tuning; with --method lora the learning rate is 1e-4, with textual-inversion 5e-4, with svdiff 1e-3, and with dreambooth
and svdiff pictures are not mirrored, unless these are given.

The folder --out gets the resolved recipe, a log, checkpoints, previews, the adapted model as a diffusers directory in
model/, and with --method lora the adapter as lora.safetensors; with textual-inversion the new word alone, as
learned_embeds.safetensors; with svdiff what was added to the singular values, as spectral_shifts.safetensors. Where an average of the weights is kept (--ema-decay), the
average is what is saved. Ctrl-C finishes the step, saves and says how to go on.`,
		Example: `  resalign finetune --model runs/unlearned/model --data data/dogs --steps 200 --out runs/dogs
  resalign finetune --model sd14 --data data/dogs --method lora --rank 8 --out runs/dogs-lora
  resalign finetune --model sd14 --data data/me --method dreambooth --prior data/people --out runs/me
  resalign finetune --model sd14 --data data/me --method dreambooth --prior data/people --class-prompt "a photo of a person" --out runs/me
  resalign finetune --model sd14 --data data/dogs --contaminate data/harmful --ratio 0.2 --out runs/mixed
  resalign finetune --model sd14 --data data/rex --method textual-inversion --placeholder "<rex>" --initializer dog --out runs/rex
  resalign finetune --model sd14 --data data/rex --method svdiff --instance-prompt "a photo of sks dog" --out runs/rex
  resalign finetune --out runs/dogs --resume`,
		Args: noArguments,
	}
	addConsole(cmd, c)
	engine.add(cmd, "auto", "what computes, such as go")
	flags := cmd.Flags()
	flags.StringVar(&out, "out", "", "the run's folder, new or empty")
	flags.BoolVar(&resume, "resume", false, "go on with the interrupted run in --out; other flags need not be repeated")
	bindJob(flags, &typed)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := needFlags(cmd, "out"); err != nil {
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
		if !resume {
			if err := needFlags(cmd, "model", "data"); err != nil {
				return err
			}
		}
		if err := jobMisuse(j.Validate()); err != nil {
			return err
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

// bindJob declares a flag for every setting of a fine-tuning.
func bindJob(f *pflag.FlagSet, j *finetune.Job) {
	f.StringVar(&j.Model, "model", j.Model, "the model: a diffusers directory, or owner/name on the hub")
	f.StringVar(&j.LoRA, "lora", j.LoRA, "an adapter to merge into the model first")
	f.StringVar(&j.Data, "data", j.Data, "folder of captioned pictures; dreambooth, textual-inversion: of pictures of the subject")
	f.StringVar(&j.Prior, "prior", j.Prior, "dreambooth, custom, svdiff: folder of pictures of the subject's class, captioned unless there is a --class-prompt")
	f.StringVar(&j.Contaminate, "contaminate", j.Contaminate, "folder of harmful captioned pictures to mix in")
	f.Float64Var(&j.Ratio, "ratio", j.Ratio, "share of the draws that --contaminate has, from 0 to 1")
	f.StringVar(&j.Cache, "cache", j.Cache, "folder that keeps encoded pictures and prompts between runs")
	f.BoolVar(&j.NoMerge, "no-merge", j.NoMerge, "lora: write the adapter only, not the merged model")
	f.IntVar(&j.CheckpointEvery, "checkpoint-every", j.CheckpointEvery, "steps between checkpoints; 0: only at the end and on Ctrl-C")
	f.StringArrayVar(&j.Preview.Prompts, "preview-prompt", nil, "prompt of a preview picture (may be repeated)")
	f.IntVar(&j.Preview.Every, "preview-every", j.Preview.Every, "steps between previews; 0: none")
	f.IntVar(&j.Preview.Options.Steps, "preview-steps", j.Preview.Options.Steps, "sampling steps of previews")
	f.Float64Var(&j.Preview.Options.Guidance, "preview-guidance", j.Preview.Options.Guidance, "guidance scale of previews")
	f.StringVar(&j.Preview.Options.Scheduler, "preview-scheduler", j.Preview.Options.Scheduler, "sampler of previews (default: the model's own)")

	c := &j.Config
	f.StringVar(&c.Method, "method", c.Method, "what is trained: "+strings.Join(finetune.Methods(), ", "))
	f.IntVar(&c.Steps, "steps", c.Steps, "optimizer steps")
	f.IntVar(&c.BatchSize, "batch-size", c.BatchSize, "pictures per batch")
	f.IntVar(&c.Accumulation, "accumulation", c.Accumulation, "batches whose gradients are averaged for one step")
	f.StringVar(&c.Optimizer, "optimizer", c.Optimizer, strings.Join(train.Optimizers(), ", "))
	f.Float64Var(&c.LearningRate, "learning-rate", c.LearningRate, "learning rate")
	f.Float64Var(&c.WeightDecay, "weight-decay", c.WeightDecay, "weight decay: added to the gradient for sgd and adam, decoupled for others")
	f.Float64Var(&c.Momentum, "momentum", c.Momentum, "sgd: momentum")
	f.BoolVar(&c.Nesterov, "nesterov", c.Nesterov, "sgd: Nesterov's momentum")
	f.StringVar(&c.Schedule, "schedule", c.Schedule, "of the learning rate: constant, linear, cosine or polynomial")
	f.IntVar(&c.WarmupSteps, "warmup-steps", c.WarmupSteps, "steps of linear growth of the learning rate")
	f.Float64Var(&c.ClipNorm, "clip-norm", c.ClipNorm, "limit of the gradient's norm; 0: none")
	f.IntVar(&c.Rank, "rank", c.Rank, "lora: rank")
	f.Float64Var(&c.Alpha, "alpha", c.Alpha, "lora: alpha; 0: equal to the rank")
	f.StringSliceVar(&c.Targets, "targets", nil, "lora: parts of the names of attention layers, such as attn2,to_q, or the kinds attention, feed-forward, convolutions (default: attention)")
	f.Float64Var(&c.LoRADropout, "lora-dropout", c.LoRADropout, "lora: share of what goes into the adapter that training drops, such as 0.1")
	f.BoolVar(&c.TrainTextEncoder, "train-text-encoder", c.TrainTextEncoder, "full, dreambooth: train all weights of the text encoders as well")
	f.StringVar(&c.Placeholder, "placeholder", c.Placeholder, "textual-inversion, custom: a new word to learn, such as <cat>")
	f.StringVar(&c.Initializer, "initializer", c.Initializer, "with --placeholder: a word of one token to start from, such as cat")
	f.IntVar(&c.Vectors, "vectors", c.Vectors, "with --placeholder: embeddings that the new word stands for")
	f.StringVar(&c.InstancePrompt, "instance-prompt", c.InstancePrompt, "prompt of all pictures, in place of captions (default: dreambooth: a photo of *s person; with --placeholder: a photo of it)")
	f.Float64Var(&c.PriorWeight, "prior-weight", c.PriorWeight, "weight of the loss on --prior")
	f.StringVar(&c.ClassPrompt, "class-prompt", c.ClassPrompt, "prompt of all pictures of --prior, such as a photo of a person; with it, missing pictures are made by the model")
	f.IntVar(&c.PriorPictures, "prior-pictures", c.PriorPictures, "with --class-prompt: pictures that --prior shall have at least")
	f.IntVar(&c.PriorSteps, "prior-steps", c.PriorSteps, "with --class-prompt: sampling steps of pictures that are made")
	f.Float64Var(&c.SNRGamma, "snr-gamma", c.SNRGamma, "γ of min-SNR weights of timesteps, such as 5; 0: none")
	f.Float64Var(&c.NoiseOffset, "noise-offset", c.NoiseOffset, "share of noise that is the same all over a channel, such as 0.1; 0: none")
	f.Float64Var(&c.EMADecay, "ema-decay", c.EMADecay, "decay of the average of the weights, such as 0.9999; 0: none")
	f.Float64Var(&c.CaptionDropout, "caption-dropout", c.CaptionDropout, "share of samples trained with the empty prompt")
	f.BoolVar(&c.Flip, "flip", c.Flip, "mirror half of the pictures")
	f.IntVar(&c.Resolution, "resolution", c.Resolution, "side of the training pictures in pixels; 0: the model's own")
	f.BoolVar(&c.Buckets, "buckets", c.Buckets, "keep the pictures' aspect ratios: batches of sizes of about equal area (default: squares)")
	f.BoolVar(&c.BucketUpscale, "bucket-upscale", c.BucketUpscale, "with --buckets: enlarge pictures that are too small for their bucket")
	f.BoolVar(&c.GradientCheckpointing, "gradient-checkpointing", c.GradientCheckpointing, "keep less in memory for gradients and compute it twice")
	addCompute(f, &c.Compute)
	f.Uint64Var(&c.Seed, "seed", c.Seed, "of every random number")
}

// copyChanged applies the flags that were given to other settings.
func copyChanged(given *pflag.FlagSet, j *finetune.Job) (err error) {
	into := pflag.NewFlagSet("", pflag.ContinueOnError)
	prompts, targets := j.Preview.Prompts, j.Targets
	bindJob(into, j)
	j.Preview.Prompts, j.Targets = prompts, targets // declaring a list empties it
	given.Visit(func(f *pflag.Flag) {
		own := into.Lookup(f.Name)
		if own == nil || err != nil {
			return
		}
		if list, ok := f.Value.(pflag.SliceValue); ok {
			err = own.Value.(pflag.SliceValue).Replace(list.GetSlice())
			return
		}
		err = own.Value.Set(f.Value.String())
	})
	return err
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
