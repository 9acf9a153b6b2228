package weights

import (
	"errors"
	"fmt"
	"math/bits"
)

// torchStorage is a stretch of a file that tensors view.
type torchStorage struct {
	key      string
	dtype    DType
	elements uint64
}

// torchTensor is a strided view of a storage; offset and strides count elements, none is negative, and the view lies
// inside the storage and has no more elements than it.
type torchTensor struct {
	storage *torchStorage
	offset  uint64
	shape   []int
	strides []uint64
}

// pickleGlobal is a Python class or function that a pickle names.
type pickleGlobal struct {
	module, name string
	kind         globalKind
	dtype        DType // of a storage class
}

func (g pickleGlobal) String() string { return g.module + "." + g.name }

type globalKind int

const (
	storageClass globalKind = iota + 1
	orderedDict
	rebuildTensor
	rebuildParameter
	inertObject
)

// torchGlobals are the only Python names a pickle may use. Inert ones occur beside the weights, as in the original
// Stable Diffusion checkpoints: they are skipped, and whatever is made of them is skipped too.
var torchGlobals = map[string]pickleGlobal{
	"collections.OrderedDict":         {kind: orderedDict},
	"torch._utils._rebuild_tensor":    {kind: rebuildTensor}, // before PyTorch 0.4
	"torch._utils._rebuild_tensor_v2": {kind: rebuildTensor},
	"torch._utils._rebuild_parameter": {kind: rebuildParameter},
	"torch.DoubleStorage":             {kind: storageClass, dtype: F64},
	"torch.FloatStorage":              {kind: storageClass, dtype: F32},
	"torch.HalfStorage":               {kind: storageClass, dtype: F16},
	"torch.BFloat16Storage":           {kind: storageClass, dtype: BF16},
	"torch.LongStorage":               {kind: storageClass, dtype: I64},
	"torch.IntStorage":                {kind: storageClass, dtype: I32},
	"torch.ShortStorage":              {kind: storageClass, dtype: I16},
	"torch.CharStorage":               {kind: storageClass, dtype: I8},
	"torch.ByteStorage":               {kind: storageClass, dtype: U8},
	"torch.storage.UntypedStorage":    {kind: storageClass, dtype: U8},
	"torch.BoolStorage":               {kind: storageClass, dtype: Bool},
	"torch.Size":                      {kind: inertObject},
	"torch.device":                    {kind: inertObject},
	"torch.float32":                   {kind: inertObject},
	"torch.float16":                   {kind: inertObject},
	"torch.bfloat16":                  {kind: inertObject},
	"numpy.dtype":                     {kind: inertObject},
	"numpy.core.multiarray.scalar":    {kind: inertObject},
	"_codecs.encode":                  {kind: inertObject},
	"argparse.Namespace":              {kind: inertObject},
	"pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint": {kind: inertObject},
}

// global pushes the Python object that the pickle names.
func (r *pickleReader) global(op byte) error {
	var module, name string
	var err error
	if op == opGlobal {
		if module, err = r.line(); err == nil {
			name, err = r.line()
		}
		if err != nil {
			return err
		}
	} else {
		n, err := r.pop()
		if err != nil {
			return err
		}
		m, err := r.pop()
		if err != nil {
			return err
		}
		var isModule, isName bool
		module, isModule = m.(string)
		name, isName = n.(string)
		if !isModule || !isName {
			return fmt.Errorf("a Python object is named by %s and %s instead of two texts", kindOf(m), kindOf(n))
		}
	}
	g, ok := torchGlobals[module+"."+name]
	if !ok {
		return fmt.Errorf("the file asks for the Python object %.100q, which weights do not need and which is never run; save the plain state_dict, best as safetensors",
			module+"."+name)
	}
	g.module, g.name = module, name
	return r.push(g)
}

// object carries out the instructions that make an object from a Python name and arguments.
func (r *pickleReader) object(op byte) error {
	argument, err := r.pop()
	if err != nil {
		return err
	}
	if op == opBinPersID {
		id, ok := argument.(pickleTuple)
		if !ok {
			return fmt.Errorf("a storage is named by %s instead of a tuple", kindOf(argument))
		}
		storage, err := r.persistent(id)
		if err != nil {
			return err
		}
		return r.push(storage)
	}
	if op == opBuild { // attributes of an object, such as a state_dict's version numbers: not weights
		if len(r.stack) > 0 {
			switch r.stack[len(r.stack)-1].(type) {
			case *pickleDict, inert:
				return nil
			}
		}
		return errors.New("attributes are set on something that has none")
	}
	callable, err := r.pop()
	if err != nil {
		return err
	}
	g, isGlobal := callable.(pickleGlobal)
	arguments, isTuple := argument.(pickleTuple)
	if !isGlobal || !isTuple {
		return fmt.Errorf("%s is called with %s, which weights do not need and which is never run", kindOf(callable), kindOf(argument))
	}
	made, err := call(g, arguments)
	if err != nil {
		return fmt.Errorf("%s: %w", g, err)
	}
	return r.push(made)
}

