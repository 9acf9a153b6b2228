package jpeg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

const (
	baseline    = "testdata/420-17x33.jpg" // sequential in one scan
	progressive = "testdata/420-7x13.jpg"
)

func TestHeader(t *testing.T) {
	for _, c := range []struct {
		file string
		want Header
	}{
		{baseline, Header{17, 33, 3, false}},
		{progressive, Header{7, 13, 3, true}},
		{"testdata/cmyk-baseline.jpg", Header{19, 23, 4, false}},
		{"testdata/gray-progressive.jpg", Header{19, 23, 1, true}},
	} {
		got, err := ReadHeader(read(t, c.file))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.file, got, err, c.want)
		}
	}
}

// at returns where a segment's body begins.
func at(t *testing.T, file []byte, marker byte) int {
	t.Helper()
	i := bytes.Index(file, []byte{0xff, marker})
	if i < 0 {
		t.Fatalf("no marker %#x", marker)
	}
	return i + 4
}

// without removes a segment.
func without(t *testing.T, file []byte, marker byte) []byte {
	i := at(t, file, marker)
	end := i - 2 + int(binary.BigEndian.Uint16(file[i-2:]))
	return append(bytes.Clone(file[:i-4]), file[end:]...)
}

// with changes bytes relative to the body of a segment.
func with(t *testing.T, file []byte, marker byte, offset int, change ...byte) []byte {
	file = bytes.Clone(file)
	copy(file[at(t, file, marker)+offset:], change)
	return file
}

func TestRefused(t *testing.T) {
	sound, passes, restarts := read(t, baseline), read(t, progressive), read(t, "testdata/restart-baseline.jpg")
	picture := at(t, sound, markerSOS) + 10 // where the picture data begins
	lastScan := bytes.LastIndex(passes, []byte{0xff, markerSOS})
	end := []byte{0xff, markerEOI}
	for _, c := range []struct {
		name string
		file []byte
		want string
	}{
		{"empty", nil, "no JPEG"},
		{"only a signature", sound[:2], "truncated"},
		{"no picture", append(bytes.Clone(sound[:2]), end...), "no picture"},
		{"end in a segment", sound[:30], "truncated"},
		{"end in the picture", sound[:picture+40], "truncated"},
		{"no end marker", sound[:len(sound)-2], "truncated"},
		{"half the picture, then its end", append(bytes.Clone(sound[:picture+40]), end...), "ends early"},
		{"a scan less", append(bytes.Clone(passes[:lastScan]), end...), "scans of its progressive picture are missing"},
		{"all detail missing", append(bytes.Clone(read(t, "testdata/411-apart.jpg")[:bytes.LastIndex(read(t, "testdata/411-apart.jpg"), []byte{0xff, markerSOS})]), end...), "never coded"},
		{"a scan twice", append(bytes.Clone(passes[:len(passes)-2]), passes[lastScan:]...), "do not follow"},
		{"the picture twice", append(bytes.Clone(sound[:len(sound)-2]), sound[picture-14:]...), "same component"},
		{"two frames", append(bytes.Clone(sound[:at(t, sound, markerDHT)-4]), sound[at(t, sound, markerSOF0)-4:]...), "two frame headers"},
		{"two pictures", append(bytes.Clone(sound[:len(sound)-2]), sound...), "second picture"},
		{"no Huffman tables", without(t, without(t, without(t, without(t, sound, markerDHT), markerDHT), markerDHT), markerDHT), "Huffman table is missing"},
		{"no quantizers", without(t, without(t, sound, markerDQT), markerDQT), "quantization table is missing"},
		{"no frame", without(t, sound, markerSOF0), "before the frame header"},
		{"no restart marker", bytes.Replace(restarts, []byte{0xff, markerRST0 + 1}, []byte{0xff, markerRST0 + 2}, 1), "restart marker"},
		{"too many codes", append([]byte{0xff, markerSOI, 0xff, markerDHT, 0, 22, 0, 3, 24: 1, 25: 2}, sound[2:]...), "more codes than fit"},
		{"12 bits", with(t, sound, markerSOF0, 0, 12), "12 bits"},
		{"height by DNL", with(t, sound, markerSOF0, 1, 0, 0), "DNL"},
		{"no width", with(t, sound, markerSOF0, 3, 0, 0), "0 pixels"},
		{"huge", with(t, sound, markerSOF0, 1, 0xff, 0xff, 0xff, 0xff), "too few for 65535×65535"},
		{"no sampling", with(t, sound, markerSOF0, 7, 0x02), "sampling factors"},
		{"half samples", with(t, sound, markerSOF0, 7, 0x32, 1, 2, 0x21), "3×2"},
		{"same component", with(t, sound, markerSOF0, 9, 1), "same number"},
		{"arithmetic", with(t, sound, markerSOF0, -3, 0xc9), "arithmetic"},
		{"lossless", with(t, sound, markerSOF0, -3, 0xc3), "lossless"},
		{"hierarchical", with(t, sound, markerSOF0, -3, 0xc5), "hierarchical"},
		{"DNL", append(bytes.Clone(sound[:len(sound)-2]), 0xff, markerDNL, 0, 4, 0, 9), "DNL"},
		{"foreign component", with(t, sound, markerSOS, 1, 9), "does not have"},
		{"twice in a scan", with(t, sound, markerSOS, 3, 1), "twice"},
		{"spectral band upside down", with(t, passes, markerSOS, 7, 5, 2), "impossible parameters"},
		{"too many scans", manyScans(), "more than 500 scans"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Decode(c.file)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if c.want == "truncated" && !errors.Is(err, ErrTruncated) {
				t.Errorf("%v is not ErrTruncated", err)
			}
		})
	}
}

