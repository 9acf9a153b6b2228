package weights

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// This file reads the pickles inside PyTorch files as data. A pickle is a program for a stack machine that may call any
// Python function; here the few instructions that plain weights need are interpreted, the few functions they name are
// carried out by this package, and everything else is an error. Nothing is ever executed.

// Bounds on what a pickle may build. A checkpoint of Stable Diffusion XL with optimizer state needs about 50,000 objects.
const (
	maxPickle  = 64 << 20 // bytes
	maxObjects = 4 << 20  // values built, among them repeated references
)

// Values on the stack besides nil, bool, int64, float64 and string.
type (
	pickleTuple []any
	pickleList  struct{ items []any }
	pickleDict  struct{ keys, values []any }
	// pickleBytes and bigInt occur beside tensors, never in them.
	pickleBytes string
	bigInt      string
	// pickleMark delimits the arguments of an instruction.
	pickleMark struct{}
	// inert stands for an object that weights do not need; its type is known to be harmless to skip.
	inert struct{ typeName string }
)

// pickleReader runs the pickles of one file.
type pickleReader struct {
	data       []byte
	pos        int
	stack      []any
	memo       map[uint32]any
	objects    int // built so far, at most limit
	limit      int
	persistent func(id pickleTuple) (any, error) // resolves a reference to a storage
}

// load runs one pickle, from pos to its STOP instruction, and returns the object it builds.
func (r *pickleReader) load() (any, error) {
	r.stack, r.memo = nil, map[uint32]any{}
	for {
		at := r.pos
		op, err := r.take(1)
		if err != nil {
			return nil, err
		}
		if op[0] == opStop {
			if len(r.stack) != 1 {
				return nil, fmt.Errorf("pickle byte %d: %d objects are left at the end instead of 1", at, len(r.stack))
			}
			return r.stack[0], nil
		}
		if err := r.step(op[0]); err != nil {
			return nil, fmt.Errorf("pickle byte %d: %w", at, err)
		}
	}
}

// The instructions that plain weights use, by their names in Python's pickletools.
const (
	opMark            = '('
	opStop            = '.'
	opPop             = '0'
	opBinFloat        = 'G'
	opBinInt          = 'J'
	opBinInt1         = 'K'
	opBinInt2         = 'M'
	opNone            = 'N'
	opBinPersID       = 'Q'
	opReduce          = 'R'
	opBinString       = 'T' // texts and bytes alike, as Python 2 wrote them
	opShortBinString  = 'U'
	opBinUnicode      = 'X'
	opAppend          = 'a'
	opBuild           = 'b'
	opGlobal          = 'c'
	opAppends         = 'e'
	opBinGet          = 'h'
	opLongBinGet      = 'j'
	opEmptyList       = ']'
	opBinPut          = 'q'
	opLongBinPut      = 'r'
	opSetItem         = 's'
	opTuple           = 't'
	opSetItems        = 'u'
	opEmptyDict       = '}'
	opEmptyTuple      = ')'
	opBinBytes        = 'B'
	opShortBinBytes   = 'C'
	opProto           = 0x80
	opNewObj          = 0x81
	opTuple1          = 0x85
	opTuple2          = 0x86
	opTuple3          = 0x87
	opNewTrue         = 0x88
	opNewFalse        = 0x89
	opLong1           = 0x8a
	opShortBinUnicode = 0x8c
	opStackGlobal     = 0x93
	opMemoize         = 0x94
	opFrame           = 0x95
)

