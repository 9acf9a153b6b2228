package finetune

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/random"
)

// takesPrior tells whether the method can be given prior pictures.
func (c Config) takesPrior() bool {
	return slices.Contains([]string{DreamBooth, Custom, SVDiff}, c.Method)
}

// maxPriorPictures bounds what a typing mistake can ask for.
const maxPriorPictures = 100_000

// priorProblems lists what is wrong with the settings of prior pictures.
func (c Config) priorProblems(bad func(key, format string, args ...any)) {
	if c.ClassPrompt == "" {
		return
	}
	if !c.takesPrior() {
		bad("class_prompt", "%q is only for methods %s, %s and %s", c.ClassPrompt, DreamBooth, Custom, SVDiff)
	}
	if strings.TrimSpace(c.ClassPrompt) == "" {
		bad("class_prompt", "%q is blank; write what the prior pictures show, such as a photo of a person", c.ClassPrompt)
	}
	if c.PriorPictures < 1 || c.PriorPictures > maxPriorPictures {
		bad("prior_pictures", "%d must lie between 1 and %d", c.PriorPictures, maxPriorPictures)
	}
	if c.PriorSteps < 1 {
		bad("prior_steps", "%d is too small; it must be at least 1", c.PriorSteps)
	}
}

// classPictures are the prior pictures: those that were given, or those of the folder and as many more of the class prompt
// as are missing, made with the model as it is.
func (t *tuning) classPictures(ctx context.Context, d Data, resolution int, h Hooks) (data.Mixture, error) {
	c := t.config
	switch {
	case d.PriorFolder == "" && c.ClassPrompt == "":
		return d.Prior, nil
	case d.PriorFolder == "" || c.ClassPrompt == "":
		return nil, fmt.Errorf("fine-tuning: a folder of prior pictures and a class prompt belong together; give both or neither")
	case len(d.Prior) > 0:
		return nil, fmt.Errorf("fine-tuning: prior pictures were given twice, as a mixture and as folder %s; give one of both", d.PriorFolder)
	}
	own, err := ownPictures(d.PriorFolder)
	if err != nil {
		return nil, err
	}
	var mixture data.Mixture
	add := func(f *data.Folder) error {
		f, err := f.WithCaption(c.ClassPrompt)
		if err == nil {
			mixture = append(mixture, data.Part{Folder: f, Weight: float64(f.Len())})
		}
		return err
	}
	missing := c.PriorPictures
	if own != nil {
		if err := add(own); err != nil {
			return nil, err
		}
		missing -= own.Len()
	}
	if missing <= 0 {
		return mixture, nil
	}
	dir, err := t.makePictures(ctx, d.PriorFolder, missing, resolution, h)
	if err != nil {
		return nil, err
	}
	made, err := data.ReadPictures(dir)
	if err != nil {
		return nil, err
	}
	made.Pictures = made.Pictures[:min(missing, made.Len())] // more were made for another run
	return mixture, add(made)
}

// ownPictures are those in the folder itself; nil where there are none.
func ownPictures(dir string) (*data.Folder, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the folder of prior pictures %s cannot be listed: %w", dir, err)
	}
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() && !strings.HasPrefix(e.Name(), ".") }) {
		return nil, nil
	}
	return data.ReadPictures(dir)
}

// makePictures makes pictures of the class prompt in a subfolder of dir that is named after all that they depend on, so
// that pictures of another model or prompt are never taken for them. Those that are there already stay.
func (t *tuning) makePictures(ctx context.Context, dir string, count, resolution int, h Hooks) (string, error) {
	c := t.config
	options := generate.Defaults()
	options.Steps, options.Height, options.Width = c.PriorSteps, resolution, resolution
	prompts := make([]data.Prompt, (count+generate.MaxImages-1)/generate.MaxImages)
	for i := range prompts {
		prompts[i].Text = c.ClassPrompt
	}
	list := generate.List{
		Options: options, Model: t.model.Dir, Prompts: prompts, Images: (count + len(prompts) - 1) / len(prompts),
		Seed: random.New(c.Seed, "prior pictures").Uint64(),
	}
	name := sha256.New()
	fmt.Fprintf(name, "%+v %d %d %q\n", options, len(prompts), list.Seed, c.ClassPrompt)
	if err := t.identify(name); err != nil {
		return "", err
	}
	folder := filepath.Join(dir, fmt.Sprintf("generated-%x", name.Sum(nil)[:6]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("the folder of prior pictures cannot be made: %w; name another", err)
	}
	_, err := generate.FillWith(ctx, t.model, list, folder, generate.FillHooks{
		Finish: h.Finish, Warn: h.Warn,
		OnPicture: func(done, total int, _ string) {
			if h.OnWork != nil {
				h.OnWork("making prior pictures", done, total)
			}
		},
	})
	return folder, err
}

// identify writes the model's numbers, of which an adapter may have changed some since they were read.
func (t *tuning) identify(to hash.Hash) error {
	params := t.model.VAEParams.Tensors
	params = append(slices.Clip(params), t.model.UNetParams.Tensors...)
	for _, tower := range t.model.Towers {
		params = append(params, tower.Params.Tensors...)
	}
	var buffer []byte
	for _, x := range params {
		values, err := engine.Values(x)
		if err != nil {
			return err
		}
		for chunk := range slices.Chunk(values, 1<<16) {
			buffer = buffer[:0]
			for _, v := range chunk {
				buffer = binary.LittleEndian.AppendUint32(buffer, math.Float32bits(v))
			}
			to.Write(buffer)
		}
	}
	return nil
}