// manyScans is a progressive picture of one gray block that codes every bit of every coefficient in a scan of its own.
func manyScans() []byte {
	file := []byte{0xff, markerSOI, 0xff, markerDQT, 0, 67, 66 + 4: 0, 0xff, markerSOF2, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0}
	for _, class := range []byte{0x00, 0x10} { // the code 0 means a difference of 0, or the end of the block
		file = append(file, append([]byte{0xff, markerDHT, 0, 20, class, 1}, make([]byte, 16)...)...)
	}
	for k := range byte(64) {
		for low := byte(13); low < 14; low-- { // wraps behind 0
			already := (low + 1) % 14
			file = append(file, 0xff, markerSOS, 0, 8, 1, 1, 0, k, k, already<<4|low, 0x7f)
		}
	}
	return append(file, 0xff, markerEOI)
}

func TestComponentCounts(t *testing.T) {
	frame := func(count byte) []byte {
		file := []byte{0xff, markerSOI, 0xff, markerSOF0, 0, 8 + 3*count, 8, 0, 8, 0, 8, count}
		for i := range count {
			file = append(file, i, 0x11, 0)
		}
		return file
	}
	for count, supported := range map[byte]bool{0: false, 1: true, 2: false, 3: true, 4: true, 5: false} {
		if _, err := ReadHeader(frame(count)); (err == nil) != supported {
			t.Errorf("%d components: %v", count, err)
		}
	}
}

// Every beginning of a file is refused, and no change of a single byte makes the decoder panic or the picture another size.
func TestDamaged(t *testing.T) {
	for _, path := range []string{baseline, progressive} {
		file := read(t, path)
		for n := range file {
			if _, _, err := Decode(file[:n]); err == nil {
				t.Errorf("the first %d of %d bytes were decoded", n, len(file))
			}
		}
		for i := range file {
			damaged := bytes.Clone(file)
			damaged[i] ^= 1 << (i % 8)
			if h, pixels, err := Decode(damaged); err == nil && len(pixels) != 3*h.Width*h.Height {
				t.Errorf("byte %d: %+v with %d bytes", i, h, len(pixels))
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.jpg")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		f.Add(read(f, path))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		h, pixels, err := Decode(file)
		if err == nil && (h.Width <= 0 || h.Height <= 0 || len(pixels) != 3*h.Width*h.Height) {
			t.Errorf("%+v with %d bytes", h, len(pixels))
		}
	})
}
