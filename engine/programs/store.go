package programs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/resalign/resalign/files"
)

// Variable names the environment variable that, if set, gives the folder in which compiled programs are kept; set to
// nothing, none are kept.
const Variable = "RESALIGN_XLA_CACHE"

// Limit is how many bytes of compiled programs a folder keeps; beyond it those go that were not used for longest.
const Limit = 4 << 30

// Store keeps compiled programs in a folder, one file each, named after the SHA-256 of all that they depend on. They are
// machine code: whoever can write to the folder can have this program run anything.
type Store struct {
	folder string
	limit  int64
}

const suffix = ".xla"

// magic begins each file; the SHA-256 of what follows it comes after it.
var magic = []byte("resalign compiled program 1\n")

// NewStore keeps programs in a folder, which is made when the first one is saved; limit is in bytes.
func NewStore(folder string, limit int64) *Store { return &Store{folder: folder, limit: limit} }

// Folder is where programs are kept.
func (s *Store) Folder() string { return s.folder }

// Key is the name of a program in the store: the SHA-256 of the parts, each with its length.
func Key(parts ...[]byte) string {
	h := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Load returns a program that was saved, or nil where there is none. A file that was damaged is an error that names it.
func (s *Store) Load(key string) ([]byte, error) {
	path := s.path(key)
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("compiled program: %w", err)
	}
	sum, ok := bytes.CutPrefix(content, magic)
	if !ok || len(sum) < sha256.Size {
		return nil, fmt.Errorf("compiled program %s is damaged; remove it", path)
	}
	program := sum[sha256.Size:]
	if sha256.Sum256(program) != [sha256.Size]byte(sum[:sha256.Size]) {
		return nil, fmt.Errorf("compiled program %s is damaged; remove it", path)
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now) // by which the store knows what is in use; a folder that is only read keeps all
	return program, nil
}

// Save keeps a program. Others that were not used for long may go for it.
func (s *Store) Save(key string, program []byte) error {
	if int64(len(program)) > s.limit {
		return nil
	}
	if err := os.MkdirAll(s.folder, 0o700); err != nil {
		return fmt.Errorf("compiled programs: %w", err)
	}
	sum := sha256.Sum256(program)
	if err := files.WriteBytes(s.path(key), slices.Concat(magic, sum[:], program)); err != nil {
		return fmt.Errorf("compiled program: %w", err)
	}
	return s.prune()
}

// Remove forgets a program.
func (s *Store) Remove(key string) error {
	if err := os.Remove(s.path(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("compiled program: %w", err)
	}
	return nil
}

// Size is the number of programs in the store and their bytes.
func (s *Store) Size() (programs int, size int64, err error) {
	kept, err := s.list()
	for _, f := range kept {
		size += f.Size()
	}
	return len(kept), size, err
}

func (s *Store) path(key string) string { return filepath.Join(s.folder, key+suffix) }

func (s *Store) list() ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(s.folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("compiled programs: %w", err)
	}
	var kept []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() && isKey(e.Name()) {
			kept = append(kept, info)
		}
	}
	return kept, nil
}

// isKey tells whether a file is one of the store's: nothing else in the folder is ever removed.
func isKey(name string) bool {
	key, ok := strings.CutSuffix(name, suffix)
	_, err := hex.DecodeString(key)
	return ok && err == nil && len(key) == hex.EncodedLen(sha256.Size)
}

func (s *Store) prune() error {
	kept, err := s.list()
	if err != nil {
		return err
	}
	slices.SortFunc(kept, func(a, b fs.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	var size int64
	for _, f := range kept {
		if size += f.Size(); size <= s.limit {
			continue
		}
		if err := os.Remove(filepath.Join(s.folder, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("compiled programs: %w", err)
		}
	}
	return nil
}
