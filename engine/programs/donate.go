package programs

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// Label tells the compiler's hook which function a program comes from; a program's text carries it as the name of its
// module.
type Label struct{ number int64 }

type function struct {
	name  string
	donor []bool
}

var (
	numbers   atomic.Int64
	functions sync.Map // number of a Label → *function
)

// NewLabel registers a function. Forget it when the function is freed.
func NewLabel(name string) Label {
	l := Label{number: numbers.Add(1)}
	functions.Store(l.number, &function{name: name})
	return l
}

// String is what to call the module of the function's programs.
func (l Label) String() string { return "resalign" + strconv.FormatInt(l.number, 10) }

// Donate says which inputs the function gives up; it holds for the programs that are compiled from then on. An input that
// is given up all the same when a program runs is freed after it; one that is kept though its program was promised it is
// copied.
func (l Label) Donate(donor []bool) {
	if before, ok := functions.Load(l.number); ok {
		functions.Store(l.number, &function{name: before.(*function).name, donor: bytesOf(donor)})
	}
}

func bytesOf(donor []bool) []bool { return append([]bool(nil), donor...) }

// Forget removes what is known of a function.
func (l Label) Forget() { functions.Delete(l.number) }

// labelled is the head of a program of a labelled function; its number after the underscore counts shapes.
var labelled = regexp.MustCompile(`^module @resalign(\d+)_(\d+)`)

// describe rewrites a program's text (StableHLO): the module gets the function's name, which is the same in every run, and
// the arguments that the function gives up are marked, so that the compiler may place outputs in their memory. Programs of
// others, and those in another form, come back as they are.
func describe(program []byte) []byte {
	head := labelled.FindSubmatch(program)
	if head == nil {
		return program
	}
	number, err := strconv.ParseInt(string(head[1]), 10, 64)
	if err != nil {
		return program
	}
	known, ok := functions.Load(number)
	if !ok {
		return program
	}
	f := known.(*function)
	out := append([]byte("module @"+identifier(f.name)), program[len(head[0]):]...)
	return markDonors(out, f.donor)
}

// identifier is a name in which only letters, digits and underscores are left.
func identifier(name string) string {
	mapped := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' {
			return r
		}
		return '_'
	}, name)
	return "f_" + mapped
}

const mainHead = "func.func @main("

// argument is one argument without attributes in the head of a function.
var argument = regexp.MustCompile(`^\s*%arg(\d+): tensor<[^<>]*>`)

// markDonors adds jax.buffer_donor, which XLA's importer reads, to the arguments of main whose number is marked. If the
// head is not of the form that it knows, the program comes back as it is.
func markDonors(program []byte, donor []bool) []byte {
	start := bytes.Index(program, []byte(mainHead))
	if start < 0 || len(donor) == 0 {
		return program
	}
	start += len(mainHead)
	out := append(make([]byte, 0, len(program)+32*len(donor)), program[:start]...)
	rest := program[start:]
	for {
		found := argument.FindSubmatch(rest)
		if found == nil {
			return program
		}
		number, err := strconv.Atoi(string(found[1]))
		if err != nil {
			return program
		}
		out = append(out, found[0]...)
		rest = rest[len(found[0]):]
		if number < len(donor) && donor[number] {
			out = append(out, " {jax.buffer_donor = true}"...)
		}
		switch {
		case bytes.HasPrefix(rest, []byte(",")):
			out, rest = append(out, ','), rest[1:]
		case bytes.HasPrefix(rest, []byte(")")):
			return append(out, rest...)
		default:
			return program
		}
	}
}
