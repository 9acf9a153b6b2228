package audit

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/sd"
	"github.com/resalign/resalign/train"
)

// HashModel identifies a model directory by the content of all its parts: not only the UNet, but whatever turns its
// latents into pictures and prompts into embeddings.
func HashModel(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("audit: %w", err)
	}
	hash := sha256.New()
	for _, entry := range entries {
		part := filepath.Join(dir, entry.Name())
		info, err := os.Stat(part) // parts may be links
		if err != nil {
			return "", fmt.Errorf("audit: %w", err)
		}
		if !info.IsDir() || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		content, err := sd.HashFolder(part)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%q %s\n", entry.Name(), content)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// fingerprint identifies a measurement, so that a cell of another plan is never taken for this one's: the model (see
// HashModel), the detector, the adaptation with its pictures (nil: none), and everything that pictures and counts depend
// on.
func (p Plan) fingerprint(model, detector string, a *Adaptation) (string, error) {
	hash := sha256.New()
	encoder := json.NewEncoder(hash)
	parts := []any{model, detector, p.Generate, p.Seed, p.Harm, p.Benign, p.Harmful, p.Keep, p.HarmBatches, p.HarmBatch}
	mixtures, priorFolder := []data.Mixture{p.HarmData}, ""
	if a != nil {
		config := a.Config
		config.Steps = 0 // how far it runs in the end does not change what it was on the way…
		if config.Schedule != train.ConstantSchedule {
			config.Steps = slices.Max(a.Steps) // …unless the learning rate depends on it
		}
		parts = append(parts, a.Name, config)
		mixtures, priorFolder = append(mixtures, a.Data.Pictures, a.Data.Prior), a.Data.PriorFolder
	}
	for _, part := range parts {
		if err := encoder.Encode(part); err != nil {
			return "", fmt.Errorf("audit: %w", err)
		}
	}
	if err := hashPictures(hash, priorFolder, mixtures...); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)[:16]), nil
}

// hashPictures writes what identifies mixtures, and a folder of prior pictures if there is one: the user's own in it. Those
// that fine-tuning makes there, in a subfolder, depend on the model and the settings alone.
func hashPictures(hash io.Writer, priorFolder string, mixtures ...data.Mixture) error {
	for i, m := range mixtures {
		fmt.Fprintf(hash, "mixture %d\n", i)
		if err := hashMixture(hash, m); err != nil {
			return err
		}
	}
	if priorFolder == "" {
		return nil
	}
	fmt.Fprintln(hash, "prior folder")
	entries, err := os.ReadDir(priorFolder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // all are made
	}
	if err != nil {
		return fmt.Errorf("the folder of prior pictures %s cannot be listed: %w", priorFolder, err)
	}
	if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() && !strings.HasPrefix(e.Name(), ".") }) {
		return nil
	}
	own, err := data.ReadPictures(priorFolder)
	if err != nil {
		return err
	}
	return hashMixture(hash, data.Mixture{{Folder: own, Weight: 1}})
}

// hashMixture writes what identifies a mixture: its weights, and the names, captions and content of its pictures.
func hashMixture(hash io.Writer, m data.Mixture) error {
	for _, part := range m {
		fmt.Fprintf(hash, "part %v\n", part.Weight)
		if part.Folder == nil {
			continue
		}
		for i, picture := range part.Folder.Pictures {
			content, err := part.Folder.ContentHash(i)
			if err != nil {
				return err
			}
			fmt.Fprintf(hash, "%q %q %x\n", picture.Name, picture.Caption, content)
		}
	}
	return nil
}

// Hash identifies what an adaptation does to a model: its settings, where it is measured at the latest as far as that
// matters on the way, and its pictures.
func (a Adaptation) Hash() (string, error) {
	hash := sha256.New()
	config := a.Config
	config.Steps = 0
	if config.Schedule != train.ConstantSchedule {
		config.Steps = slices.Max(a.Steps)
	}
	if err := json.NewEncoder(hash).Encode(config); err != nil {
		return "", fmt.Errorf("audit: %w", err)
	}
	if err := hashPictures(hash, a.Data.PriorFolder, a.Data.Pictures, a.Data.Prior); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
