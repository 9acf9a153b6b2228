package recipe

import (
	"fmt"
	"strconv"
	"strings"
)

// Limits that no honest recipe comes near. They keep a hostile one from exhausting the parser, which recurses into nested
// values and stores the full path of every key.
const (
	maxBytes    = 1 << 20
	maxDepth    = 32     // parts of a path, nested values included
	maxKeyBytes = 128    // one part of a path
	maxEntries  = 10_000 // keys, tables and arrays in a file
)

// scanner walks through TOML text to find the line of every key, which the parser does not tell, and to enforce the
// limits before the parser runs. It checks structure only; values are left to the parser.
type scanner struct {
	text     string
	at       int
	line     int
	entries  int
	lines    map[string]int
	elements map[string]int // how many [[path]] there were so far
}

// stop is the panic value with which the scanner unwinds to scan.
type stop struct{ problem Problem }

// scan returns the line of every path of the text, or what is wrong with it.
func scan(text string) (lines map[string]int, problem *Problem) {
	s := &scanner{text: text, line: 1, lines: map[string]int{}, elements: map[string]int{}}
	defer func() {
		if r := recover(); r != nil {
			stopped, ok := r.(stop)
			if !ok {
				panic(r)
			}
			problem = &stopped.problem
		}
	}()
	table, depth := "", 0
	for s.blank(); s.at < len(s.text); s.blank() {
		if s.peek() == '[' {
			table, depth = s.header()
		} else {
			s.keyValue(table, depth)
		}
		s.endOfLine()
	}
	return s.lines, nil
}

// lineOf is the line of a path or, for an element of an array, of what encloses it.
func lineOf(lines map[string]int, path string) int {
	for path != "" {
		if line, ok := lines[path]; ok {
			return line
		}
		i := strings.LastIndexByte(path, '[')
		if i < 0 || !strings.HasSuffix(path, "]") {
			break
		}
		path = path[:i]
	}
	return 0
}

func (s *scanner) fail(format string, args ...any) {
	panic(stop{Problem{Line: s.line, Message: fmt.Sprintf(format, args...)}})
}

// peek returns the next byte, or a newline at the end.
func (s *scanner) peek() byte {
	if s.at < len(s.text) {
		return s.text[s.at]
	}
	return '\n'
}

// take moves on if the text continues with prefix.
func (s *scanner) take(prefix string) bool {
	if !strings.HasPrefix(s.text[s.at:], prefix) {
		return false
	}
	s.at += len(prefix)
	return true
}

func (s *scanner) spaces() {
	for s.at < len(s.text) && (s.text[s.at] == ' ' || s.text[s.at] == '\t') {
		s.at++
	}
}

// blank skips white space, line ends and comments.
func (s *scanner) blank() {
	for s.at < len(s.text) {
		switch s.text[s.at] {
		case ' ', '\t', '\r':
		case '\n':
			s.line++
		case '#':
			for s.at < len(s.text) && s.text[s.at] != '\n' {
				s.at++
			}
			continue
		default:
			return
		}
		s.at++
	}
}

// endOfLine is what must follow a table header or a value.
func (s *scanner) endOfLine() {
	s.spaces()
	if c := s.peek(); c != '\n' && c != '\r' && c != '#' {
		s.fail("there is something left on the line; put each key on a line of its own")
	}
}

// enter notes a key, table or array of the given path, and checks the limits.
func (s *scanner) enter(path string, depth int) {
	if s.entries++; s.entries > maxEntries {
		s.fail("the recipe has more than %d keys; split it", maxEntries)
	}
	if depth > maxDepth {
		s.fail("values are nested more than %d deep; flatten them", maxDepth)
	}
	if _, ok := s.lines[path]; !ok {
		s.lines[path] = s.line
	}
}

// header reads [path] or [[path]].
func (s *scanner) header() (path string, depth int) {
	s.at++
	array := s.take("[")
	parts := s.key()
	if closing := map[bool]string{false: "]", true: "]]"}[array]; !s.take(closing) {
		s.fail("a table name must end in %s", closing)
	}
	for i, part := range parts {
		path = join(path, part)
		s.enter(path, i+1)
		if array && i == len(parts)-1 {
			s.elements[path]++
		}
		if n := s.elements[path]; n > 0 { // further keys belong to the last element
			path = element(path, n-1)
			s.enter(path, i+1)
		}
	}
	return path, len(parts)
}

