package score

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/resalign/resalign/files"
)

const (
	maxFeatures   = 8192 // of statistics that are read; Inception has 2048
	maxNPZ        = 1 << 30
	maxNPYHeader  = 1 << 16
	deflateLimit  = 1032 // what deflate can shrink at most
	npyMagic      = "\x93NUMPY"
	npyAlignment  = 64
	meanName      = "mu"
	covarianceNPY = "sigma"
)

// WriteStatistics stores statistics as the .npz file path, with the arrays mu [n] and sigma [n, n] in float64: what
// pytorch-fid reads in place of a folder.
func WriteStatistics(path string, s Statistics) error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("%s was not written: %w", path, err)
	}
	n := len(s.Mean)
	return files.Write(path, func(w io.Writer) error {
		archive := zip.NewWriter(w)
		for _, a := range []struct {
			name   string
			shape  string
			values []float64
		}{{meanName, fmt.Sprintf("(%d,)", n), s.Mean}, {covarianceNPY, fmt.Sprintf("(%d, %d)", n, n), s.Covariance}} {
			entry, err := archive.CreateHeader(&zip.FileHeader{Name: a.name + ".npy", Method: zip.Store}) // random digits do not shrink
			if err != nil {
				return err
			}
			if err := writeNPY(entry, a.shape, a.values); err != nil {
				return err
			}
		}
		return archive.Close()
	})
}

// writeNPY writes an array in version 1.0 of NumPy's format.
func writeNPY(w io.Writer, shape string, values []float64) error {
	header := fmt.Sprintf("{'descr': '<f8', 'fortran_order': False, 'shape': %s, }", shape)
	before := len(npyMagic) + 4
	header += strings.Repeat(" ", npyAlignment-1-(before+len(header))%npyAlignment) + "\n"
	head := append([]byte(npyMagic), 1, 0)
	head = binary.LittleEndian.AppendUint16(head, uint16(len(header)))
	if _, err := w.Write(append(head, header...)); err != nil {
		return err
	}
	return binary.Write(w, binary.LittleEndian, values)
}

// ReadStatistics reads a .npz file with mu [n] and sigma [n, n], as pytorch-fid and [WriteStatistics] write it, in float64
// or float32. Nothing in it is executed, and nothing larger than the file justifies is allocated.
func ReadStatistics(path string) (Statistics, error) {
	fail := func(format string, args ...any) (Statistics, error) {
		return Statistics{}, fmt.Errorf("%s: %w; take a .npz that pytorch-fid or resalign score wrote", path, fmt.Errorf(format, args...))
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return Statistics{}, fmt.Errorf("the statistics cannot be read: %w", err)
	case !info.Mode().IsRegular():
		return fail("it is not a regular file")
	case info.Size() > maxNPZ:
		return fail("it has %d bytes, more than the %d that statistics can have", info.Size(), maxNPZ)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return Statistics{}, fmt.Errorf("the statistics cannot be read: %w", err)
	}
	s, err := parseStatistics(content)
	if err != nil {
		return fail("%w", err)
	}
	return s, nil
}

func parseStatistics(content []byte) (Statistics, error) {
	archive, err := zip.NewReader(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		return Statistics{}, fmt.Errorf("it is no .npz archive (%w)", err)
	}
	var s Statistics
	mean, shape, err := readArray(archive, meanName, len(content))
	if err != nil {
		return s, err
	}
	if len(shape) != 1 {
		return s, fmt.Errorf("the array mu is %v, not a vector", shape)
	}
	s.Mean = mean
	s.Covariance, shape, err = readArray(archive, covarianceNPY, len(content))
	if err != nil {
		return s, err
	}
	if len(shape) != 2 || shape[0] != len(mean) || shape[1] != len(mean) {
		return s, fmt.Errorf("the array sigma is %v, but mu has %d numbers", shape, len(mean))
	}
	return s, s.validate()
}

// readArray reads one array of an archive of size bytes.
func readArray(archive *zip.Reader, name string, size int) (values []float64, shape []int, err error) {
	var entry *zip.File
	for _, f := range archive.File {
		if f.Name == name+".npy" {
			if entry != nil {
				return nil, nil, fmt.Errorf("it holds the array %s twice", name)
			}
			entry = f
		}
	}
	if entry == nil {
		return nil, nil, fmt.Errorf("it has no array %s", name)
	}
	if packed := entry.CompressedSize64; packed > uint64(size) || entry.UncompressedSize64 > deflateLimit*packed+1024 {
		return nil, nil, fmt.Errorf("the array %s claims %d bytes in %d, which cannot be", name, entry.UncompressedSize64, packed)
	}
	r, err := entry.Open()
	if err != nil {
		return nil, nil, fmt.Errorf("the array %s cannot be unpacked: %w", name, err)
	}
	defer r.Close()
	values, shape, err = readNPY(r, entry.UncompressedSize64)
	if err != nil {
		return nil, nil, fmt.Errorf("the array %s: %w", name, err)
	}
	return values, shape, nil
}

