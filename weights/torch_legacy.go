package weights

import (
	"errors"
	"fmt"
)

// legacyMagic opens every file from before PyTorch 1.6, as a pickled 80-bit integer (torch/serialization.py, MAGIC_NUMBER).
const legacyMagic = bigInt("\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")

// readLegacy reads a file from before PyTorch 1.6: five pickles (a magic number, the version, the writer's number
// formats, the object itself, the storages' keys), then for each key an element count and the elements.
func (f *TorchFile) readLegacy(data []byte) (any, error) {
	storages := map[string]*torchStorage{}
	r := &pickleReader{data: data, limit: maxObjects, persistent: func(id pickleTuple) (any, error) {
		storage, err := parseStorage(id, 6)
		if err != nil {
			return nil, err
		}
		if id[5] != nil {
			return nil, fmt.Errorf("storage %q is a view of another, as only PyTorch before 0.4 wrote; save the file again", storage.key)
		}
		if known := storages[storage.key]; known != nil && *known != *storage {
			return nil, fmt.Errorf("storage %q has two types or sizes", storage.key)
		}
		storages[storage.key] = storage
		return storage, nil
	}}
	magic, err := r.load()
	if err != nil {
		return nil, err
	}
	if magic != any(legacyMagic) {
		return nil, errors.New("a pickle, but not one that torch.save wrote")
	}
	version, err := r.load()
	if err != nil {
		return nil, err
	}
	if version != any(int64(1001)) {
		return nil, errors.New("the version of the PyTorch format is not 1001")
	}
	system, err := r.load()
	if err != nil {
		return nil, err
	}
	if !isLittleEndian(system) {
		return nil, errors.New("the file was not written on a little-endian machine")
	}
	root, err := r.load()
	if err != nil {
		return nil, err
	}
	keys, err := r.load()
	if err != nil {
		return nil, err
	}
	list, ok := keys.(*pickleList)
	if !ok {
		return nil, errors.New("the list of storages is missing")
	}
	for _, item := range list.items {
		key, _ := item.(string)
		storage := storages[key]
		if storage == nil || f.records[key] != nil {
			return nil, fmt.Errorf("the list of storages names %s, which no tensor uses or which it has named before", kindOf(item))
		}
		count, err := r.uint(8)
		if err != nil {
			return nil, err
		}
		size := storage.elements * uint64(storage.dtype.Size())
		if count != storage.elements || size > uint64(len(data)-r.pos) {
			return nil, fmt.Errorf("storage %q: %d elements are expected, %d are announced and %d bytes are left", key, storage.elements, count, len(data)-r.pos)
		}
		f.records[key] = &record{begin: uint64(r.pos), size: size}
		r.pos += int(size)
	}
	if len(f.records) != len(storages) || r.pos != len(data) {
		return nil, fmt.Errorf("%d of %d storages are in the file, and %d bytes follow them", len(f.records), len(storages), len(data)-r.pos)
	}
	return root, nil
}

// isLittleEndian looks up "little_endian" in what the writer said about its machine.
func isLittleEndian(system any) bool {
	d, ok := system.(*pickleDict)
	if !ok {
		return false
	}
	for i, key := range d.keys {
		if key == any("little_endian") {
			return d.values[i] == any(true)
		}
	}
	return false
}
