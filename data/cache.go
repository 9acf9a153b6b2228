package data

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/resalign/resalign/files"
)

// Key names a tensor by what it was computed from.
type Key [sha256.Size]byte

// NewKey hashes everything that a cached tensor depends on: kind says what it is ("vae moments", "text embedding"),
// content is the [Folder.ContentHash] of the picture or the prompt, model names the weights that computed it, and
// preprocessing is [Preprocess.String] and whether the picture was flipped.
func NewKey(kind, content, model, preprocessing string) Key {
	h := sha256.New()
	for _, part := range []string{kind, content, model, preprocessing} {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(part)))) // "ab","c" and "a","bc" differ
		h.Write([]byte(part))
	}
	return Key(h.Sum(nil))
}

// String is the key in hexadecimal.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// Cache keeps float32 tensors under the hash of what they were computed from, in memory and in a folder. Entries are
// never wrong, only missing or damaged, and a damaged one is computed again. Several processes may share the folder. It is
// safe for concurrent use; calls for the same key compute once.
type Cache struct {
	dir    string
	log    func(note string)
	budget int64 // bytes the memory layer may still take

	mu     sync.Mutex
	memory map[Key][]float32
	shapes map[Key][]int
	busy   map[Key]chan struct{} // closed when the computation under way ends
}

// OpenCache opens the cache in dir and makes the folder if need be; an empty dir keeps entries in memory only. The memory
// layer holds at most memoryBytes. log, which may be nil, is told about damaged entries.
func OpenCache(dir string, memoryBytes int64, log func(note string)) (*Cache, error) {
	c := &Cache{
		dir: dir, log: log, budget: memoryBytes,
		memory: map[Key][]float32{}, shapes: map[Key][]int{}, busy: map[Key]chan struct{}{},
	}
	if c.log == nil {
		c.log = func(string) {}
	}
	if dir == "" {
		return c, nil
	}
	if err := os.MkdirAll(c.partials(), 0o755); err != nil {
		return nil, fmt.Errorf("the cache folder %s cannot be made: %w; name another", dir, err)
	}
	// A run that was killed while writing leaves a partial file; after a day nobody is writing it any more.
	entries, err := os.ReadDir(c.partials())
	if err != nil {
		return nil, fmt.Errorf("the cache folder %s cannot be listed: %w; name another", dir, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > 24*time.Hour {
			os.Remove(filepath.Join(c.partials(), e.Name()))
		}
	}
	return c, nil
}

// GetOrCompute returns the tensor of the key, from memory, from the folder, or from compute, whose result is kept. The
// result is shared: callers must not change it. Errors come from compute, from a result that has not shape's number of
// values or holds one that is not finite, and from the disk.
func (c *Cache) GetOrCompute(key Key, shape []int, compute func() ([]float32, error)) ([]float32, error) {
	return c.get(key, shape, compute, true)
}

// GetOrComputeOnce is GetOrCompute for what is needed once in a process: the result takes no room in memory, and a cache
// without a folder computes anew.
func (c *Cache) GetOrComputeOnce(key Key, shape []int, compute func() ([]float32, error)) ([]float32, error) {
	return c.get(key, shape, compute, false)
}

func (c *Cache) get(key Key, shape []int, compute func() ([]float32, error), remember bool) ([]float32, error) {
	count := 1
	for _, n := range shape {
		if n <= 0 || count > math.MaxInt32/n {
			return nil, fmt.Errorf("a cache entry cannot have the shape %v; use positive sides and fewer than 2^31 values", shape)
		}
		count *= n
	}
	for {
		c.mu.Lock()
		values, ok := c.memory[key]
		if ok && slices.Equal(c.shapes[key], shape) {
			c.mu.Unlock()
			return values, nil
		}
		wait, busy := c.busy[key]
		if !busy {
			c.busy[key] = make(chan struct{})
			c.mu.Unlock()
			break
		}
		c.mu.Unlock()
		<-wait // then look again: without room in memory, the entry is read from the folder
	}
	defer func() {
		c.mu.Lock()
		close(c.busy[key])
		delete(c.busy, key)
		c.mu.Unlock()
	}()
	values, err := c.load(key, shape, count)
	if err != nil {
		return nil, err
	}
	if values == nil {
		if values, err = compute(); err != nil {
			return nil, err
		}
		if err := checkValues(values, shape, count); err != nil {
			return nil, err
		}
		if err := c.store(key, shape, values); err != nil {
			return nil, err
		}
	}
	if remember {
		c.remember(key, shape, values)
	}
	return values, nil
}

// remember keeps an entry in memory while there is room. Nothing is ever evicted: epochs visit all entries in turn, and
// an order like that makes a least-recently-used memory evict each entry just before it is wanted.
func (c *Cache) remember(key Key, shape []int, values []float32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.memory[key]; ok || int64(4*len(values)) > c.budget {
		return
	}
	c.budget -= int64(4 * len(values))
	c.memory[key], c.shapes[key] = values, slices.Clone(shape)
}

func checkValues(values []float32, shape []int, count int) error {
	if len(values) != count {
		return fmt.Errorf("%d values were computed for a cache entry of shape %v; they should be %d", len(values), shape, count)
	}
	for i, v := range values {
		if v-v != 0 { // not a number, or infinite
			return fmt.Errorf("value %d computed for the cache is %v; check the weights of the encoder", i, v)
		}
	}
	return nil
}

func (c *Cache) partials() string { return filepath.Join(c.dir, "partial") }

func (c *Cache) path(key Key) string {
	name := key.String()
	return filepath.Join(c.dir, name[:2], name) // spread over 256 folders
}

// load reads an entry; nil without an error means that it is to be computed.
func (c *Cache) load(key Key, shape []int, count int) ([]float32, error) {
	if c.dir == "" {
		return nil, nil
	}
	path := c.path(key)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("the cache entry %s cannot be read: %w; make it readable or name another cache folder", path, err)
	}
	header := entryHeader(shape)
	size := len(header) + 4*count + sha256.Size
	var content []byte
	if info.Mode().IsRegular() && info.Size() == int64(size) {
		if content, err = os.ReadFile(path); err != nil {
			return nil, fmt.Errorf("the cache entry %s cannot be read: %w; make it readable or name another cache folder", path, err)
		}
	}
	if len(content) != size || !bytes.HasPrefix(content, header) || !sealed(content) {
		c.log(fmt.Sprintf("the cache entry %s is damaged and is computed again", path))
		return nil, nil
	}
	values := make([]float32, count)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(content[len(header)+4*i:]))
	}
	return values, nil
}

