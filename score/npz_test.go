package score

import (
	"archive/zip"
	"bytes"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The files in testdata were written by NumPy: packed in float64, and column by column in float32 of either byte order.
func TestReadStatisticsOfNumPy(t *testing.T) {
	want := moments(t, drawFeatures("x npz", 50, 8))
	for file, tolerance := range map[string]float64{"compressed.npz": 1e-14, "fortran-float32.npz": 1e-7} {
		got, err := ReadStatistics(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range [][2][]float64{{got.Mean, want.Mean}, {got.Covariance, want.Covariance}} {
			if len(pair[0]) != len(pair[1]) {
				t.Fatalf("%s: %d numbers instead of %d", file, len(pair[0]), len(pair[1]))
			}
			for i, v := range pair[0] {
				if math.Abs(v-pair[1][i]) > tolerance {
					t.Errorf("%s: %v instead of %v", file, v, pair[1][i])
				}
			}
		}
	}
}

func TestStatisticsRoundTrip(t *testing.T) {
	want := moments(t, drawFeatures("round trip", 20, 5))
	path := filepath.Join(t.TempDir(), "statistics.npz")
	if err := WriteStatistics(path, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadStatistics(path)
	if err != nil || !slices.Equal(got.Mean, want.Mean) || !slices.Equal(got.Covariance, want.Covariance) {
		t.Errorf("%v instead of %v, %v", got, want, err)
	}
	again := filepath.Join(t.TempDir(), "again.npz")
	if err := WriteStatistics(again, got); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(path)
	b, _ := os.ReadFile(again)
	if len(a) == 0 || !bytes.Equal(a, b) {
		t.Error("the same statistics give other bytes")
	}
	if err := WriteStatistics(again, Statistics{Mean: []float64{1}}); err == nil {
		t.Error("half of the statistics were written")
	}
}

// npy is an array with any header.
func npy(header string, numbers int) []byte {
	out := append([]byte(npyMagic), 1, 0, byte(len(header)), byte(len(header)>>8))
	return append(append(out, header...), make([]byte, 8*numbers)...)
}

func npyHeader(descr, shape string) string {
	return fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }\n", descr, shape)
}

func archiveOf(t testing.TB, entries map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for name, content := range entries {
		e, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestReadStatisticsRefuses(t *testing.T) {
	mean, covariance := npy(npyHeader("<f8", "2,"), 2), npy(npyHeader("<f8", "2, 2"), 4)
	good := archiveOf(t, map[string][]byte{"mu.npy": mean, "sigma.npy": covariance})
	if _, err := parseStatistics(good); err != nil {
		t.Fatal(err)
	}
	var bomb bytes.Buffer // an entry that claims far more than it has
	w := zip.NewWriter(&bomb)
	e, err := w.CreateRaw(&zip.FileHeader{
		Name: "mu.npy", Method: zip.Deflate, CRC32: crc32.ChecksumIEEE(nil), CompressedSize64: 10, UncompressedSize64: 1 << 40,
	})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(e, "0123456789")
	w.Close()
	for want, content := range map[string][]byte{
		"no .npz archive":    []byte("\x93NUMPY"),
		"no array sigma":     archiveOf(t, map[string][]byte{"mu.npy": mean}),
		"no array mu":        archiveOf(t, map[string][]byte{"sigma.npy": covariance}),
		"which cannot be":    bomb.Bytes(),
		"not a vector":       archiveOf(t, map[string][]byte{"mu.npy": covariance, "sigma.npy": covariance}),
		"but mu has 3":       archiveOf(t, map[string][]byte{"mu.npy": npy(npyHeader("<f8", "3,"), 3), "sigma.npy": covariance}),
		"of type \"|O\"":     archiveOf(t, map[string][]byte{"mu.npy": npy(npyHeader("|O", "2,"), 2), "sigma.npy": covariance}),
		"do not fill":        archiveOf(t, map[string][]byte{"mu.npy": npy(npyHeader("<f8", "8000, 8000"), 2), "sigma.npy": covariance}),
		"is not that of":     archiveOf(t, map[string][]byte{"mu.npy": npy(npyHeader("<f8", "99999999999999999999,"), 2), "sigma.npy": covariance}),
		"lacks descr":        archiveOf(t, map[string][]byte{"mu.npy": npy("{}", 2), "sigma.npy": covariance}),
		"does not begin":     archiveOf(t, map[string][]byte{"mu.npy": []byte("\x80\x02cos\nsystem"), "sigma.npy": covariance}),
		"header is truncat":  archiveOf(t, map[string][]byte{"mu.npy": mean[:20], "sigma.npy": covariance}),
		"version 9 of NumPy": archiveOf(t, map[string][]byte{"mu.npy": append([]byte(npyMagic), 9, 0, 0, 0), "sigma.npy": covariance}),
	} {
		if _, err := parseStatistics(content); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	damaged := bytes.Clone(good)
	damaged[len(damaged)/3] ^= 1
	if _, err := parseStatistics(damaged); err == nil {
		t.Error("a damaged archive is read")
	}
	path := filepath.Join(t.TempDir(), "none.npz")
	if _, err := ReadStatistics(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := ReadStatistics(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a folder: %v", err)
	}
}

func FuzzParseStatistics(f *testing.F) {
	for _, file := range []string{"compressed.npz", "fortran-float32.npz"} {
		content, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(content)
	}
	f.Add(archiveOf(f, map[string][]byte{"mu.npy": npy(npyHeader("<f8", "1,"), 1), "sigma.npy": npy(npyHeader("<f8", "1, 1"), 1)}))
	f.Fuzz(func(t *testing.T, content []byte) {
		if s, err := parseStatistics(content); err == nil && len(s.Covariance) != len(s.Mean)*len(s.Mean) {
			t.Errorf("%d and %d numbers", len(s.Mean), len(s.Covariance))
		}
	})
}

// Arrays themselves, without the checksums of an archive.
func FuzzReadNPY(f *testing.F) {
	f.Add(npy(npyHeader("<f8", "2, 2"), 4))
	f.Add(npy(npyHeader(">f4", "4,"), 2))
	f.Fuzz(func(t *testing.T, content []byte) {
		values, shape, err := readNPY(bytes.NewReader(content), uint64(len(content)))
		if err != nil {
			return
		}
		count := 1
		for _, d := range shape {
			count *= d
		}
		if len(values) != count || len(values) > len(content) {
			t.Errorf("%d values of shape %v in %d bytes", len(values), shape, len(content))
		}
	})
}
