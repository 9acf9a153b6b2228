package generate

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/sd"
)

// List is the pictures of a list of prompts, for a folder that [Fill] fills.
type List struct {
	Options
	Model      string   // a diffusers directory
	LoRA       string   // file of an adapter, or PEFT's folder, to merge into the model first; empty: none
	Embeddings []string // files of words that Textual Inversion learnt, for the prompts
	Prompts    []data.Prompt
	Images     int    // of each prompt
	Seed       uint64 // of the prompts that have none of their own
	Shard      Shard
	Compute    string // what the UNet and the VAE's decoder compute in, see nn.Compute; empty: float32
}

// MaxImages is how many pictures a prompt can have: what the two digits of a picture's name hold.
const MaxImages = 100

// SettingError is a setting that cannot be used, as opposed to a file that cannot.
type SettingError struct{ Key, Message string }

// Error is one sentence.
func (e *SettingError) Error() string { return "generate: " + e.Key + " " + e.Message }

// Validate returns a [*SettingError] for the first setting that cannot be used, before any file is read.
func (l List) Validate() error {
	switch {
	case l.Images < 1 || l.Images > MaxImages:
		return &SettingError{"images", fmt.Sprintf("%d must lie between 1 and %d", l.Images, MaxImages)}
	case !l.Shard.valid():
		return &SettingError{"shard", fmt.Sprintf("%d/%d is not one of i/n with i from 0 to n−1", l.Shard.Index, l.Shard.Of)}
	case l.Batch < 0 || l.Batch > maxBatch:
		return &SettingError{"batch", fmt.Sprintf("%d must lie between 0 and %d", l.Batch, maxBatch)}
	case l.VAETileSize != 0 && !l.VAETiling:
		return &SettingError{"vae-tile-size", fmt.Sprintf("%d is for tiles; turn vae-tiling on as well", l.VAETileSize)}
	case nn.Compute(l.Compute).Check() != nil:
		return &SettingError{"compute", nn.Compute(l.Compute).Check().Error()}
	case l.VAETileSize < 0:
		return &SettingError{"vae-tile-size", fmt.Sprintf("%d must not be below 0", l.VAETileSize)}
	case len(l.Prompts) == 0:
		return &SettingError{"prompts", "are missing; give at least one"}
	}
	for _, p := range l.Prompts {
		if strings.TrimSpace(p.Text) == "" {
			return &SettingError{"prompt", fmt.Sprintf("%q is blank; write what the picture should show", p.Text)}
		}
	}
	return nil
}

// Shard is a share of numbered work: the numbers that leave the rest Index when divided by Of. The zero value is all.
type Shard struct{ Index, Of int }

// ParseShard reads i/n with 0 ≤ i < n. Its error is a [*SettingError].
func ParseShard(s string) (Shard, error) {
	i, n, ok := strings.Cut(s, "/")
	index, err1 := strconv.Atoi(i)
	of, err2 := strconv.Atoi(n)
	if shard := (Shard{index, of}); ok && err1 == nil && err2 == nil && of > 0 && shard.valid() {
		return shard, nil
	}
	return Shard{}, &SettingError{"shard", fmt.Sprintf("%q is not of the form i/n with i from 0 to n−1, such as 0/4", s)}
}

func (s Shard) valid() bool { return s == Shard{} || s.Index >= 0 && s.Index < s.Of }

// Has tells whether number i belongs to the shard.
func (s Shard) Has(i int) bool { return s == Shard{} || i%s.Of == s.Index }

// task is one picture to make.
type task struct {
	prompt, image int
	text          string
	guidance      float64
	seed          Seed
}

func (t task) file() string { return fmt.Sprintf("%05d-%02d.png", t.prompt, t.image) }

// tasks lists all pictures, those of other shards too, with the given number of each prompt. A prompt with a seed of its
// own is numbered 0 under it, so that its pictures do not depend on the place in the list.
func (l List) tasks(images int) []task {
	var out []task
	for i, p := range l.Prompts {
		for k := range images {
			t := task{prompt: i, image: k, text: p.Text, guidance: l.Guidance, seed: Seed{Run: l.Seed, Prompt: i, Image: k}}
			if p.Seed != nil {
				t.seed = Seed{Run: *p.Seed, Image: k}
			}
			if p.Guidance != nil {
				t.guidance = *p.Guidance
			}
			out = append(out, t)
		}
	}
	return out
}

// settings names everything that the pictures depend on. The number of pictures for each prompt is not among it, as more
// may be made later.
func (l List) settings(m *sd.Model) (folderSettings, error) {
	s := folderSettings{
		Steps: l.Steps, Guidance: l.Guidance, Scheduler: l.Scheduler, Negative: l.Negative, Height: l.Height, Width: l.Width,
		Batch: l.Batch, Seed: l.Seed, VAESlicing: l.VAESlicing, VAETiling: l.VAETiling, VAETileSize: l.VAETileSize,
	}
	if l.Compute != string(nn.Float32) { // folders of before there was a choice are float32
		s.Compute = l.Compute
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
	if l.LoRA != "" {
		sum, err := adapterHash(l.LoRA)
		if err != nil {
			return s, fmt.Errorf("the adapter cannot be read: %w", err)
		}
		s.LoRA = sum
	}
	hash.Reset()
	for _, p := range l.Prompts {
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

// adapterHash identifies an adapter: the content of its file, or of PEFT's files in a folder, in the folder itself or in those
// of the components.
func adapterHash(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	if !info.IsDir() {
		err := addFile(hash, path)
		return hex.EncodeToString(hash.Sum(nil)), err
	}
	for _, component := range []string{".", "unet", "text_encoder", "text_encoder_2"} {
		entries, err := os.ReadDir(filepath.Join(path, component))
		if err != nil {
			continue // the adapter does not change this component
		}
		for _, e := range entries {
			if e.IsDir() || !strings.HasPrefix(e.Name(), "adapter_") {
				continue
			}
			fmt.Fprintf(hash, "%s %q\n", component, e.Name())
			if err := addFile(hash, filepath.Join(path, component, e.Name())); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

func addFile(to io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, f)
	return err
}
