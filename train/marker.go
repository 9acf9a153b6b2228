package train

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// marker is the content of complete.json, which makes a folder a checkpoint.
type marker struct {
	Step  int          `json:"step"`
	Files []markedFile `json:"files"`
}

type markedFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// maxMarkerBytes is far above the few hundred bytes of a marker.
const maxMarkerBytes = 1 << 16

// makeMarker describes the files as they are on the disk, read back.
func makeMarker(dir string, step int) ([]byte, error) {
	m := marker{Step: step}
	for _, name := range []string{tensorsFile, stateFile} {
		size, sum, err := hashFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		m.Files = append(m.Files, markedFile{name, size, sum})
	}
	data, err := json.MarshalIndent(m, "", "  ")
	return append(data, '\n'), err
}

// verify says why the folder at path is no complete checkpoint of the step. Contents are compared only when asked for,
// as that reads the whole checkpoint.
func verify(path string, step int, contents bool) error {
	data, err := readSmall(filepath.Join(path, markerFile), maxMarkerBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing: the checkpoint was not completed", markerFile)
	}
	if err != nil {
		return err
	}
	var m marker
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return fmt.Errorf("%s is damaged: %w", markerFile, err)
	}
	if m.Step != step {
		return fmt.Errorf("%s is of step %d, the folder of step %d", markerFile, m.Step, step)
	}
	if len(m.Files) != 2 || m.Files[0].Name != tensorsFile || m.Files[1].Name != stateFile {
		return fmt.Errorf("%s does not list exactly %s and %s", markerFile, tensorsFile, stateFile)
	}
	for _, file := range m.Files {
		info, err := os.Lstat(filepath.Join(path, file.Name))
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Size() != file.Size {
			return fmt.Errorf("%s has %d bytes, %s says %d", file.Name, info.Size(), markerFile, file.Size)
		}
	}
	if !contents {
		return nil
	}
	for _, file := range m.Files {
		_, sum, err := hashFile(filepath.Join(path, file.Name))
		if err != nil {
			return err
		}
		if sum != file.SHA256 {
			return fmt.Errorf("%s is damaged: its SHA-256 differs from the one in %s", file.Name, markerFile)
		}
	}
	return nil
}

func hashFile(path string) (size int64, sum string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.CopyBuffer(h, f, make([]byte, 1<<20))
	return size, hex.EncodeToString(h.Sum(nil)), err
}