// step carries out one instruction.
func (r *pickleReader) step(op byte) error {
	switch op {
	case opProto:
		version, err := r.take(1)
		if err == nil && (version[0] < 2 || version[0] > 5) {
			err = fmt.Errorf("pickle protocol %d is not supported (2 to 5 are)", version[0])
		}
		return err
	case opFrame:
		_, err := r.take(8) // a hint for buffering
		return err
	case opMark:
		return r.push(pickleMark{})
	case opPop:
		_, err := r.pop()
		return err
	case opNone:
		return r.push(nil)
	case opNewTrue, opNewFalse:
		return r.push(op == opNewTrue)
	case opBinInt1, opBinInt2, opBinInt, opLong1, opBinFloat:
		return r.number(op)
	case opBinUnicode, opShortBinUnicode, opBinBytes, opShortBinBytes, opBinString, opShortBinString:
		return r.text(op)
	case opEmptyTuple:
		return r.push(pickleTuple{})
	case opEmptyList:
		return r.push(&pickleList{})
	case opEmptyDict:
		return r.push(&pickleDict{})
	case opTuple1, opTuple2, opTuple3:
		return r.tuple(int(op) - opTuple1 + 1)
	case opTuple:
		items, err := r.popToMark()
		if err != nil {
			return err
		}
		return r.push(pickleTuple(items))
	case opAppend, opAppends, opSetItem, opSetItems:
		return r.fill(op)
	case opBinPut, opLongBinPut, opMemoize, opBinGet, opLongBinGet:
		return r.remember(op)
	case opGlobal, opStackGlobal:
		return r.global(op)
	case opReduce, opNewObj, opBuild, opBinPersID:
		return r.object(op)
	}
	return fmt.Errorf("instruction 0x%02x is not among those that plain weights use", op)
}

// take returns the next n bytes.
func (r *pickleReader) take(n int) ([]byte, error) {
	if n < 0 || n > len(r.data)-r.pos {
		return nil, fmt.Errorf("pickle byte %d: %d bytes are needed, but only %d are left", r.pos, n, len(r.data)-r.pos)
	}
	r.pos += n
	return r.data[r.pos-n : r.pos], nil
}

// uint reads a little-endian number of size bytes.
func (r *pickleReader) uint(size int) (uint64, error) {
	b, err := r.take(size)
	if err != nil {
		return 0, err
	}
	var wide [8]byte
	copy(wide[:], b)
	return binary.LittleEndian.Uint64(wide[:]), nil
}

// count accounts for one more object in memory.
func (r *pickleReader) count() error {
	if r.objects++; r.objects > r.limit {
		return fmt.Errorf("more than %d objects, which no model of this size needs", r.limit)
	}
	return nil
}

func (r *pickleReader) push(v any) error {
	if err := r.count(); err != nil {
		return err
	}
	r.stack = append(r.stack, v)
	return nil
}

func (r *pickleReader) pop() (any, error) {
	if len(r.stack) == 0 {
		return nil, errors.New("an object is taken from an empty stack")
	}
	v := r.stack[len(r.stack)-1]
	r.stack = r.stack[:len(r.stack)-1]
	return v, nil
}

// popToMark takes everything above the topmost mark, and the mark.
func (r *pickleReader) popToMark() ([]any, error) {
	for i := len(r.stack) - 1; i >= 0; i-- {
		if _, ok := r.stack[i].(pickleMark); ok {
			items := append([]any(nil), r.stack[i+1:]...)
			r.stack = r.stack[:i]
			return items, nil
		}
	}
	return nil, errors.New("the mark that delimits arguments is missing")
}

func (r *pickleReader) number(op byte) error {
	switch op {
	case opBinFloat: // the one big-endian number
		b, err := r.take(8)
		if err != nil {
			return err
		}
		return r.push(math.Float64frombits(binary.BigEndian.Uint64(b)))
	case opLong1:
		size, err := r.uint(1)
		if err != nil {
			return err
		}
		b, err := r.take(int(size))
		if err != nil {
			return err
		}
		if size > 8 {
			return r.push(bigInt(b))
		}
		var v int64
		for i, digit := range b {
			v |= int64(digit) << (8 * i)
		}
		if size > 0 { // two's complement of size bytes: extend the sign
			shift := 64 - 8*size
			v = v << shift >> shift
		}
		return r.push(v)
	}
	size := map[byte]int{opBinInt1: 1, opBinInt2: 2, opBinInt: 4}[op]
	v, err := r.uint(size)
	if err != nil {
		return err
	}
	if op == opBinInt {
		return r.push(int64(int32(v)))
	}
	return r.push(int64(v))
}

