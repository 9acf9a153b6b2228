package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// clean brings text into the form the vocabulary was built on: normalization form C, every run of white space one
// space, lower case. Letters are lowered one by one, without regard to their neighbours.
func (c *composer) clean(text string) string {
	text = c.nfc(text)
	var b strings.Builder
	b.Grow(len(text))
	inSpace := false
	for _, r := range text {
		space := unicode.IsSpace(r)
		switch {
		case space && !inSpace:
			b.WriteByte(' ')
		case space:
		case r == 'İ':
			b.WriteString("i\u0307") // the one letter whose lower case is two code points
		default:
			b.WriteRune(unicode.ToLower(r))
		}
		inSpace = space
	}
	return b.String()
}

// contractions are split off as words of their own wherever a word can start.
var contractions = [...]string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}

// nextWord finds the first word of cleaned text: text[start:end]. Words are, in order of preference, a contraction, a
// run of letters, one digit, or a run of other symbols; white space only separates. ok is false when none is left.
// This is the pattern of the CLIP tokenizer (openai/CLIP, simple_tokenizer.py).
func nextWord(text string) (start, end int, ok bool) {
	start = strings.IndexFunc(text, func(r rune) bool { return !unicode.IsSpace(r) })
	if start < 0 {
		return 0, 0, false
	}
	rest := text[start:]
	for _, c := range contractions {
		if strings.HasPrefix(rest, c) {
			return start, start + len(c), true
		}
	}
	first, size := utf8.DecodeRuneInString(rest)
	var ends func(rune) bool
	switch {
	case unicode.IsNumber(first):
		return start, start + size, true
	case unicode.IsLetter(first):
		ends = func(r rune) bool { return !unicode.IsLetter(r) }
	default:
		ends = func(r rune) bool { return unicode.IsSpace(r) || unicode.IsLetter(r) || unicode.IsNumber(r) }
	}
	length := strings.IndexFunc(rest, ends)
	if length < 0 {
		length = len(rest)
	}
	return start, start + length, true
}
