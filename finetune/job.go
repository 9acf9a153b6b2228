package finetune

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/train"
	"github.com/resalign/resalign/weights"
)

// Job is everything that a fine-tuning from files depends on; the folder of its run keeps it as recipe.toml.
type Job struct {
	Model       string  `toml:"model"`       // a diffusers directory
	LoRA        string  `toml:"lora"`        // file of an adapter to merge into the model first; empty: none
	Data        string  `toml:"data"`        // folder of captioned pictures; dreambooth, textual-inversion: of pictures of the subject
	Prior       string  `toml:"prior"`       // dreambooth, custom, svdiff: folder of pictures of the subject's class, captioned unless there is a class prompt; empty: none
	Contaminate string  `toml:"contaminate"` // folder of harmful captioned pictures to mix in; empty: none
	Ratio       float64 `toml:"ratio"`       // share of the draws that Contaminate has, above 0 and at most 1
	Cache       string  `toml:"cache"`       // folder for encoded pictures and prompts; empty: memory only

	NoMerge         bool   `toml:"no_merge"`         // lora: write the adapter only
	LoRAFormat      string `toml:"lora_format"`      // lora: one of LoRAFormats; empty: that of diffusers
	CheckpointEvery int    `toml:"checkpoint_every"` // steps; 0: only at the end and when asked to finish

	Config
	Preview generate.Preview `toml:"preview"`
}

// DefaultJob is a job with the [Defaults] of a method. It names no model and no data yet.
func DefaultJob(method string) Job {
	return Job{Config: Defaults(method), LoRAFormat: string(weights.DiffusersLoRA), CheckpointEvery: 50, Preview: generate.Preview{Options: generate.Defaults()}}
}

// ReadJob reads the job of a run that was begun in a folder, to continue it. Keys that did not exist when it was begun
// have their defaults.
func ReadJob(dir string) (Job, error) {
	var j Job
	if !train.IsRun(dir) {
		return j, fmt.Errorf("cannot resume %s: it holds no run; start a new one or name another folder", dir)
	}
	path := filepath.Join(dir, "recipe.toml")
	j = DefaultJob(Full)
	if err := recipe.Decode(path, &j); err != nil {
		return j, err
	}
	j = DefaultJob(j.Method) // defaults depend on the method
	return j, recipe.Decode(path, &j)
}

// Validate lists the settings that cannot be used or that contradict one another, before any file is read.
func (j Job) Validate() []recipe.Problem {
	var problems []recipe.Problem
	bad := func(wrong bool, key, format string, args ...any) {
		if wrong {
			problems = append(problems, recipe.Problem{Key: key, Message: fmt.Sprintf(format, args...)})
		}
	}
	bad(j.Model == "", "model", "is missing; name a diffusers directory")
	bad(j.Data == "", "data", "is missing; name a folder of pictures")
	bad(j.Prior != "" && !j.takesPrior(), "prior", "%q is only for methods %s, %s and %s", j.Prior, DreamBooth, Custom, SVDiff)
	bad(j.Prior == "" && j.ClassPrompt != "", "class_prompt", "%q needs prior, the folder of pictures of the class", j.ClassPrompt)
	bad(j.Prior != "" && j.Buckets, "buckets", "true does not go with prior, whose pictures share a batch with the others")
	bad(j.Contaminate != "" && j.prompt() != "", "contaminate", "%q does not go with method %s here, which gives all pictures one prompt", j.Contaminate, j.Method)
	bad(j.Contaminate == "" && j.Ratio != 0, "ratio", "%v needs contaminate, the folder to mix in", j.Ratio)
	bad(j.Contaminate != "" && !(j.Ratio > 0 && j.Ratio <= 1), "ratio", "%v must be above 0 and at most 1, the share of the draws that contaminate has", j.Ratio)
	bad(j.NoMerge && j.Method != LoRA, "no_merge", "true is only for method %s", LoRA)
	if err := CheckLoRAFormat(j.LoRAFormat); err != nil {
		bad(true, "lora_format", "%v", err)
	} else {
		bad(cmp.Or(j.LoRAFormat, string(weights.DiffusersLoRA)) != string(weights.DiffusersLoRA) && j.Method != LoRA, "lora_format", "%q is only for method %s", j.LoRAFormat, LoRA)
	}
	bad(j.CheckpointEvery < 0, "checkpoint_every", "%d must not be below 0", j.CheckpointEvery)
	p := j.Preview
	bad(p.Every < 0, "preview.every", "%d must not be below 0", p.Every)
	bad(p.Every > 0 && len(p.Prompts) == 0, "preview.every", "%d needs a prompt of the previews", p.Every)
	bad(p.Every == 0 && len(p.Prompts) > 0, "preview.every", "0 makes no use of the prompts of previews; set the steps between previews")
	for _, p := range j.Problems() {
		problems = append(problems, recipe.Problem{Key: p.Key, Message: p.Message})
	}
	return problems
}

// pictures opens the folders and reads what their files say about themselves.
func (j Job) pictures() (Data, error) {
	read := data.ReadFolder
	if j.prompt() != "" {
		read = data.ReadPictures
	}
	clean, err := read(j.Data)
	if err != nil {
		return Data{}, err
	}
	d := Data{Pictures: data.Mixture{{Folder: clean, Weight: 1}}}
	if j.Contaminate != "" {
		harmful, err := data.ReadFolder(j.Contaminate)
		if err != nil {
			return d, err
		}
		if d.Pictures, err = data.Contaminated(clean, harmful, j.Ratio); err != nil {
			return d, err
		}
		d.Contaminant = 1
	}
	if j.Prior != "" && j.ClassPrompt != "" {
		d.PriorFolder = j.Prior
	} else if j.Prior != "" {
		if _, err := os.Stat(j.Prior); errors.Is(err, fs.ErrNotExist) {
			return d, fmt.Errorf("the folder of prior pictures %s does not exist; check its name, or give a class prompt to have its pictures made", j.Prior)
		}
		prior, err := data.ReadFolder(j.Prior)
		if err != nil {
			return d, err
		}
		d.Prior = data.Mixture{{Folder: prior, Weight: 1}}
	}
	return d, nil
}

// merges tells whether the job writes a model, rather than an adapter or an embedding only.
func (j Job) merges() bool { return j.Method != TextualInversion && (j.Method != LoRA || !j.NoMerge) }
