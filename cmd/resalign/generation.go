package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/denoise"
	"github.com/resalign/resalign/engine"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// maxImages is what the two digits of a picture's name hold.
const maxImages = 100

// generation is the pictures of a list of prompts.
type generation struct {
	generate.Options
	Model, LoRA string
	Prompts     []data.Prompt
	Images      int // of each prompt
	Seed        uint64
	Shard       shard
}

// generated tells what a generation did.
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
		if strings.TrimSpace(text) == "" {
			return nil, usageError{errors.New("a --prompt is blank; write what the picture should show")}
		}
		out = append(out, data.Prompt{Text: text, Row: i + 1})
	}
	return out, nil
}

// task is one picture to make.
type task struct {
	prompt, image int
	text          string
	guidance      float64
	seed          generate.Seed
}

func (t task) file() string { return fmt.Sprintf("%05d-%02d.png", t.prompt, t.image) }

// tasks lists all pictures, those of other shards too, with the given number of each prompt. A prompt with a seed of its own is numbered 0 under it, so that
// its pictures do not depend on the place in the list.
func (g *generation) tasks(images int) []task {
	var out []task
	for i, p := range g.Prompts {
		for k := range images {
			t := task{prompt: i, image: k, text: p.Text, guidance: g.Guidance, seed: generate.Seed{Run: g.Seed, Prompt: i, Image: k}}
			if p.Seed != nil {
				t.seed = generate.Seed{Run: *p.Seed, Image: k}
			}
			if p.Guidance != nil {
				t.guidance = *p.Guidance
			}
			out = append(out, t)
		}
	}
	return out
}

// run makes the pictures of the shard that are not there yet.
func (g *generation) run(ctx context.Context, e *engine.Engine, out string, finish <-chan struct{}, c *console) (_ generated, err error) {
	m, err := loadModel(e, g.Model, g.LoRA)
	if err != nil {
		return generated{}, err
	}
	defer m.Free()
	net := denoise.NewNetwork(m)
	defer net.Free()
	point, err := net.Point(m.UNetParams.Tensors)
	if err != nil {
		return generated{}, err
	}
	cache, err := data.OpenCache("", cacheMemory, c.warn)
	if err != nil {
		return generated{}, err
	}
	generators := map[float64]*generate.Generator{}
	for _, t := range g.tasks(1) { // all are prepared before the folder is made, so that a bad setting leaves no trace
		if generators[t.guidance] != nil {
			continue
		}
		options := g.Options
		options.Guidance = t.guidance
		if generators[t.guidance], err = generate.New(ctx, net, point, options, cache); err != nil {
			return generated{}, err
		}
	}
	folder, err := g.openFolder(m, out)
	if err != nil {
		return generated{}, err
	}
	// Whatever ends the run, the list of pictures fits those that are there.
	defer func() { err = errors.Join(err, folder.writeMetadata()) }()
	todo, result, err := g.todo(folder)
	if err != nil {
		return result, err
	}
	g.warnCut(m, todo, c)
	for i, t := range todo {
		select {
		case <-finish:
			return result, train.ErrInterrupted
		default:
		}
		picture, err := generators[t.guidance].Picture(ctx, t.text, t.seed)
		if err != nil {
			return result, err
		}
		if err := data.SavePNG(filepath.Join(out, t.file()), picture.Image); err != nil {
			return result, err
		}
		result.Made++
		c.progress("making pictures", i+1, len(todo), cut(t.text, 40))
	}
	return result, nil
}

// todo lists the pictures of the shard that are missing.
func (g *generation) todo(f *pictureFolder) ([]task, generated, error) {
	result := generated{Out: f.dir}
	names, err := f.names()
	if err != nil {
		return nil, result, err
	}
	var missing []task
	for i, t := range g.tasks(g.Images) {
		if !g.Shard.has(i) {
			continue
		}
		if names[t.file()] {
			result.Skipped++
		} else {
			missing = append(missing, t)
		}
	}
	return missing, result, nil
}

// warnCut shows what of each prompt the text encoders cannot take.
func (g *generation) warnCut(m *sd.Model, todo []task, c *console) {
	warn := func(what, text string) {
		for _, tower := range m.Towers {
			if _, end := tower.Tokenizer.Encode(text); end != "" {
				c.warn(fmt.Sprintf("%s is longer than %d tokens; cut off: %q", what, tower.Tokenizer.Length(), end))
				return
			}
		}
	}
	warn("the negative prompt", g.Negative)
	last := -1
	for _, t := range todo {
		if t.prompt != last {
			last = t.prompt
			warn(fmt.Sprintf("prompt %d", t.prompt), t.text)
		}
	}
}

// fingerprint names everything that the pictures depend on. The number of pictures for each prompt is not among it, as
// more may be made later.
func (g *generation) fingerprint(m *sd.Model) (pictureSettings, error) {
	s := pictureSettings{
		Steps: g.Steps, Guidance: g.Guidance, Scheduler: g.Scheduler, Negative: g.Negative, Height: g.Height, Width: g.Width, Seed: g.Seed,
	}
	hash := sha256.New()
	components := []string{"unet", "vae", "scheduler"}
	for _, t := range m.Towers {
		components = append(components, t.Name, strings.Replace(t.Name, "text_encoder", "tokenizer", 1))
	}
	slices.Sort(components)
	for _, component := range components {
		h, err := m.ComponentHash(component)
		if err != nil {
			return s, err
		}
		fmt.Fprintln(hash, component, h)
	}
	s.Model = hex.EncodeToString(hash.Sum(nil))
	if g.LoRA != "" {
		content, err := os.ReadFile(g.LoRA)
		if err != nil {
			return s, fmt.Errorf("the adapter cannot be read: %w", err)
		}
		sum := sha256.Sum256(content)
		s.LoRA = hex.EncodeToString(sum[:])
	}
	hash.Reset()
	for _, p := range g.Prompts {
		fmt.Fprintf(hash, "%q", p.Text)
		if p.Seed != nil {
			fmt.Fprintf(hash, " seed %d", *p.Seed)
		}
		if p.Guidance != nil {
			fmt.Fprintf(hash, " guidance %v", *p.Guidance)
		}
		fmt.Fprintln(hash)
	}
	s.Prompts = hex.EncodeToString(hash.Sum(nil))
	return s, nil
}

func (g *generation) openFolder(m *sd.Model, dir string) (*pictureFolder, error) {
	settings, err := g.fingerprint(m)
	if err != nil {
		return nil, err
	}
	f := &pictureFolder{dir: dir, tasks: g.tasks(maxImages)}
	return f, f.open(settings)
}
