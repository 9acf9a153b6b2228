package weights

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// TorchFile is a PyTorch file (.pt, .pth, .bin, .ckpt): the tensors of its nested dictionaries, under the keys joined by
// dots.
type TorchFile struct {
	path    string
	tensors map[string]*torchTensor
	names   []string
	ignored []string
	records map[string]*record // by storage key
	file    atomic.Pointer[mapping]
}

// record is where a storage's bytes lie.
type record struct {
	entry    *zip.File // nil in a file from before PyTorch 1.6
	begin    uint64    // position in the file, where they are stored uncompressed
	size     uint64    // bytes, uncompressed
	deflated bool
	verify   sync.Once // the checksum is compared when the first tensor is read
	damage   error
}

// OpenTorch opens a PyTorch file, of today's form (a zip archive) or of the one before PyTorch 1.6.
//
// Nothing in the file is executed. Its pickle is read as data: an instruction or Python name that plain weights do not
// need is an error. Dictionaries inside dictionaries become names joined by dots; a "state_dict" beside which there are no
// tensors is taken alone, as in the checkpoints of training frameworks. What is not a tensor is left out and
// listed by [TorchFile.Ignored]. Tensors that are strided views are copied into row-major order when they are read.
func OpenTorch(path string) (*TorchFile, error) {
	m, err := openMapping(path)
	if err != nil {
		return nil, err
	}
	return openTorch(m)
}

// ParseTorch reads a PyTorch file that is already in memory, and keeps data: do not change it. The name stands for the
// file's path in errors.
func ParseTorch(data []byte, name string) (*TorchFile, error) {
	return openTorch(&mapping{path: name, data: data})
}

func openTorch(m *mapping) (file *TorchFile, err error) {
	err = m.guard(func() (err error) {
		file, err = parseTorch(m)
		return err
	})
	if err != nil {
		return nil, err
	}
	return file, nil
}

const zipMagic = "PK\x03\x04"

// looksLikeTorch recognises a zip archive, and the start of a binary pickle.
func looksLikeTorch(data []byte) bool {
	return bytes.HasPrefix(data, []byte(zipMagic)) || len(data) > 1 && data[0] == opProto && data[1] >= 2 && data[1] <= 5
}

func parseTorch(m *mapping) (*TorchFile, error) {
	f := &TorchFile{path: m.path, records: map[string]*record{}}
	var root any
	var err error
	if bytes.HasPrefix(m.data, []byte(zipMagic)) {
		root, err = f.readArchive(m.data)
	} else {
		root, err = f.readLegacy(m.data)
	}
	if err == nil {
		err = f.collect(root, len(m.data))
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; check that this is a PyTorch file of plain weights, and download or export it again", m.path, err)
	}
	f.file.Store(m)
	return f, nil
}

// readArchive finds the records of a zip archive and returns the object that its pickle describes.
func (f *TorchFile) readArchive(data []byte) (any, error) {
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("not a readable zip archive: %w", err)
	}
	entries := map[string]*zip.File{}
	var folder string
	for _, entry := range archive.File {
		if entries[entry.Name] != nil {
			return nil, fmt.Errorf("the archive has two entries %.100q", entry.Name)
		}
		entries[entry.Name] = entry
		if path.Base(entry.Name) == "data.pkl" {
			if folder != "" {
				return nil, errors.New("the archive has two entries data.pkl")
			}
			folder = path.Dir(entry.Name)
		}
	}
	main := entries[folder+"/data.pkl"]
	switch {
	case main == nil:
		return nil, errors.New("the archive has no entry NAME/data.pkl, so PyTorch did not write it")
	case entries[folder+"/constants.pkl"] != nil:
		return nil, errors.New("a TorchScript program, not plain weights; load it in Python and save its state_dict")
	}
	if order := entries[folder+"/byteorder"]; order != nil {
		text, err := readEntry(data, order, 16)
		if err != nil {
			return nil, err
		}
		if string(text) != "little" {
			return nil, fmt.Errorf("byte order %q is not supported (\"little\" is)", text)
		}
	}
	pickle, err := readEntry(data, main, maxPickle)
	if err != nil {
		return nil, err
	}
	reader := &pickleReader{data: pickle, limit: min(maxObjects, 4*len(data)), persistent: func(id pickleTuple) (any, error) {
		storage, err := parseStorage(id, 5)
		if err != nil {
			return nil, err
		}
		size := storage.elements * uint64(storage.dtype.Size())
		if r := f.records[storage.key]; r != nil {
			if r.size != size {
				return nil, fmt.Errorf("storage %q is %d bytes in one place and %d in another", storage.key, r.size, size)
			}
			return storage, nil
		}
		entry := entries[folder+"/data/"+storage.key]
		if entry == nil {
			return nil, fmt.Errorf("storage %q is not in the archive", storage.key)
		}
		if entry.UncompressedSize64 != size {
			return nil, fmt.Errorf("storage %q: %d elements of %s take %d bytes, but its entry has %d", storage.key, storage.elements,
				storage.dtype, size, entry.UncompressedSize64)
		}
		f.records[storage.key], err = locate(data, entry)
		return storage, err
	}}
	root, err := reader.load()
	if err != nil {
		return nil, err
	}
	if reader.pos != len(pickle) {
		return nil, fmt.Errorf("%d bytes follow the end of the pickle", len(pickle)-reader.pos)
	}
	return root, nil
}

