package jpeg

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// referenceVariable names a folder that scripts/check_jpeg.py made; the script sets it.
const referenceVariable = "RESALIGN_JPEG_REFERENCE"

type reference struct {
	Pictures []struct {
		File, About   string
		Width, Height int
		SHA256        string
	}
}

func readReference(t testing.TB, dir string) (r reference) {
	t.Helper()
	if err := json.Unmarshal(read(t, filepath.Join(dir, "pictures.json")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// agree holds the pictures of a folder against the pixels that Pillow found.
func agree(t *testing.T, dir string) int {
	pictures := readReference(t, dir).Pictures
	for _, p := range pictures {
		h, got, err := Decode(read(t, filepath.Join(dir, p.File)))
		if p.SHA256 == "" { // Pillow refuses it
			if err == nil {
				t.Errorf("%s (%s): decoded", p.File, p.About)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s (%s): %v", p.File, p.About, err)
			continue
		}
		if h.Width != p.Width || h.Height != p.Height || len(got) != 3*p.Width*p.Height {
			t.Errorf("%s (%s): %d×%d, want %d×%d", p.File, p.About, h.Width, h.Height, p.Width, p.Height)
			continue
		}
		if sum := sha256.Sum256(got); hex.EncodeToString(sum[:]) != p.SHA256 {
			t.Errorf("%s (%s): pixels differ%s", p.File, p.About, difference(dir, p.File, got))
		}
	}
	return len(pictures)
}

// difference tells by how much pixels differ where the folder holds Pillow's.
func difference(dir, file string, got []uint8) string {
	want, err := os.ReadFile(filepath.Join(dir, file[:len(file)-len(".jpg")]+".rgb"))
	if err != nil || len(want) != len(got) {
		return ""
	}
	worst, count, first := 0, 0, -1
	for i := range got {
		d := max(int(got[i])-int(want[i]), int(want[i])-int(got[i]))
		if worst = max(worst, d); d > 0 {
			if count++; first < 0 {
				first = i
			}
		}
	}
	out, _ := json.Marshal(map[string]int{"worst": worst, "count": count, "of": len(got), "first": first})
	return ": " + string(bytes.TrimSpace(out))
}

func TestPixelsAreThoseOfPillow(t *testing.T) {
	if n := agree(t, "testdata"); n < 45 {
		t.Errorf("only %d pictures", n)
	}
}

func TestReference(t *testing.T) {
	dir := os.Getenv(referenceVariable)
	if dir == "" {
		t.Skipf("scripts/check_jpeg.py sets %s", referenceVariable)
	}
	t.Logf("%d pictures held against Pillow's", agree(t, dir))
}
