package main

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/train"
)

// bindJob declares a flag for every setting of a fine-tuning.
func bindJob(f *pflag.FlagSet, j *finetune.Job) {
	f.StringVar(&j.Model, "model", j.Model, "the model: a diffusers directory, or owner/name on the hub")
	f.StringVar(&j.LoRA, "lora", j.LoRA, "an adapter to merge into the model first: a file, or a folder in PEFT's layout")
	f.StringVar(&j.Data, "data", j.Data, "folder of captioned pictures; dreambooth, textual-inversion: of pictures of the subject")
	f.StringVar(&j.Prior, "prior", j.Prior, "dreambooth, custom, svdiff: folder of pictures of the subject's class, captioned unless there is a --class-prompt")
	f.StringVar(&j.Contaminate, "contaminate", j.Contaminate, "folder of harmful captioned pictures to mix in")
	f.Float64Var(&j.Ratio, "ratio", j.Ratio, "share of the draws that --contaminate has, from 0 to 1")
	f.StringVar(&j.Cache, "cache", j.Cache, "folder that keeps encoded pictures and prompts between runs")
	f.BoolVar(&j.NoMerge, "no-merge", j.NoMerge, "lora: write the adapter only, not the merged model")
	f.StringVar(&j.LoRAFormat, "lora-format", j.LoRAFormat, "lora: how the adapter is saved: "+strings.Join(finetune.LoRAFormats(), ", "))
	f.IntVar(&j.CheckpointEvery, "checkpoint-every", j.CheckpointEvery, "steps between checkpoints; 0: only at the end and on Ctrl-C")
	f.StringArrayVar(&j.Preview.Prompts, "preview-prompt", nil, "prompt of a preview picture (may be repeated)")
	f.IntVar(&j.Preview.Every, "preview-every", j.Preview.Every, "steps between previews; 0: none")
	f.IntVar(&j.Preview.Options.Steps, "preview-steps", j.Preview.Options.Steps, "sampling steps of previews")
	f.Float64Var(&j.Preview.Options.Guidance, "preview-guidance", j.Preview.Options.Guidance, "guidance scale of previews")
	f.StringVar(&j.Preview.Options.Scheduler, "preview-scheduler", j.Preview.Options.Scheduler, "sampler of previews (default: the model's own)")

	c := &j.Config
	bindTuning(f, c)
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
	f.BoolVar(&c.Buckets, "buckets", c.Buckets, "keep the pictures' aspect ratios: batches of sizes of about equal area (default: squares)")
	f.BoolVar(&c.BucketUpscale, "bucket-upscale", c.BucketUpscale, "with --buckets: enlarge pictures that are too small for their bucket")
	addCompute(f, &c.Compute)
	f.Uint64Var(&c.Seed, "seed", c.Seed, "of every random number")
}

// bindTuning declares the flags of a fine-tuning that every command has which does one.
func bindTuning(f *pflag.FlagSet, c *finetune.Config) {
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
	f.BoolVar(&c.Flip, "flip", c.Flip, "mirror half of the pictures")
	f.IntVar(&c.Resolution, "resolution", c.Resolution, "side of the training pictures in pixels; 0: the model's own")
	f.BoolVar(&c.GradientCheckpointing, "gradient-checkpointing", c.GradientCheckpointing, "keep less in memory for gradients and compute it twice")
	f.IntVar(&c.VAETileSize, "vae-tile-size", c.VAETileSize, "encode larger pictures by overlapping tiles of this side in pixels, which bounds memory and changes latents a little; 0: whole")
}

// copyChanged applies the flags that were given to other settings.
func copyChanged(given *pflag.FlagSet, j *finetune.Job) error {
	into := pflag.NewFlagSet("", pflag.ContinueOnError)
	prompts, targets := j.Preview.Prompts, j.Targets
	bindJob(into, j)
	j.Preview.Prompts, j.Targets = prompts, targets // declaring a list empties it
	return copyFlags(given, into)
}

// copyFlags sets the flags that were given in another set as well, as far as it has them.
func copyFlags(given, into *pflag.FlagSet) (err error) {
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
