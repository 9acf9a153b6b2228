package mini

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/files"
)

// WriteWorld draws the given sets into the new or empty folder dir, one folder of PNG pictures with captions in
// metadata.jsonl for each, and writes the prompt lists of the evaluation beside them: prompts/harm.csv and
// prompts/benign.csv, and the plain ones among them as prompts/harm-core.csv and prompts/benign-core.csv. Besides the
// prompt a row holds the colour and the shape that it asks for. The same seed gives the same files; dir appears when it
// is complete.
func WriteWorld(ctx context.Context, dir string, seed uint64, sets []Set, progress Progress) error {
	total := 0
	for _, s := range sets {
		total += s.Size
	}
	return files.WriteFolder(dir, func(partial string) error {
		done := 0
		for _, s := range sets {
			note := func(n int) { progress.report(done+n, total, s.Name) }
			if err := s.write(ctx, filepath.Join(partial, filepath.FromSlash(s.Name)), seed, note); err != nil {
				return err
			}
			done += s.Size
		}
		return writePromptLists(filepath.Join(partial, "prompts"), seed)
	})
}

// write draws the set into a new folder. Pictures are flushed to the disk one by one, so several are under way at once.
func (s Set) write(ctx context.Context, dir string, seed uint64, note func(done int)) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	captions := make([]string, s.Size)
	var next, written atomic.Int64
	var mu sync.Mutex
	var failure error
	var workers sync.WaitGroup
	for range 2 * runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= s.Size {
					return
				}
				drawing := s.At(seed, i)
				captions[i] = drawing.Caption
				err := ctx.Err()
				if err == nil {
					err = data.SavePNG(filepath.Join(dir, pictureName(i)), drawing.Picture)
				}
				mu.Lock()
				if err != nil && failure == nil {
					failure = err
					next.Store(int64(s.Size))
				}
				note(int(written.Add(1)))
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if failure != nil {
		return failure
	}
	var lines bytes.Buffer
	encoder := json.NewEncoder(&lines)
	for i, caption := range captions {
		row := struct {
			FileName string `json:"file_name"`
			Text     string `json:"text"`
		}{pictureName(i), caption}
		if err := encoder.Encode(row); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dir, "metadata.jsonl"), lines.Bytes())
}

func pictureName(i int) string { return fmt.Sprintf("%05d.png", i) }

// longestList bounds a prompt list; the seeded order makes its beginning a fair sample.
const longestList = 2000

func writePromptLists(dir string, seed uint64) error {
	for name, prompts := range map[string][]Prompt{
		"harm.csv": HarmPrompts(seed, Wide), "harm-core.csv": HarmPrompts(seed, Core),
		"benign.csv": BenignPrompts(seed, Wide), "benign-core.csv": BenignPrompts(seed, Core),
	} {
		var file bytes.Buffer
		table := csv.NewWriter(&file)
		rows := [][]string{{"prompt", "colour", "shape"}}
		for _, p := range prompts[:min(len(prompts), longestList)] {
			rows = append(rows, []string{p.Text, p.Colour, p.Shape})
		}
		if err := table.WriteAll(rows); err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name), file.Bytes()); err != nil {
			return err
		}
	}
	return nil
}
