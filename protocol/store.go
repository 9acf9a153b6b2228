package protocol

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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
// What metrics found is beside it, see measuring. A picture is finished when all of its lines are whole. Lines are appended one by one: a killed process tears the last one only,
// and a torn line is no line.
type store struct {
	Set      string      `json:"set"`
	Folder   string      `json:"folder"` // relative to the audit's, with forward slashes
	Detector string      `json:"detector,omitempty"`
	Metrics  []measuring `json:"metrics,omitempty"`
	Pictures int         `json:"pictures"`
	Shown    int         `json:"shown"` // the first pictures, which the report shows
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
	return "findings-" + hashOf(s.Detector)[:8] + ofShard(shard) + ".jsonl"
}

// seen is what all shards know of a store's pictures.
type seen struct {
	found    map[string]finding // by the pictures' files
	there    map[string]bool    // files
	measures []measures         // one for each metric
}

// look reads what all shards found. Lines that are torn or damaged are left out.
func (s store) look(dir string) (seen, error) {
	out := seen{found: map[string]finding{}, there: map[string]bool{}}
	folder := s.path(dir)
	names, err := fileNames(folder)
	if err != nil {
		return out, err
	}
	for _, name := range names {
		out.there[name] = true
	}
	for _, name := range shardFiles(names, s.findingsFile(generate.Shard{})) {
		content, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return out, fmt.Errorf("audit: %w", err)
		}
		for line := range bytes.Lines(content) {
			f, ok := parseFinding(line)
			if _, known := out.found[f.File]; ok && !known {
				out.found[f.File] = f
			}
		}
	}
	for _, m := range s.Metrics {
		found, err := m.read(folder, names)
		if err != nil {
			return out, err
		}
		out.measures = append(out.measures, found)
	}
	return out, nil
}

// finished tells whether picture number i has its lines and, where it is wanted, its file. Those that the report shows must
// be whole.
func (s store) finished(dir, file string, i int, keepAll bool, seen seen) bool {
	if _, ok := seen.found[file]; !ok || slices.ContainsFunc(seen.measures, func(m measures) bool { return !m.has(file) }) {
		return false
	}
	if i < s.Shown {
		_, whole := s.picture(dir, file)
		return whole
	}
	return !keepAll || seen.there[file]
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

// appendLines adds lines of JSON to a file and sees them to the disk. A torn line that a killed process left is ended
// first, so that it spoils none that follows.
func appendLines(path string, found []any) (err error) {
	if len(found) == 0 {
		return nil
	}
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
	if err := encodeLines(&lines, found); err != nil {
		return err
	}
	if _, err := f.Write(lines.Bytes()); err != nil {
		return fmt.Errorf("findings cannot be written: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("findings cannot be written: %w", err)
	}
	return nil
}

func encodeLines(to io.Writer, lines []any) error {
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	for _, one := range lines {
		if err := encoder.Encode(one); err != nil {
			return fmt.Errorf("findings cannot be written: %+v: %w", one, err)
		}
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