// keyValue reads key = value inside a table.
func (s *scanner) keyValue(table string, depth int) {
	path := table
	for _, part := range s.key() {
		path = join(path, part)
		depth++
		s.enter(path, depth)
	}
	if !s.take("=") {
		s.fail("a key must be followed by = and a value")
	}
	s.spaces()
	s.value(path, depth)
}

// key reads a dotted key and the spaces around it.
func (s *scanner) key() []string {
	var parts []string
	for {
		s.spaces()
		var part string
		begin := s.at
		switch c := s.peek(); c {
		case '"', '\'':
			s.quoted(c)
			part = s.text[begin+1 : s.at-1]
			if c == '"' {
				// Escapes that Go does not share with TOML cost no more than the line in a message.
				if plain, err := strconv.Unquote(s.text[begin:s.at]); err == nil {
					part = plain
				}
			}
		default:
			for c := s.peek(); c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'; c = s.peek() {
				s.at++
			}
			if part = s.text[begin:s.at]; part == "" {
				s.fail("a key is missing or has a character that needs quotation marks")
			}
		}
		if len(part) > maxKeyBytes {
			s.fail("a key has more than %d bytes; shorten it", maxKeyBytes)
		}
		if parts = append(parts, part); len(parts) > maxDepth {
			s.fail("a key has more than %d parts; shorten it", maxDepth)
		}
		s.spaces()
		if !s.take(".") {
			return parts
		}
	}
}

// quoted skips a string of one line.
func (s *scanner) quoted(quote byte) {
	for s.at++; ; s.at++ {
		switch c := s.peek(); {
		case c == '\n':
			s.fail("a string is not closed on its line")
		case c == quote:
			s.at++
			return
		case c == '\\' && quote == '"':
			if s.at++; s.peek() == '\n' {
				s.fail("a string is not closed on its line")
			}
		}
	}
}

// quotedLines skips a string of several lines, whose quotation mark is tripled.
func (s *scanner) quotedLines(quote byte) {
	closing := strings.Repeat(string(quote), 3)
	for s.at += 3; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; {
		case c == '\n':
			s.line++
		case c == '\\' && quote == '"':
			if s.at++; s.peek() == '\n' {
				s.line++
			}
		case s.take(closing):
			for range 2 { // the string may end in two quotation marks of its own
				s.take(string(quote))
			}
			return
		}
	}
	s.fail("a string of several lines is not closed with %s", closing)
}

// value skips a value and enters the keys inside.
func (s *scanner) value(path string, depth int) {
	switch c := s.peek(); c {
	case '"', '\'':
		if strings.HasPrefix(s.text[s.at:], strings.Repeat(string(c), 3)) {
			s.quotedLines(c)
		} else {
			s.quoted(c)
		}
	case '[':
		s.array(path, depth)
	case '{':
		s.inlineTable(path, depth)
	default:
		begin := s.at
		for s.at < len(s.text) && !strings.ContainsRune(",]}#\r\n", rune(s.text[s.at])) {
			s.at++
		}
		if strings.TrimSpace(s.text[begin:s.at]) == "" {
			s.fail("a value is missing")
		}
	}
}

func (s *scanner) array(path string, depth int) {
	s.at++
	for i := 0; ; i++ {
		s.blank()
		if s.take("]") {
			return
		}
		inner := path
		if c := s.peek(); c == '[' || c == '{' { // plain values have the line of the array: there may be many
			inner = element(path, i)
			s.enter(inner, depth+1)
		}
		s.value(inner, depth+1)
		if s.blank(); !s.take(",") && s.peek() != ']' {
			s.fail("an array is not closed with ]")
		}
	}
}

func (s *scanner) inlineTable(path string, depth int) {
	s.at++
	for {
		s.blank()
		if s.take("}") {
			return
		}
		s.keyValue(path, depth)
		if s.blank(); !s.take(",") && s.peek() != '}' {
			s.fail("a table is not closed with }")
		}
	}
}
