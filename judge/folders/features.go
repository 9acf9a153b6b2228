package folders

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
)

const featuresFolder = "features"

// Features are the vectors that a network makes of pictures, in a file that further ones are appended to. The file begins
// with a line that names the network and their length; a record is the key of the picture, a SHA-256, the numbers as
// float32, and a CRC-32 of both.
type Features struct {
	width int
	file  *os.File
	have  map[string][]float32
}

type featuresHeader struct {
	By    string `json:"by"`
	Width int    `json:"width"`
}

// openFeatures opens the file of a network in the folder of a job.
func openFeatures(dir, by string, width int) (*Features, error) {
	folder := filepath.Join(dir, featuresFolder)
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("features cannot be kept: %w", err)
	}
	return OpenFeatures(filepath.Join(folder, fmt.Sprintf("%08x.bin", crc32.ChecksumIEEE([]byte(by)))), by, width)
}

// OpenFeatures reads what a network made of pictures before, see [ReadFeatures], and opens the file for more. What follows
// the first damaged record is cut off, and so is all that another network made.
func OpenFeatures(path, by string, width int) (*Features, error) {
	s := &Features{width: width}
	content, err := readStore(path)
	if err != nil {
		return nil, err
	}
	header, err := s.header(by)
	if err != nil {
		return nil, err
	}
	whole := s.parse(content, header)
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

// ReadFeatures reads the vectors of a file by their keys, in hexadecimal, up to the first damaged record. There are none
// where there is no file, or another network's.
func ReadFeatures(path, by string, width int) (map[string][]float32, error) {
	s := &Features{width: width}
	content, err := readStore(path)
	if err != nil {
		return nil, err
	}
	header, err := s.header(by)
	s.parse(content, header)
	return s.have, err
}

func (s *Features) header(by string) ([]byte, error) {
	header, err := json.Marshal(featuresHeader{by, s.width})
	return append(header, '\n'), err
}

// parse reads the whole records of a file, and returns how many bytes they have with the header.
func (s *Features) parse(content, header []byte) (whole int) {
	s.have = map[string][]float32{}
	if !bytes.HasPrefix(content, header) {
		return 0
	}
	whole = len(header)
	for size := s.record(); len(content)-whole >= size; whole += size {
		record := content[whole : whole+size]
		body := record[:size-4]
		if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(record[size-4:]) {
			break
		}
		values := make([]float32, s.width)
		for i := range values {
			values[i] = math.Float32frombits(binary.LittleEndian.Uint32(body[32+4*i:]))
		}
		s.have[hex.EncodeToString(body[:32])] = values
	}
	return whole
}

func (s *Features) record() int { return 32 + 4*s.width + 4 }

// Of is the vector of a key; nil where there is none.
func (s *Features) Of(key string) []float32 { return s.have[key] }

// Keep appends the vectors of pictures with the given keys, each a SHA-256 in hexadecimal.
func (s *Features) Keep(keys []string, vectors [][]float32) error {
	out := make([]byte, 0, len(keys)*s.record())
	for i, key := range keys {
		if len(vectors[i]) != s.width {
			return fmt.Errorf("a picture has %d features instead of %d", len(vectors[i]), s.width)
		}
		binaryKey, err := hex.DecodeString(key)
		if err != nil || len(binaryKey) != 32 {
			return fmt.Errorf("%q is no hash of a picture", key)
		}
		start := len(out)
		out = append(out, binaryKey...)
		for _, v := range vectors[i] {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return fmt.Errorf("a picture has a feature that is not a finite number; the network's weights are damaged")
			}
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
		out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(out[start:]))
	}
	if _, err := s.file.Write(out); err != nil {
		return fmt.Errorf("features cannot be kept: %w", err)
	}
	for i, key := range keys {
		s.have[key] = append([]float32(nil), vectors[i]...)
	}
	return nil
}

// Close closes the file.
func (s *Features) Close() error { return s.file.Close() }
