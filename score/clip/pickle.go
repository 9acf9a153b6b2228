package clip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/weights"
)

// The pickle instructions that NumPy arrays are made of (Python, pickletools).
const (
	opProto, opFrame, opStop                        = 0x80, 0x95, '.'
	opGlobal, opStackGlobal, opReduce, opBuild      = 'c', 0x93, 'R', 'b'
	opMark, opTuple, opEmptyTuple                   = '(', 't', ')'
	opTuple1, opTuple2, opTuple3                    = 0x85, 0x86, 0x87
	opNone, opTrue, opFalse                         = 'N', 0x88, 0x89
	opInt, opInt1, opInt2                           = 'J', 'K', 'M'
	opShortText, opText, opText8                    = 0x8c, 'X', 0x8d
	opShortBytes, opBytes, opBytes8, opByteArray8   = 'C', 'B', 0x8e, 0x96
	opMemoize, opPut, opLongPut, opGet, opLongGet   = 0x94, 'q', 'r', 'h', 'j'
	torchLegacyMagic                                = "\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
	maxArrayPickle                                  = 1 << 20 // bytes; the prompts of Q16 have 3 kB
	reconstruct, fromBuffer, ndarray, dtype, encode = "multiarray._reconstruct", "numeric._frombuffer", "numpy.ndarray", "numpy.dtype", "_codecs.encode"
)

// The values on the stack besides int, bool, string, []byte and nil.
type (
	pickleTuple []any
	pickleMark  struct{}
	pickleName  string // of a Python object, without NumPy's package
	pickleDType struct{ kind string }
	pickleArray struct {
		shape pickleTuple
		kind  string
		data  []byte
	}
)

// arrayReader reads a pickle as data. Instructions and Python names that a NumPy array does not need are errors; nothing is
// called.
type arrayReader struct {
	data  []byte
	pos   int
	stack []any
	memo  map[uint32]any
}

// parseArray reads a pickled NumPy array of floating-point numbers, of protocols 2 to 5.
func parseArray(data []byte) (values []float32, shape []int, err error) {
	if len(data) > maxArrayPickle {
		return nil, nil, fmt.Errorf("a pickle of %d bytes is larger than any array that is expected here (%d)", len(data), maxArrayPickle)
	}
	r := &arrayReader{data: data, memo: map[uint32]any{}}
	root, err := r.run()
	if err != nil {
		return nil, nil, fmt.Errorf("not a pickled NumPy array: %w", err)
	}
	a, ok := root.(*pickleArray)
	if !ok || a.data == nil {
		return nil, nil, errors.New("not a pickled NumPy array: it holds something else")
	}
	kinds := map[string]weights.DType{"f2": weights.F16, "f4": weights.F32, "f8": weights.F64}
	kind, ok := kinds[a.kind]
	if !ok {
		return nil, nil, fmt.Errorf("the array's numbers have the type %.20q; f2, f4 and f8 are read", a.kind)
	}
	for _, d := range a.shape {
		n, ok := d.(int)
		if !ok || n < 0 || n > maxArrayPickle || len(shape) == 8 {
			return nil, nil, errors.New("the array's shape is not a tuple of sizes")
		}
		shape = append(shape, n)
	}
	t, err := weights.New("array", kind, shape, a.data)
	if err != nil {
		return nil, nil, err
	}
	values, err = t.Float32()
	return values, shape, err
}

var errEnds = errors.New("the pickle ends in the middle")

func (r *arrayReader) take(n uint64) ([]byte, error) {
	if n > uint64(len(r.data)-r.pos) {
		return nil, errEnds
	}
	part := r.data[r.pos : r.pos+int(n)]
	r.pos += int(n)
	return part, nil
}

// number reads an unsigned integer of some bytes.
func (r *arrayReader) number(bytes int) (uint64, error) {
	part, err := r.take(uint64(bytes))
	if err != nil {
		return 0, err
	}
	var wide [8]byte
	copy(wide[:], part)
	return binary.LittleEndian.Uint64(wide[:]), nil
}

