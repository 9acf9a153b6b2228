package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/generate"
	"github.com/resalign/resalign/score"
)

// store is a folder with the pictures of one prompt set in one cell and what was found in them.
//
//	00012-01.png              a picture: number of its prompt, number of the picture
//	findings-HASH.jsonl       what the detector of that hash found: one line for each picture, in the order they were made
//	findings-HASH.0-of-4.jsonl   by shard 0 of 4
//
// A picture is finished when its line is whole. Lines are appended one by one: a killed process tears the last one only,
// and a torn line is no line.
type store struct {
	Set      string `json:"set"`
	Folder   string `json:"folder"` // relative to the audit's, with forward slashes
	Detector string `json:"detector,omitempty"`
	Pictures int    `json:"pictures"`
	Shown    int    `json:"shown"` // the first pictures, which the report shows
}

// finding is one line.
type finding struct {
	File     string  `json:"file"`
	Prompt   string  `json:"prompt"`
	Seed     uint64  `json:"seed"`
	Guidance float64 `json:"guidance"`
	score.Finding
	Wanted map[string]string `json:"wanted,omitempty"` // the labels of a right picture, where the prompt's row says so
}

func (s store) path(dir string) string { return filepath.Join(dir, filepath.FromSlash(s.Folder)) }

// findingsFile is where a shard writes. What other detectors found stays beside it.
func (s store) findingsFile(shard generate.Shard) string {
	name := "findings-" + hashOf(s.Detector)[:8]
	if shard.Of > 1 {
		return fmt.Sprintf("%s.%d-of-%d.jsonl", name, shard.Index, shard.Of)
	}
	return name + ".jsonl"
}

// findings reads what all shards found, by the pictures' files, and which files there are. Lines that are torn or damaged
// are left out.
func (s store) findings(dir string) (found map[string]finding, there map[string]bool, err error) {
	found, there = map[string]finding{}, map[string]bool{}
	folder := s.path(dir)
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return found, there, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("audit: %w", err)
	}
	prefix := strings.TrimSuffix(s.findingsFile(generate.Shard{}), ".jsonl") + "."
	for _, e := range entries { // sorted by name
		there[e.Name()] = true
		if !strings.HasPrefix(e.Name(), prefix) || !strings.HasSuffix(e.Name(), ".jsonl") {
			continue
		}
		content, err := os.ReadFile(filepath.Join(folder, e.Name()))
		if err != nil {
			return nil, nil, fmt.Errorf("audit: %w", err)
		}
		for line := range bytes.Lines(content) {
			f, ok := parseFinding(line)
			if _, known := found[f.File]; ok && !known {
				found[f.File] = f
			}
		}
	}
	return found, there, nil
}

// finished tells whether picture number i has its line and, where it is wanted, its file. Those that the report shows must
// be whole.
func (s store) finished(dir, file string, i int, keepAll bool, found map[string]finding, there map[string]bool) bool {
	if _, ok := found[file]; !ok {
		return false
	}
	if i < s.Shown {
		_, whole := s.picture(dir, file)
		return whole
	}
	return !keepAll || there[file]
}

// pictureFile is the name of a picture: the numbers of its prompt and of the picture among those of the prompt.
func pictureFile(prompt, image int) string { return fmt.Sprintf("%05d-%02d.png", prompt, image) }

// parseFinding reads a line; ok is false for one that is not whole.
func parseFinding(line []byte) (f finding, ok bool) {
	if !bytes.HasSuffix(line, []byte("\n")) {
		return f, false
	}
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&f)
	return f, err == nil && f.File != "" && !strings.ContainsAny(f.File, `/\`)
}

// appendFindings adds lines to a shard's list and sees them to the disk. A torn line that a killed process left is ended
// first, so that it spoils none that follows.
func (s store) appendFindings(dir string, shard generate.Shard, found []finding) (err error) {
	path := filepath.Join(s.path(dir), s.findingsFile(shard))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("findings cannot be written: %w", err)
	}
	defer func() {
		if closing := f.Close(); err == nil && closing != nil {
			err = fmt.Errorf("findings cannot be written: %w", closing)
		}
	}()
	var lines bytes.Buffer
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("findings cannot be written: %w", err)
	}
	if size := info.Size(); size > 0 {
		last := []byte{0}
		if _, err := f.ReadAt(last, size-1); err != nil {
			return fmt.Errorf("findings cannot be written: %w", err)
		}
		if last[0] != '\n' {
			lines.WriteByte('\n')
		}
	}
	encoder := json.NewEncoder(&lines)
	encoder.SetEscapeHTML(false)
	for _, one := range found {
		if err := encoder.Encode(one); err != nil {
			return fmt.Errorf("findings cannot be written: %s: %w", one.File, err)
		}
	}
	if _, err := f.Write(lines.Bytes()); err != nil {
		return fmt.Errorf("findings cannot be written: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("findings cannot be written: %w", err)
	}
	return nil
}

// picture reads a picture that an earlier process made; ok is false where there is none that is whole.
func (s store) picture(dir, name string) (picture *data.RGB, ok bool) {
	content, err := os.ReadFile(filepath.Join(s.path(dir), name))
	if err != nil {
		return nil, false
	}
	picture, err = data.Decode(name, content)
	return picture, err == nil
}
