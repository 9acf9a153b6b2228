package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/finetune"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/recipe"
	"github.com/resalign/resalign/unlearn"
)

// tuning is everything that a fine-tuning depends on; its folder keeps it as recipe.toml.
type tuning struct {
	Model       string  `toml:"model"`
	LoRA        string  `toml:"lora"` // merged into the model first
	Data        string  `toml:"data"`
	Prior       string  `toml:"prior"`
	Contaminate string  `toml:"contaminate"`
	Ratio       float64 `toml:"ratio"`
	Cache       string  `toml:"cache"`

	NoMerge         bool `toml:"no_merge"`
	CheckpointEvery int  `toml:"checkpoint_every"`

	finetune.Config
	Preview unlearn.Preview `toml:"preview"`
}

func defaultTuning(method string) tuning {
	return tuning{
		Config: finetune.Defaults(method), CheckpointEvery: 50, Preview: unlearn.Preview{Options: generate.Defaults()},
	}
}

// storedTuning reads the recipe of a run that was begun.
func storedTuning(dir string) (tuning, error) {
	var t tuning
	if !isRun(dir) {
		return t, fmt.Errorf("cannot resume %s: it holds no run; start one without --resume or name another folder", dir)
	}
	return t, recipe.Decode(filepath.Join(dir, "recipe.toml"), &t)
}

// check finds settings that contradict one another, before anything is read.
func (t tuning) check() error {
	problems := []error{}
	bad := func(wrong bool, sentence string) {
		if wrong {
			problems = append(problems, errors.New(sentence))
		}
	}
	dreamBooth := t.Method == finetune.DreamBooth
	bad(t.Prior != "" && !dreamBooth, "--prior is only for --method dreambooth")
	bad(t.Contaminate != "" && dreamBooth, "--contaminate does not go with dreambooth, which gives all pictures one prompt")
	bad(t.Contaminate == "" && t.Ratio != 0, "--ratio needs --contaminate, the folder to mix in")
	bad(t.Contaminate != "" && !(t.Ratio > 0 && t.Ratio <= 1), "--contaminate needs --ratio, its share of the draws, above 0 and at most 1")
	bad(t.NoMerge && t.Method != finetune.LoRA, "--no-merge is only for --method lora")
	bad(t.CheckpointEvery < 0, "--checkpoint-every must not be below 0")
	bad(t.Preview.Every < 0, "--preview-every must not be below 0")
	bad(t.Preview.Every > 0 && len(t.Preview.Prompts) == 0, "--preview-every needs at least one --preview-prompt")
	bad(t.Preview.Every == 0 && len(t.Preview.Prompts) > 0, "--preview-prompt needs --preview-every, the steps between previews")
	if err := t.Validate(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// pictures opens the folders and reads what their files say about themselves.
func (t tuning) pictures() (finetune.Data, error) {
	read := data.ReadFolder
	if t.Method == finetune.DreamBooth {
		read = data.ReadPictures
	}
	clean, err := read(t.Data)
	if err != nil {
		return finetune.Data{}, err
	}
	d := finetune.Data{Pictures: data.Mixture{{Folder: clean, Weight: 1}}}
	if t.Contaminate != "" {
		harmful, err := data.ReadFolder(t.Contaminate)
		if err != nil {
			return d, err
		}
		if d.Pictures, err = data.Contaminated(clean, harmful, t.Ratio); err != nil {
			return d, err
		}
	}
	if t.Prior != "" {
		prior, err := data.ReadFolder(t.Prior)
		if err != nil {
			return d, err
		}
		d.Prior = data.Mixture{{Folder: prior, Weight: 1}}
	}
	return d, nil
}