// counted reads a number of bytes and then as many.
func (r *arrayReader) counted(bytes int) ([]byte, error) {
	n, err := r.number(bytes)
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

func (r *arrayReader) push(v any) { r.stack = append(r.stack, v) }

func (r *arrayReader) pop() (any, error) {
	if len(r.stack) == 0 {
		return nil, errors.New("an instruction finds the stack empty")
	}
	v := r.stack[len(r.stack)-1]
	r.stack = r.stack[:len(r.stack)-1]
	return v, nil
}

func (r *arrayReader) run() (any, error) {
	for {
		op, err := r.number(1)
		if err != nil {
			return nil, err
		}
		if op == opStop {
			return r.pop()
		}
		if err := r.step(byte(op)); err != nil {
			return nil, err
		}
	}
}

func (r *arrayReader) step(op byte) error {
	widths := map[byte]int{
		opProto: 1, opFrame: 8, opInt: 4, opInt1: 1, opInt2: 2, opPut: 1, opLongPut: 4, opGet: 1, opLongGet: 4,
		opShortText: 1, opText: 4, opText8: 8, opShortBytes: 1, opBytes: 4, opBytes8: 8, opByteArray8: 8,
	}
	switch op {
	case opProto, opFrame:
		_, err := r.number(widths[op])
		return err
	case opInt, opInt1, opInt2:
		n, err := r.number(widths[op])
		if op == opInt {
			n = uint64(int64(int32(n)))
		}
		r.push(int(n))
		return err
	case opShortText, opText, opText8:
		text, err := r.counted(widths[op])
		r.push(string(text))
		return err
	case opShortBytes, opBytes, opBytes8, opByteArray8:
		raw, err := r.counted(widths[op])
		r.push(slices.Clip(raw))
		return err
	case opNone:
		r.push(nil)
	case opTrue, opFalse:
		r.push(op == opTrue)
	case opMark:
		r.push(pickleMark{})
	case opTuple, opEmptyTuple, opTuple1, opTuple2, opTuple3:
		return r.tuple(op)
	case opMemoize, opPut, opLongPut:
		return r.remember(op, widths[op])
	case opGet, opLongGet:
		n, err := r.number(widths[op])
		if err != nil {
			return err
		}
		v, ok := r.memo[uint32(n)]
		if !ok {
			return fmt.Errorf("object %d is used before it was made", n)
		}
		r.push(v)
	case opGlobal, opStackGlobal:
		return r.global(op)
	case opReduce:
		return r.reduce()
	case opBuild:
		return r.build()
	default:
		return fmt.Errorf("the instruction 0x%02x is not one that arrays need", op)
	}
	return nil
}

func (r *arrayReader) remember(op byte, width int) error {
	n := uint64(len(r.memo))
	if op != opMemoize {
		var err error
		if n, err = r.number(width); err != nil {
			return err
		}
	}
	if len(r.stack) == 0 {
		return errors.New("an instruction finds the stack empty")
	}
	r.memo[uint32(n)] = r.stack[len(r.stack)-1]
	return nil
}

func (r *arrayReader) tuple(op byte) error {
	n := 0
	switch op {
	case opEmptyTuple:
	case opTuple:
		at := len(r.stack) - 1
		for ; at >= 0; at-- {
			if _, isMark := r.stack[at].(pickleMark); isMark {
				break
			}
		}
		if at < 0 {
			return errors.New("a tuple has no beginning")
		}
		items := pickleTuple(slices.Clone(r.stack[at+1:]))
		r.stack = r.stack[:at]
		r.push(items)
		return nil
	default:
		n = int(op-opTuple1) + 1
	}
	if len(r.stack) < n {
		return errors.New("an instruction finds the stack empty")
	}
	items := pickleTuple(slices.Clone(r.stack[len(r.stack)-n:]))
	r.stack = r.stack[:len(r.stack)-n]
	r.push(items)
	return nil
}

// global pushes the name of a Python object that arrays need.
func (r *arrayReader) global(op byte) error {
	var name string
	if op == opStackGlobal {
		second, err := r.pop()
		if err != nil {
			return err
		}
		first, err := r.pop()
		if err != nil {
			return err
		}
		module, isText := first.(string)
		object, isName := second.(string)
		if !isText || !isName {
			return errors.New("a Python object is named by something that is no text")
		}
		name = module + "." + object
	} else {
		rest := r.data[r.pos:min(len(r.data), r.pos+256)]
		lines := strings.SplitN(string(rest), "\n", 3)
		if len(lines) < 3 {
			return errors.New("the name of a Python object does not end")
		}
		name = lines[0] + "." + lines[1]
		r.pos += len(lines[0]) + len(lines[1]) + 2
	}
	known := strings.TrimPrefix(strings.TrimPrefix(name, "numpy.core."), "numpy._core.") // since NumPy 2 the latter
	if !slices.Contains([]string{reconstruct, fromBuffer, ndarray, dtype, encode}, known) {
		return fmt.Errorf("it asks for the Python object %.100q, which arrays do not need and which is never run", name)
	}
	r.push(pickleName(known))
	return nil
}

// reduce carries out the few calls that arrays are made with.
func (r *arrayReader) reduce() error {
	argument, err := r.pop()
	if err != nil {
		return err
	}
	function, err := r.pop()
	if err != nil {
		return err
	}
	arguments, isTuple := argument.(pickleTuple)
	name, isName := function.(pickleName)
	if !isTuple || !isName {
		return errors.New("something is called that is not a function of NumPy")
	}
	at := func(i int) any {
		if i < len(arguments) {
			return arguments[i]
		}
		return nil
	}
	switch name {
	case reconstruct:
		r.push(&pickleArray{})
		return nil
	case dtype:
		if kind, ok := at(0).(string); ok {
			r.push(&pickleDType{kind})
			return nil
		}
	case encode: // protocol 2 writes bytes as text
		text, isText := at(0).(string)
		if encoding, ok := at(1).(string); ok && isText && encoding == "latin1" {
			raw := make([]byte, 0, len(text))
			for _, letter := range text {
				if letter > 255 {
					return errors.New("bytes are written as text with letters beyond Latin-1")
				}
				raw = append(raw, byte(letter))
			}
			r.push(raw)
			return nil
		}
	case fromBuffer: // protocol 5: bytes, type, shape, order
		raw, hasBytes := at(0).([]byte)
		kind, hasType := at(1).(*pickleDType)
		shape, hasShape := at(2).(pickleTuple)
		if order, ok := at(3).(string); hasBytes && hasType && hasShape && ok {
			if order != "C" {
				return errors.New("the array is stored by columns; save numpy.ascontiguousarray of it")
			}
			r.push(&pickleArray{shape, kind.kind, raw})
			return nil
		}
	}
	return fmt.Errorf("%s is called in a way that NumPy does not", string(name))
}

// build sets the state of an array or of its type.
func (r *arrayReader) build() error {
	argument, err := r.pop()
	if err != nil {
		return err
	}
	state, isTuple := argument.(pickleTuple)
	if !isTuple || len(r.stack) == 0 {
		return errors.New("a state is set that is no tuple")
	}
	switch object := r.stack[len(r.stack)-1].(type) {
	case *pickleDType: // (version, byte order, …)
		if len(state) > 1 {
			if order, ok := state[1].(string); ok && (order == "<" || order == "|") {
				return nil
			}
		}
		return errors.New("the array's numbers are not little-endian")
	case *pickleArray: // (version, shape, type, by columns, bytes)
		if len(state) == 5 {
			shape, hasShape := state[1].(pickleTuple)
			kind, hasType := state[2].(*pickleDType)
			byColumns, hasOrder := state[3].(bool)
			raw, hasBytes := state[4].([]byte)
			if hasShape && hasType && hasOrder && hasBytes {
				if byColumns {
					return errors.New("the array is stored by columns; save numpy.ascontiguousarray of it")
				}
				object.shape, object.kind, object.data = shape, kind.kind, raw
				return nil
			}
		}
	}
	return errors.New("a state is set that is not that of an array")
}