func (r *pickleReader) text(op byte) error {
	size := 4
	if op == opShortBinUnicode || op == opShortBinBytes || op == opShortBinString {
		size = 1
	}
	n, err := r.uint(size)
	if err != nil {
		return err
	}
	b, err := r.take(int(min(n, math.MaxInt32)))
	if err != nil {
		return err
	}
	isASCII := !bytes.ContainsFunc(b, func(c rune) bool { return c >= utf8.RuneSelf })
	if op == opBinBytes || op == opShortBinBytes || (op == opBinString || op == opShortBinString) && !isASCII {
		return r.push(pickleBytes(b))
	}
	return r.push(string(b))
}

func (r *pickleReader) tuple(n int) error {
	if len(r.stack) < n {
		return errors.New("an object is taken from an empty stack")
	}
	items := append(pickleTuple(nil), r.stack[len(r.stack)-n:]...)
	r.stack = r.stack[:len(r.stack)-n]
	return r.push(items)
}

// fill adds items to the list or dictionary below them.
func (r *pickleReader) fill(op byte) error {
	var items []any
	var err error
	switch op {
	case opAppend:
		items = make([]any, 1)
		items[0], err = r.pop()
	case opSetItem:
		items = make([]any, 2)
		if items[1], err = r.pop(); err == nil {
			items[0], err = r.pop()
		}
	default:
		items, err = r.popToMark()
	}
	if err != nil {
		return err
	}
	if len(r.stack) == 0 {
		return errors.New("items are added to nothing")
	}
	switch container := r.stack[len(r.stack)-1].(type) {
	case *pickleList:
		if op == opAppend || op == opAppends {
			container.items = append(container.items, items...)
			return nil
		}
	case *pickleDict:
		if (op == opSetItem || op == opSetItems) && len(items)%2 == 0 {
			for i := 0; i < len(items); i += 2 {
				container.keys = append(container.keys, items[i])
				container.values = append(container.values, items[i+1])
			}
			return nil
		}
	case inert:
		return nil
	}
	return fmt.Errorf("items are added to %s", kindOf(r.stack[len(r.stack)-1]))
}

// remember stores the topmost object under a number, or fetches one.
func (r *pickleReader) remember(op byte) error {
	size := map[byte]int{opBinPut: 1, opBinGet: 1, opLongBinPut: 4, opLongBinGet: 4}[op]
	n, err := r.uint(size)
	if err != nil {
		return err
	}
	if op == opBinGet || op == opLongBinGet {
		v, ok := r.memo[uint32(n)]
		if !ok {
			return fmt.Errorf("object %d is fetched before it is stored", n)
		}
		return r.push(v)
	}
	if op == opMemoize {
		n = uint64(len(r.memo))
	}
	if len(r.stack) == 0 {
		return errors.New("an object is stored from an empty stack")
	}
	if err := r.count(); err != nil {
		return err
	}
	r.memo[uint32(n)] = r.stack[len(r.stack)-1]
	return nil
}

// line reads text up to a newline.
func (r *pickleReader) line() (string, error) {
	const longest = 256 // bytes of a Python name
	rest := r.data[r.pos:min(len(r.data), r.pos+longest)]
	end := bytes.IndexByte(rest, '\n')
	if end < 0 {
		return "", errors.New("the name of a Python object does not end")
	}
	r.pos += end + 1
	return string(rest[:end]), nil
}

// kindOf names the type of a value in errors.
func kindOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		return "a bool"
	case int64, bigInt:
		return "an int"
	case float64:
		return "a float"
	case string:
		return "the text " + strconv.Quote(v[:min(len(v), 40)])
	case pickleBytes:
		return "bytes"
	case pickleTuple:
		return "a tuple"
	case *pickleList:
		return "a list"
	case *pickleDict:
		return "a dict"
	case *torchTensor:
		return "a tensor"
	case *torchStorage:
		return "a storage"
	case inert:
		return "a " + v.typeName
	case pickleGlobal:
		return "the Python object " + v.String()
	}
	return "a mark"
}
