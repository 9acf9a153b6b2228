package nudenet

import (
	"archive/zip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/resalign/resalign/onnx"
)

// A wheel is not unpacked beyond these: weights hardly compress, so much more than the file has is a trap.
const (
	maxUnpacked = 1 << 30
	maxRatio    = 16
)

// read finds the network: an .onnx file, or the one in a wheel or a folder. It returns its name and the beginning of the
// SHA-256 of its content too.
func read(file string) (m *onnx.Model, name, version string, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, "", "", fmt.Errorf("NudeNet: %w; name its .onnx file, such as 320n.onnx, or the wheel of the package nudenet", err)
	}
	var content []byte
	switch {
	case info.IsDir():
		file, err = inFolder(file)
		if err == nil {
			content, err = readFile(file)
		}
		name = filepath.Base(file)
	case strings.EqualFold(filepath.Ext(file), ".whl"):
		content, name, err = inWheel(file, info.Size())
		file = file + ":" + name
		name = path.Base(name)
	default:
		content, err = readFile(file)
		name = filepath.Base(file)
	}
	if err != nil {
		return nil, "", "", err
	}
	if m, err = onnx.Parse(content, file); err != nil {
		return nil, "", "", err
	}
	return m, name, fmt.Sprintf("%x", sha256.Sum256(content))[:12], nil
}

func readFile(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("NudeNet: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("NudeNet: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxUnpacked {
		return nil, fmt.Errorf("%s is no file of at most %d bytes; name an .onnx file such as 320n.onnx", file, maxUnpacked)
	}
	content := make([]byte, info.Size())
	if _, err := io.ReadFull(f, content); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return content, nil
}

// inFolder finds the only .onnx file of a folder.
func inFolder(folder string) (string, error) {
	found, err := filepath.Glob(filepath.Join(escape(folder), "*.onnx"))
	switch {
	case err != nil:
		return "", fmt.Errorf("NudeNet: %s: %w", folder, err)
	case len(found) != 1:
		return "", fmt.Errorf("the folder %s has %d .onnx files instead of one; name the file", folder, len(found))
	}
	return found[0], nil
}

// escape takes the characters of a path for themselves in a pattern.
func escape(folder string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(folder)
}

// inWheel unpacks the only .onnx file of a wheel, which is a zip archive.
func inWheel(wheel string, size int64) ([]byte, string, error) {
	archive, err := zip.OpenReader(wheel)
	if err != nil {
		return nil, "", fmt.Errorf("%s is not a wheel: %w; download it again with `pip download nudenet`", wheel, err)
	}
	defer archive.Close()
	var found *zip.File
	for _, f := range archive.File {
		if path.Ext(f.Name) != ".onnx" {
			continue
		}
		if found != nil {
			return nil, "", fmt.Errorf("%s has several .onnx files, %q and %q; unpack it and name one", wheel, found.Name, f.Name)
		}
		found = f
	}
	if found == nil {
		return nil, "", fmt.Errorf("%s has no .onnx file; name the wheel of the package nudenet, or an .onnx file", wheel)
	}
	limit := min(size*maxRatio, maxUnpacked)
	f, err := found.Open()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %s: %w", wheel, found.Name, err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("%s: %s cannot be unpacked: %w; download the wheel again", wheel, found.Name, err)
	case int64(len(content)) > limit:
		return nil, "", fmt.Errorf("%s: %s unpacks to more than %d bytes, which weights do not; download the wheel again", wheel, found.Name, limit)
	}
	return content, found.Name, nil
}