// parseStorage reads a persistent id: ("storage", class, key, device, elements) and, in old files, a view.
func parseStorage(id pickleTuple, length int) (*torchStorage, error) {
	if len(id) != length || id[0] != any("storage") {
		return nil, errors.New("the reference to a storage does not have the form that PyTorch writes")
	}
	class, isClass := id[1].(pickleGlobal)
	key, isText := id[2].(string)
	n, isInt := id[4].(int64)
	if !isClass || class.kind != storageClass || !isText || !isInt || n < 0 || n >= 1<<59 {
		return nil, fmt.Errorf("storage %s of %s has no valid class, key or size", kindOf(id[2]), kindOf(id[1]))
	}
	return &torchStorage{key: key, dtype: class.dtype, elements: uint64(n)}, nil
}

// locate checks that an entry's sizes are possible and finds its bytes.
func locate(data []byte, entry *zip.File) (*record, error) {
	const bestDeflate = 1032 // no deflate stream is denser
	begin, err := entry.DataOffset()
	if err != nil {
		return nil, fmt.Errorf("entry %.100q: %w", entry.Name, err)
	}
	packed := entry.CompressedSize64
	if begin < 0 || begin > int64(len(data)) || packed > uint64(int64(len(data))-begin) {
		return nil, fmt.Errorf("entry %.100q reaches beyond the end of the file", entry.Name)
	}
	r := &record{entry: entry, begin: uint64(begin), size: entry.UncompressedSize64, deflated: entry.Method == zip.Deflate}
	switch {
	case entry.Flags&1 != 0:
		return nil, fmt.Errorf("entry %.100q is encrypted", entry.Name)
	case entry.Method == zip.Store && r.size == packed:
	case entry.Method == zip.Deflate && r.size/bestDeflate <= packed:
	case entry.Method == zip.Store || entry.Method == zip.Deflate:
		return nil, fmt.Errorf("entry %.100q: %d bytes cannot unpack to %d", entry.Name, packed, r.size)
	default:
		return nil, fmt.Errorf("entry %.100q: compression method %d is not supported", entry.Name, entry.Method)
	}
	return r, nil
}

// readEntry returns the content of a small entry.
func readEntry(data []byte, entry *zip.File, limit uint64) ([]byte, error) {
	r, err := locate(data, entry)
	if err != nil {
		return nil, err
	}
	if r.size > limit {
		return nil, fmt.Errorf("entry %.100q: %d bytes are more than the %d that it may have", entry.Name, r.size, limit)
	}
	return r.read(data)
}

// read returns the record's bytes, as a view of the file's data where they are stored as they are.
func (r *record) read(data []byte) ([]byte, error) {
	if r.deflated {
		return r.inflate()
	}
	raw := data[r.begin : r.begin+r.size : r.begin+r.size]
	if r.entry == nil { // a file from before PyTorch 1.6 has no checksums
		return raw, nil
	}
	r.verify.Do(func() {
		if crc32.ChecksumIEEE(raw) != r.entry.CRC32 {
			r.damage = fmt.Errorf("entry %.100q: the checksum does not match, so the file is damaged", r.entry.Name)
		}
	})
	return raw, r.damage
}

// inflate unpacks a deflated record; archive/zip compares its checksum.
func (r *record) inflate() ([]byte, error) {
	stream, err := r.entry.Open()
	if err != nil {
		return nil, fmt.Errorf("entry %.100q: %w", r.entry.Name, err)
	}
	defer stream.Close()
	// The declared size is not allocated ahead: memory grows with what really unpacks.
	raw, err := io.ReadAll(io.LimitReader(stream, int64(r.size)+1))
	if err != nil {
		return nil, fmt.Errorf("entry %.100q: cannot be unpacked: %w", r.entry.Name, err)
	}
	if uint64(len(raw)) != r.size {
		return nil, fmt.Errorf("entry %.100q: unpacks to a size other than the %d bytes it declares", r.entry.Name, r.size)
	}
	return raw, nil
}

// Names returns the names of all tensors, sorted.
func (f *TorchFile) Names() []string { return slices.Clone(f.names) }

// Metadata returns nothing: PyTorch files have no metadata apart from what [TorchFile.Ignored] lists.
func (f *TorchFile) Metadata() map[string]string { return map[string]string{} }

