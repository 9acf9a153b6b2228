// Package folders scores folders of pictures: detectors and metrics over each, and what differs between them. What is found
// about a picture is kept under the SHA-256 of its file, so that work is taken up again where it stopped.
package folders

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/resalign/resalign/data"
)

// Folder is a folder of pictures that were made or drawn for the same purpose.
type Folder struct {
	Dir      string
	Pictures []Picture // in the order of their names
	Prompted bool      // every picture has a prompt
}

// Picture is a file of a folder.
type Picture struct {
	Name   string // file name relative to the folder, with forward slashes
	Prompt string // empty where the folder has no prompts
	Hash   string // SHA-256 of the file, in hexadecimal

	folder *data.Folder
	index  int
}

// Path is where the picture lies on disk.
func (p Picture) Path() string { return p.folder.Path(p.index) }

// Decode reads the pixels.
func (p Picture) Decode() (*data.RGB, error) { return p.folder.Decode(p.index) }

// Read lists the pictures of a folder, reads their prompts where there are any (metadata.csv, metadata.jsonl or NAME.txt),
// and hashes every file. A file that is no picture, told by its header, is an error.
func Read(ctx context.Context, dir string) (*Folder, error) {
	listed, err := data.ReadPictures(dir)
	prompted := false
	if err == nil {
		prompted, err = hasCaptions(listed)
	} else {
		// Pictures may all lie in subfolders, which metadata names.
		prompted, _ = hasCaptions(&data.Folder{Dir: dir})
	}
	if prompted {
		listed, err = data.ReadFolder(dir)
	}
	if err != nil {
		return nil, err
	}
	if err := listed.Check(); err != nil {
		return nil, err
	}
	f := &Folder{Dir: dir, Pictures: make([]Picture, listed.Len()), Prompted: prompted}
	err = each(ctx, listed.Len(), func(i int) error {
		hash, err := listed.ContentHash(i)
		f.Pictures[i] = Picture{
			Name: listed.Pictures[i].Name, Prompt: listed.Pictures[i].Caption, Hash: hex.EncodeToString(hash[:]),
			folder: listed, index: i,
		}
		return err
	})
	return f, err
}

// hasCaptions tells whether a folder means its pictures to have captions.
func hasCaptions(f *data.Folder) (bool, error) {
	names := []string{"metadata.csv", "metadata.jsonl"}
	if f.Len() > 0 {
		first := f.Pictures[0].Name
		names = append(names, strings.TrimSuffix(first, filepath.Ext(first))+".txt")
	}
	for _, name := range names {
		_, err := os.Stat(filepath.Join(f.Dir, name))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("the folder %s cannot be read: %w", f.Dir, err)
		}
	}
	return false, nil
}

// prompts is the number of different prompts, 0 without any.
func (f *Folder) prompts() int {
	if !f.Prompted {
		return 0
	}
	different := map[string]bool{}
	for _, p := range f.Pictures {
		different[p.Prompt] = true
	}
	return len(different)
}

// byName finds pictures by their names.
func (f *Folder) byName() map[string]Picture {
	out := make(map[string]Picture, len(f.Pictures))
	for _, p := range f.Pictures {
		out[p.Name] = p
	}
	return out
}

// hashFile is the beginning of the SHA-256 of a file, by which weights are told apart.
func hashFile(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("the weights cannot be read: %w", err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(content))[:12], nil
}

// each calls do for 0 … n−1 on all processors, and returns the error of the first place that has one.
func each(ctx context.Context, n int, do func(i int) error) error {
	failed := make([]error, n)
	next := make(chan int)
	var wait sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), n) {
		wait.Go(func() {
			for i := range next {
				failed[i] = do(i)
			}
		})
	}
	for i := range n {
		if ctx.Err() != nil {
			break
		}
		next <- i
	}
	close(next)
	wait.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}
