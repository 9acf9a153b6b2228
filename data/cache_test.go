package data

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// counted returns a computation of values and how often it ran.
func counted(values ...float32) (func() ([]float32, error), *atomic.Int32) {
	var n atomic.Int32
	return func() ([]float32, error) { n.Add(1); return values, nil }, &n
}

func openCache(t *testing.T, dir string, memory int64) (*Cache, *[]string) {
	t.Helper()
	notes := &[]string{}
	c, err := OpenCache(dir, memory, func(note string) { *notes = append(*notes, note) })
	if err != nil {
		t.Fatal(err)
	}
	return c, notes
}

func TestCacheComputesOnce(t *testing.T) {
	key := NewKey("vae moments", "picture", "model", "512")
	for name, c := range map[string]struct {
		dir    string
		memory int64
	}{"memory": {"", 1 << 20}, "disk": {t.TempDir(), 0}, "both": {t.TempDir(), 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			cache, notes := openCache(t, c.dir, c.memory)
			compute, n := counted(1, -2, 3, 4, 5, math.MaxFloat32)
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					if got, err := cache.GetOrCompute(key, []int{2, 3}, compute); err != nil || !slices.Equal(got, []float32{1, -2, 3, 4, 5, math.MaxFloat32}) {
						t.Errorf("got %v, %v", got, err)
					}
				})
			}
			group.Wait()
			if c.dir != "" { // another process
				again, _ := openCache(t, c.dir, 0)
				if _, err := again.GetOrCompute(key, []int{2, 3}, compute); err != nil {
					t.Error(err)
				}
			}
			if n.Load() != 1 || len(*notes) != 0 {
				t.Errorf("computed %d times, notes %v", n.Load(), *notes)
			}
		})
	}
}

func TestCacheMemoryIsBounded(t *testing.T) {
	cache, _ := openCache(t, "", 10)
	compute, n := counted(1, 2)
	for _, content := range []string{"a", "b", "a", "b"} { // a takes 8 of 10 bytes, b has no room
		if _, err := cache.GetOrCompute(NewKey("x", content, "", ""), []int{2}, compute); err != nil {
			t.Fatal(err)
		}
	}
	if n.Load() != 3 {
		t.Errorf("computed %d times, want 3", n.Load())
	}
}

func TestCacheNoticesDamage(t *testing.T) {
	key := NewKey("text", "prompt", "model", "")
	for name, damage := range map[string]func([]byte) []byte{
		"bit":      func(b []byte) []byte { b[len(b)-40] ^= 1; return b },
		"checksum": func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"short":    func(b []byte) []byte { return b[:len(b)-1] },
		"empty":    func([]byte) []byte { return nil },
		"shape":    func(b []byte) []byte { b[19], b[23] = b[23], b[19]; return b },
	} {
		t.Run(name, func(t *testing.T) {
			cache, notes := openCache(t, t.TempDir(), 0)
			compute, n := counted(1, 2, 3, 4, 5, 6)
			get := func() {
				t.Helper()
				if got, err := cache.GetOrCompute(key, []int{2, 3}, compute); err != nil || !slices.Equal(got, []float32{1, 2, 3, 4, 5, 6}) {
					t.Fatalf("got %v, %v", got, err)
				}
			}
			get()
			content, err := os.ReadFile(cache.path(key))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(cache.path(key), damage(content), 0o644); err != nil {
				t.Fatal(err)
			}
			get()
			get()
			if n.Load() != 2 || len(*notes) != 1 || !strings.Contains((*notes)[0], "damaged") {
				t.Errorf("computed %d times, notes %v", n.Load(), *notes)
			}
		})
	}
}

func TestCacheErrors(t *testing.T) {
	dir := t.TempDir()
	cache, _ := openCache(t, dir, 1<<20)
	key := NewKey("x", "", "", "")
	failed := errors.New("no model")
	if _, err := cache.GetOrCompute(key, []int{1}, func() ([]float32, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	for _, values := range [][]float32{{}, {1, 2}, {float32(math.NaN())}, {float32(math.Inf(1))}} {
		compute, _ := counted(values...)
		if _, err := cache.GetOrCompute(key, []int{1}, compute); err == nil {
			t.Errorf("%v is accepted for shape [1]", values)
		}
	}
	compute, _ := counted(1)
	for _, shape := range [][]int{{0}, {-1}, {1 << 20, 1 << 20}} {
		if _, err := cache.GetOrCompute(key, shape, compute); err == nil {
			t.Errorf("shape %v is accepted", shape)
		}
	}
	if got, err := cache.GetOrCompute(key, []int{1}, compute); err != nil || got[0] != 1 { // failures leave nothing behind
		t.Errorf("got %v, %v", got, err)
	}
	write(t, dir, "file", "")
	if _, err := OpenCache(filepath.Join(dir, "file"), 0, nil); err == nil {
		t.Error("a file is accepted as cache folder")
	}
}

func TestKeysTellTheirPartsApart(t *testing.T) {
	seen := map[Key]bool{}
	for _, k := range [][4]string{{"a", "b", "c", "d"}, {"ab", "", "c", "d"}, {"", "ab", "c", "d"}, {"a", "b", "cd", ""}} {
		key := NewKey(k[0], k[1], k[2], k[3])
		if seen[key] {
			t.Errorf("%v has the key of another", k)
		}
		seen[key] = true
	}
}