var (
	npyDescr   = regexp.MustCompile(`'descr'\s*:\s*'([^']*)'`)
	npyFortran = regexp.MustCompile(`'fortran_order'\s*:\s*(True|False)`)
	npyShape   = regexp.MustCompile(`'shape'\s*:\s*\(([0-9, ]*)\)`)
)

// readNPY reads an array of floating-point numbers from a .npy stream of size bytes.
func readNPY(r io.Reader, size uint64) (values []float64, shape []int, err error) {
	head := make([]byte, len(npyMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:len(npyMagic)]) != npyMagic {
		return nil, nil, errors.New("it does not begin as NumPy's format does")
	}
	length := uint64(binary.LittleEndian.Uint16(head[8:]))
	read := uint64(len(head))
	switch version := head[6]; version {
	case 1:
	case 2, 3: // a longer length
		rest := make([]byte, 2)
		if _, err := io.ReadFull(r, rest); err != nil {
			return nil, nil, errors.New("the header is truncated")
		}
		read += 2
		length |= uint64(binary.LittleEndian.Uint16(rest)) << 16
	default:
		return nil, nil, fmt.Errorf("version %d of NumPy's format is not known", version)
	}
	if length > maxNPYHeader {
		return nil, nil, fmt.Errorf("the header has %d bytes, more than the %d allowed", length, maxNPYHeader)
	}
	header := make([]byte, length)
	if _, err := io.ReadFull(r, header); err != nil {
		return nil, nil, errors.New("the header is truncated")
	}
	read += length
	descr, fortran, shapeText := npyDescr.FindSubmatch(header), npyFortran.FindSubmatch(header), npyShape.FindSubmatch(header)
	if descr == nil || fortran == nil || shapeText == nil {
		return nil, nil, fmt.Errorf("the header %q lacks descr, fortran_order or shape", bytes.TrimSpace(header[:min(len(header), 200)]))
	}
	count := uint64(1)
	for text := range strings.SplitSeq(string(shapeText[1]), ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		d, err := strconv.Atoi(text)
		if err != nil || d < 1 || d > maxFeatures || len(shape) == 2 {
			return nil, nil, fmt.Errorf("the shape (%s) is not that of a mean or a covariance of at most %d features", shapeText[1], maxFeatures)
		}
		shape = append(shape, d)
		count *= uint64(d)
	}
	width, order, ok := npyType(string(descr[1]))
	if !ok {
		return nil, nil, fmt.Errorf("its numbers are of type %q, but must be float64 or float32", descr[1])
	}
	if count*width != size-read {
		return nil, nil, fmt.Errorf("%d numbers of %d bytes do not fill its %d bytes", count, width, size-read)
	}
	content, err := io.ReadAll(io.LimitReader(r, int64(size-read)+1)) // one more: the end is where the checksum is compared
	if err != nil {
		return nil, nil, fmt.Errorf("it cannot be unpacked: %w", err)
	}
	if uint64(len(content)) != size-read {
		return nil, nil, fmt.Errorf("it has %d bytes of numbers instead of %d", len(content), size-read)
	}
	values = make([]float64, count)
	for i := range values {
		if width == 8 {
			values[i] = math.Float64frombits(order.Uint64(content[8*i:]))
		} else {
			values[i] = float64(math.Float32frombits(order.Uint32(content[4*i:])))
		}
	}
	if string(fortran[1]) == "True" && len(shape) == 2 { // column by column
		transposed := make([]float64, count)
		for i := range shape[0] {
			for j := range shape[1] {
				transposed[i*shape[1]+j] = values[j*shape[0]+i]
			}
		}
		values = transposed
	}
	return values, shape, nil
}

// npyType gives the bytes of a number and their order.
func npyType(descr string) (width uint64, order binary.ByteOrder, ok bool) {
	switch descr {
	case "<f8":
		return 8, binary.LittleEndian, true
	case ">f8":
		return 8, binary.BigEndian, true
	case "<f4":
		return 4, binary.LittleEndian, true
	case ">f4":
		return 4, binary.BigEndian, true
	}
	return 0, nil, false
}
