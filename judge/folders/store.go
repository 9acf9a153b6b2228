package folders

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/resalign/resalign/score"
)

const (
	findingsFile   = "findings.jsonl"
	featuresFolder = "features"
	maxStore       = 1 << 32 // bytes of a file of findings
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

// features are the vectors that a network makes of pictures. The file begins with a line that names the network and their
// length; a record is the hash of the picture, the numbers as float32, and a CRC-32 of both.
type features struct {
	width int
	file  *os.File
	have  map[string][]float32
}

type featuresHeader struct {
	By    string `json:"by"`
	Width int    `json:"width"`
}

// openFeatures reads what a network made of pictures before. What follows the first damaged record is cut off.
func openFeatures(dir, by string, width int) (*features, error) {
	folder := filepath.Join(dir, featuresFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("features cannot be kept: %w", err)
	}
	path := filepath.Join(folder, fmt.Sprintf("%08x.bin", crc32.ChecksumIEEE([]byte(by))))
	content, err := readStore(path)
	if err != nil {
		return nil, err
	}
	s := &features{width: width, have: map[string][]float32{}}
	header, err := json.Marshal(featuresHeader{by, width})
	if err != nil {
		return nil, err
	}
	header = append(header, '\n')
	whole := 0
	if bytes.HasPrefix(content, header) {
		whole = len(header)
		for size := s.record(); len(content)-whole >= size; whole += size {
			record := content[whole : whole+size]
			body := record[:size-4]
			if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(record[size-4:]) {
				break
			}
			values := make([]float32, width)
			for i := range values {
				values[i] = math.Float32frombits(binary.LittleEndian.Uint32(body[32+4*i:]))
			}
			s.have[hex.EncodeToString(body[:32])] = values
		}
	}
	if s.file, err = appendAt(path, int64(whole), int64(len(content))); err != nil {
		return nil, err
	}
	if whole == 0 {
		if _, err := s.file.Write(header); err != nil {
			return nil, errors.Join(fmt.Errorf("features cannot be kept: %w", err), s.file.Close())
		}
	}
	return s, nil
}

func (s *features) record() int { return 32 + 4*s.width + 4 }

// keep appends the vectors of pictures with the given hashes.
func (s *features) keep(hashes []string, vectors [][]float32) error {
	out := make([]byte, 0, len(hashes)*s.record())
	for i, hash := range hashes {
		if len(vectors[i]) != s.width {
			return fmt.Errorf("a picture has %d features instead of %d", len(vectors[i]), s.width)
		}
		binaryHash, err := hex.DecodeString(hash)
		if err != nil || len(binaryHash) != 32 {
			return fmt.Errorf("%q is no hash of a picture", hash)
		}
		start := len(out)
		out = append(out, binaryHash...)
		for _, v := range vectors[i] {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
		out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(out[start:]))
	}
	if _, err := s.file.Write(out); err != nil {
		return fmt.Errorf("features cannot be kept: %w", err)
	}
	for i, hash := range hashes {
		s.have[hash] = append([]float32(nil), vectors[i]...)
	}
	return nil
}

func (s *features) close() error { return s.file.Close() }