// sealed reports whether an entry ends in the SHA-256 of the rest.
func sealed(content []byte) bool {
	body, sum := content[:len(content)-sha256.Size], content[len(content)-sha256.Size:]
	want := sha256.Sum256(body)
	return bytes.Equal(sum, want[:])
}

// store writes an entry: header, values in little-endian float32, SHA-256 of both.
func (c *Cache) store(key Key, shape []int, values []float32) error {
	if c.dir == "" {
		return nil
	}
	content := slices.Grow(entryHeader(shape), 4*len(values)+sha256.Size)
	for _, v := range values {
		content = binary.LittleEndian.AppendUint32(content, math.Float32bits(v))
	}
	sum := sha256.Sum256(content)
	content = append(content, sum[:]...)
	path := c.path(key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("the cache entry %s cannot be written: %w; free space or name another cache folder", path, err)
	}
	if err := files.WriteBytesVia(c.partials(), path, content); err != nil {
		return fmt.Errorf("the cache entry %w; free space or name another cache folder", err)
	}
	return nil
}

// entryHeader marks a cache entry, its version and its shape.
func entryHeader(shape []int) []byte {
	header := append([]byte("resalign tensor 1\n"), byte(len(shape)))
	for _, n := range shape {
		header = binary.LittleEndian.AppendUint32(header, uint32(n))
	}
	return header
}