// Ignored returns the sorted names of what the file holds besides tensors, such as "epoch" or "optimizer".
func (f *TorchFile) Ignored() []string { return slices.Clone(f.ignored) }

// Path returns the file's path if it holds a tensor called name, "" otherwise.
func (f *TorchFile) Path(name string) string {
	if f.tensors[name] == nil {
		return ""
	}
	return f.path
}

// Tensor returns the tensor called name. It returns an error if there is none, if its bytes are damaged, or after Close.
func (f *TorchFile) Tensor(name string) (*Tensor, error) {
	view := f.tensors[name]
	if view == nil {
		return nil, fmt.Errorf("%s: there is no tensor %q in the file; check the name", f.path, name)
	}
	m := f.file.Load()
	if m == nil {
		return nil, fmt.Errorf("%s: tensor %q: %w", f.path, name, errClosed)
	}
	t := &Tensor{Name: name, DType: view.storage.dtype, Shape: slices.Clone(view.shape)}
	err := m.guard(func() error {
		record := f.records[view.storage.key]
		n, _ := elements(view.shape)
		if n == 0 {
			return nil
		}
		raw, err := record.read(m.data)
		if err != nil {
			return err
		}
		if !view.contiguous() {
			t.data = view.gather(raw)
			return nil
		}
		size := uint64(t.DType.Size())
		begin, end := view.offset*size, (view.offset+uint64(n))*size
		t.data = raw[begin:end:end]
		if !record.deflated {
			t.file = m
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: tensor %q: %w; download or export the file again", f.path, name, err)
	}
	return t, nil
}

// Close lets go of the file. Tensors that were already taken stay readable.
func (f *TorchFile) Close() error {
	f.file.Store(nil)
	return nil
}

// LoneTensor is the name of the tensor in a file that holds one without a name.
const LoneTensor = "tensor"

// collect gathers the tensors of nested dictionaries, in a file of fileSize bytes.
func (f *TorchFile) collect(root any, fileSize int) error {
	if lone, ok := root.(*torchTensor); ok { // as torch.save(tensor) writes
		root = &pickleDict{keys: []any{LoneTensor}, values: []any{lone}}
	}
	top, ok := root.(*pickleDict)
	if !ok {
		return fmt.Errorf("the file holds %s instead of a dictionary of tensors", kindOf(root))
	}
	c := collector{tensors: map[string]*torchTensor{}, open: map[*pickleDict]bool{}, budget: min(64*fileSize, 64<<20)}
	if inner := top.stateDict(); inner != nil {
		for i, key := range top.keys {
			if top.values[i] != any(inner) {
				c.ignored = append(c.ignored, keyText(key))
			}
		}
		top = inner
	}
	if err := c.visit("", top); err != nil {
		return err
	}
	if len(c.tensors) == 0 {
		return errors.New("the file holds no tensors")
	}
	f.tensors, f.names = c.tensors, slices.Sorted(maps.Keys(c.tensors))
	slices.Sort(c.ignored)
	f.ignored = c.ignored
	return nil
}

// stateDict returns the dictionary under "state_dict" if d has one and no tensor of its own, nil otherwise.
func (d *pickleDict) stateDict() *pickleDict {
	var inner *pickleDict
	for i, value := range d.values {
		switch value := value.(type) {
		case *torchTensor:
			return nil
		case *pickleDict:
			if d.keys[i] == any("state_dict") {
				inner = value
			}
		}
	}
	return inner
}

// collector walks dictionaries. Dictionaries may be shared and may contain themselves, so its work is bounded.
type collector struct {
	tensors map[string]*torchTensor
	ignored []string
	open    map[*pickleDict]bool // those being visited
	budget  int                  // bytes that further names may take
}

func (c *collector) visit(prefix string, d *pickleDict) error {
	const maxDepth, itemCost = 32, 16
	if c.open[d] || len(c.open) == maxDepth {
		return fmt.Errorf("dictionaries are nested more than %d deep at %.100q", maxDepth, prefix)
	}
	c.open[d] = true
	defer delete(c.open, d)
	for i, key := range d.keys {
		name := prefix + keyText(key)
		if c.budget -= len(name) + itemCost; c.budget < 0 {
			return errors.New("dictionaries are repeated so often that the tensors' names outgrow the file")
		}
		switch value := d.values[i].(type) {
		case *torchTensor:
			if c.tensors[name] != nil {
				return fmt.Errorf("two tensors are called %.100q", name)
			}
			c.tensors[name] = value
		case *pickleDict:
			if err := c.visit(name+".", value); err != nil {
				return err
			}
		default:
			c.ignored = append(c.ignored, name)
		}
	}
	return nil
}

// keyText returns a dictionary's key as part of a name.
func keyText(key any) string {
	switch key := key.(type) {
	case string:
		return key
	case int64:
		return strconv.FormatInt(key, 10)
	}
	return strings.ReplaceAll(kindOf(key), " ", "_")
}
