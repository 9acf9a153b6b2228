package generate

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/files"
	"github.com/resalign/resalign/nn"
)

const (
	settingsFile = "generation.json"
	metadataFile = "metadata.jsonl"
)

// pictureFolder is a folder of generated pictures that several processes may fill at the same time.
type pictureFolder struct {
	dir   string
	tasks []task // of all shards, and as many of each prompt as a folder can hold
}

// folderSettings are what the pictures of a folder have in common; model, adapter and prompts as SHA-256.
type folderSettings struct {
	Model     string  `json:"model"`
	LoRA      string  `json:"lora,omitempty"`
	Prompts   string  `json:"prompts"`
	Negative  string  `json:"negative_prompt,omitempty"`
	Steps     int     `json:"steps"`
	Guidance  float64 `json:"guidance"`
	Scheduler string  `json:"scheduler,omitempty"`
	Height    int     `json:"height,omitempty"`
	Width     int     `json:"width,omitempty"`
	Batch     int     `json:"batch,omitempty"`
	Seed      uint64  `json:"seed"`

	VAESlicing  bool `json:"vae_slicing,omitempty"`
	VAETiling   bool `json:"vae_tiling,omitempty"`
	VAETileSize int  `json:"vae_tile_size,omitempty"`

	Compute string `json:"compute,omitempty"`
}

// open makes the folder, or checks that it was made with the same settings.
func (f *pictureFolder) open(s folderSettings) error {
	path := filepath.Join(f.dir, settingsFile)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f.create(path, s)
	}
	if err != nil {
		return fmt.Errorf("the folder for pictures cannot be used: %w", err)
	}
	var stored folderSettings
	if err := json.Unmarshal(content, &stored); err != nil {
		return fmt.Errorf("%s is damaged: %w; choose another folder", path, err)
	}
	if stored != s {
		return fmt.Errorf("%s holds pictures made with other settings (%s); choose another folder", f.dir, stored.difference(s))
	}
	return nil
}

func (f *pictureFolder) create(path string, s folderSettings) error {
	entries, err := os.ReadDir(f.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the folder for pictures cannot be used: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") { // a partial file, or what file managers leave
			return fmt.Errorf("%s is not empty (it holds %s) and was not made by generating pictures; choose another folder", f.dir, e.Name())
		}
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return fmt.Errorf("the folder for pictures cannot be made: %w", err)
	}
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return files.WriteBytes(path, append(content, '\n'))
}

// difference names the settings in which two folders differ.
func (s folderSettings) difference(o folderSettings) string {
	var parts []string
	note := func(name string, a, b any) {
		if a != b {
			parts = append(parts, fmt.Sprintf("%s %v, not %v", name, a, b))
		}
	}
	other := func(name, a, b string) {
		if a != b {
			parts = append(parts, "another "+name)
		}
	}
	other("model", s.Model, o.Model)
	other("adapter", s.LoRA, o.LoRA)
	other("list of prompts", s.Prompts, o.Prompts)
	note("negative prompt", fmt.Sprintf("%q", s.Negative), fmt.Sprintf("%q", o.Negative))
	note("steps", s.Steps, o.Steps)
	note("guidance", s.Guidance, o.Guidance)
	note("scheduler", fmt.Sprintf("%q", s.Scheduler), fmt.Sprintf("%q", o.Scheduler))
	note("height", s.Height, o.Height)
	note("width", s.Width, o.Width)
	note("batch", s.Batch, o.Batch)
	note("seed", s.Seed, o.Seed)
	note("VAE slicing", s.VAESlicing, o.VAESlicing)
	note("VAE tiling", s.VAETiling, o.VAETiling)
	note("VAE tile size", s.VAETileSize, o.VAETileSize)
	note("compute", cmp.Or(s.Compute, string(nn.Float32)), cmp.Or(o.Compute, string(nn.Float32)))
	return strings.Join(parts, ", ")
}

// names are the files that are in the folder.
func (f *pictureFolder) names() (map[string]bool, error) {
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return nil, fmt.Errorf("the folder for pictures cannot be used: %w", err)
	}
	names := make(map[string]bool, len(entries))
	for _, e := range entries {
		names[e.Name()] = true
	}
	return names, nil
}

// make makes pictures and puts them into the folder.
func (f *pictureFolder) make(ctx context.Context, g *Generator, tasks []task) error {
	var requests []Request
	for _, t := range tasks {
		requests = append(requests, Request{Prompt: t.text, Seed: t.seed})
	}
	pictures, err := g.Pictures(ctx, requests)
	if err != nil {
		return err
	}
	for i, t := range tasks {
		if err := data.SavePNG(filepath.Join(f.dir, t.file()), pictures[i].Image); err != nil {
			return err
		}
	}
	return nil
}

// pictureRow is a line of metadata.jsonl.
type pictureRow struct {
	File     string  `json:"file_name"`
	Text     string  `json:"text"`
	Prompt   int     `json:"prompt_index"`
	Image    int     `json:"image_index"`
	Seed     uint64  `json:"seed"`
	Guidance float64 `json:"guidance"`
}

// writeMetadata lists the pictures that are there, in the order of their names. A process that fills the same folder may
// have added pictures meanwhile and be done before the list is in place; so the folder is looked at again until list and
// folder agree.
func (f *pictureFolder) writeMetadata() error {
	list, err := f.listing()
	for err == nil {
		if err = files.WriteBytes(filepath.Join(f.dir, metadataFile), list); err != nil {
			return err
		}
		var now []byte
		if now, err = f.listing(); err == nil && bytes.Equal(now, list) {
			return nil
		}
		list = now
	}
	return err
}

func (f *pictureFolder) listing() ([]byte, error) {
	names, err := f.names()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	for _, t := range f.tasks {
		if !names[t.file()] {
			continue
		}
		row := pictureRow{File: t.file(), Text: t.text, Prompt: t.prompt, Image: t.image, Seed: t.seed.Run, Guidance: t.guidance}
		if err := encoder.Encode(row); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
