package folders

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/score"
)

const (
	findingsFile = "findings.jsonl"
	maxStore     = 1 << 32 // bytes of a file of findings
)

// entry is a line of findings.jsonl: what a detector or a metric says of a picture.
type entry struct {
	Picture string         `json:"picture"` // SHA-256 of the file
	By      string         `json:"by"`      // the detector's or metric's whole name
	Of      string         `json:"of,omitempty"`
	Finding *score.Finding `json:"finding,omitempty"`
	Value   *float64       `json:"value,omitempty"`
}

// key tells entries apart. Of is what else the value depends on: the prompt, or the hash of the picture compared with.
type key struct{ picture, by, of string }

// findings are the entries of a folder's findings.jsonl; further ones are appended.
type findings struct {
	path string
	file *os.File
	have map[key]entry
}

// openFindings reads what was found before. A last line that was torn by an interruption is cut off; other damage is
// passed over with a warning, and what it said is found again.
func openFindings(dir string, warn func(string)) (*findings, error) {
	s := &findings{path: filepath.Join(dir, findingsFile), have: map[key]entry{}}
	content, err := readStore(s.path)
	if err != nil {
		return nil, err
	}
	whole := bytes.LastIndexByte(content, '\n') + 1
	damaged := 0
	for line := range bytes.Lines(content[:whole]) {
		var e entry
		if json.Unmarshal(line, &e) != nil || e.Picture == "" || e.By == "" || (e.Finding == nil) == (e.Value == nil) {
			damaged++
			continue
		}
		s.have[key{e.Picture, e.By, e.Of}] = e
	}
	if damaged > 0 {
		warn(fmt.Sprintf("%s: %d damaged lines were passed over; what they said is found again", s.path, damaged))
	}
	s.file, err = appendAt(s.path, int64(whole), int64(len(content)))
	return s, err
}

func readStore(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("earlier findings cannot be read: %w", err)
	case !info.Mode().IsRegular() || info.Size() > maxStore:
		return nil, fmt.Errorf("%s is no file of findings; move it away", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("earlier findings cannot be read: %w", err)
	}
	return content, nil
}

// appendAt opens a file for appending after its first whole bytes of size.
func appendAt(path string, whole, size int64) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err == nil && whole < size {
		err = file.Truncate(whole)
	}
	if err != nil {
		return nil, fmt.Errorf("findings cannot be kept: %w", err)
	}
	return file, nil
}

// keep appends entries.
func (s *findings) keep(entries []entry) error {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	for _, e := range entries {
		if err := encoder.Encode(e); err != nil {
			return fmt.Errorf("what %s found cannot be kept: %w", e.By, err)
		}
	}
	if _, err := s.file.Write(out.Bytes()); err != nil {
		return fmt.Errorf("findings cannot be kept: %w", err)
	}
	for _, e := range entries {
		s.have[key{e.Picture, e.By, e.Of}] = e
	}
	return nil
}

func (s *findings) close() error { return s.file.Close() }