// call does what the Python function g would do, for the few functions that are known.
func call(g pickleGlobal, arguments pickleTuple) (any, error) {
	switch g.kind {
	case inertObject:
		return inert{g.String()}, nil
	case orderedDict:
		return newOrderedDict(arguments)
	case rebuildTensor:
		return newTorchTensor(arguments)
	case rebuildParameter: // (tensor, requires_grad, hooks)
		if len(arguments) == 3 {
			if t, ok := arguments[0].(*torchTensor); ok {
				return t, nil
			}
		}
		return nil, errors.New("the arguments are not those of a parameter")
	}
	return nil, errors.New("a storage cannot be made this way")
}

// newOrderedDict takes no argument or a list of pairs.
func newOrderedDict(arguments pickleTuple) (*pickleDict, error) {
	d := &pickleDict{}
	if len(arguments) == 0 {
		return d, nil
	}
	pairs, ok := arguments[0].(*pickleList)
	if !ok || len(arguments) != 1 {
		return nil, errors.New("the argument is not a list of pairs")
	}
	for _, pair := range pairs.items {
		var key, value any
		switch pair := pair.(type) {
		case pickleTuple:
			ok = len(pair) == 2
			if ok {
				key, value = pair[0], pair[1]
			}
		case *pickleList:
			ok = len(pair.items) == 2
			if ok {
				key, value = pair.items[0], pair.items[1]
			}
		default:
			ok = false
		}
		if !ok {
			return nil, errors.New("the argument is not a list of pairs")
		}
		d.keys, d.values = append(d.keys, key), append(d.values, value)
	}
	return d, nil
}

// newTorchTensor takes (storage, offset, shape, strides), since PyTorch 0.4 also requires_grad and hooks, and perhaps
// metadata.
func newTorchTensor(arguments pickleTuple) (*torchTensor, error) {
	if n := len(arguments); n != 4 && n != 6 && n != 7 {
		return nil, fmt.Errorf("%d arguments instead of 4, 6 or 7", n)
	}
	storage, isStorage := arguments[0].(*torchStorage)
	offset, isInt := arguments[1].(int64)
	shape, hasShape := arguments[2].(pickleTuple)
	strides, hasStrides := arguments[3].(pickleTuple)
	if !isStorage || !isInt || !hasShape || !hasStrides || offset < 0 || len(shape) != len(strides) || len(shape) > maxRank {
		return nil, errors.New("the arguments are not a storage, an offset, a shape and strides")
	}
	t := &torchTensor{storage: storage, offset: uint64(offset)}
	last, empty := uint64(offset), false // the highest element that the view reaches
	for i := range shape {
		dim, dimOK := shape[i].(int64)
		stride, strideOK := strides[i].(int64)
		if !dimOK || !strideOK || dim < 0 || stride < 0 || dim != int64(int(dim)) {
			return nil, errors.New("shape and strides are not whole numbers from 0 up")
		}
		t.shape, t.strides = append(t.shape, int(dim)), append(t.strides, uint64(stride))
		if dim == 0 {
			empty = true
			continue
		}
		overflow, reach := bits.Mul64(uint64(dim-1), uint64(stride))
		last += reach
		if overflow != 0 || reach >= 1<<62 || last >= 1<<62 {
			return nil, errors.New("the strides reach beyond any storage")
		}
	}
	n, ok := elements(t.shape)
	if !ok {
		return nil, fmt.Errorf("shape %v has more elements than can be counted", t.shape)
	}
	if empty {
		return t, nil
	}
	if last >= storage.elements {
		return nil, fmt.Errorf("the tensor reaches element %d of storage %q, which has %d", last, storage.key, storage.elements)
	}
	if uint64(n) > storage.elements {
		return nil, fmt.Errorf("the tensor's %d elements repeat the %d of storage %q; save a contiguous copy", n, storage.elements, storage.key)
	}
	return t, nil
}

// contiguous reports whether the view is row-major without gaps, so that its bytes can be used as they are.
func (t *torchTensor) contiguous() bool {
	expected := uint64(1)
	for i := len(t.shape) - 1; i >= 0; i-- {
		if t.shape[i] != 1 && t.strides[i] != expected {
			return false
		}
		expected *= uint64(t.shape[i])
	}
	return true
}

// gather copies a view's elements from the bytes of its storage, in row-major order.
func (t *torchTensor) gather(storage []byte) []byte {
	n, _ := elements(t.shape)
	size := uint64(t.storage.dtype.Size())
	out := make([]byte, 0, uint64(n)*size)
	index := make([]int, len(t.shape))
	at := t.offset
	for range n {
		out = append(out, storage[at*size:(at+1)*size]...)
		for i := len(index) - 1; i >= 0; i-- {
			index[i]++
			at += t.strides[i]
			if index[i] < t.shape[i] {
				break
			}
			at -= t.strides[i] * uint64(t.shape[i])
			index[i] = 0
		}
	}
	return out
}
