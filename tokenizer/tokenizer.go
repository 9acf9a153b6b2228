// Package tokenizer turns prompts into the token ids that the text encoders of Stable Diffusion read: CLIP's byte-pair
// encoding (openai/CLIP, simple_tokenizer.py; transformers, CLIPTokenizer).
//
// Prompts are cleaned as transformers' tokenizer does without optional helpers: normalization form C, white space
// collapsed, lower case. HTML entities and typographic quotes are kept as they are.
package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Tokenizer is one vocabulary with its merges and special tokens. It never changes after Load and may be used from
// several goroutines at once.
type Tokenizer struct {
	tokens     []string // by id
	ids        map[string]int32
	merges     merges
	byteID     [256]int32 // token of a byte inside a word
	lastByteID [256]int32 // token of a byte that ends a word
	composer   *composer

	start, end, pad int32
	length          int
	rawSpecials     []special // found in the prompt as it was typed
	cleanSpecials   []special // found in the cleaned prompt
	isSpecial       map[int32]bool
}

// special is a token that is recognized in prompts as a whole, e.g. "<|endoftext|>".
type special struct {
	text string
	id   int32
	more int // further tokens that it stands for; their ids follow
}

// Length is the number of ids Encode returns: model_max_length of the tokenizer's configuration, 77 for CLIP.
func (t *Tokenizer) Length() int { return t.length }

// VocabSize is the number of tokens; every id is in [0, VocabSize).
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// StartID is the id of the token every encoded prompt starts with.
func (t *Tokenizer) StartID() int32 { return t.start }

// EndID is the id of the token that follows the prompt.
func (t *Tokenizer) EndID() int32 { return t.end }

// PadID is the id of the token that fills up the rest: end-of-text for Stable Diffusion 1.x, "!" for 2.x and the second
// tokenizer of SDXL.
func (t *Tokenizer) PadID() int32 { return t.pad }

// TokenID returns the id of a token spelled as in the vocabulary (e.g. "photo</w>", where </w> ends a word).
func (t *Tokenizer) TokenID(token string) (id int32, ok bool) {
	id, ok = t.ids[token]
	return id, ok
}

// Encode returns exactly Length ids: start of text, the tokens of the prompt, end of text, padding. A prompt with more
// than Length−2 tokens is cut; cut is then the (cleaned) text that did not fit, otherwise it is empty. Bytes that are
// not UTF-8 are read as U+FFFD.
func (t *Tokenizer) Encode(prompt string) (ids []int32, cut string) {
	ids = append(make([]int32, 0, t.length), t.start)
	room := t.length - 2
	var rest strings.Builder
	prompt = strings.ToValidUTF8(prompt, "\uFFFD")
	for typed := range segments(prompt, t.rawSpecials) {
		if typed.special != nil {
			room = t.addSpecial(typed.special, room, &ids, &rest)
			continue
		}
		for cleaned := range segments(t.composer.clean(typed.text), t.cleanSpecials) {
			if cleaned.special != nil {
				room = t.addSpecial(cleaned.special, room, &ids, &rest)
				continue
			}
			room = t.addText(cleaned.text, room, &ids, &rest)
		}
	}
	ids = append(ids, t.end)
	for len(ids) < t.length {
		ids = append(ids, t.pad)
	}
	return ids, strings.TrimSpace(rest.String())
}

// addSpecial appends the tokens of a special one to ids, or its text to rest when there is no room for all; it returns
// the room left.
func (t *Tokenizer) addSpecial(s *special, room int, ids *[]int32, rest *strings.Builder) int {
	for i := range 1 + s.more {
		if room == 0 {
			rest.WriteString(s.text)
			return 0
		}
		*ids = append(*ids, s.id+int32(i))
		room--
	}
	return room
}

// addText appends the tokens of cleaned text to ids as long as there is room, and the text of the others to rest; it
// returns the room left.
func (t *Tokenizer) addText(text string, room int, ids *[]int32, rest *strings.Builder) int {
	for {
		start, end, ok := nextWord(text)
		if !ok {
			return room
		}
		if room == 0 {
			rest.WriteString(text)
			return 0
		}
		at := start
		for _, p := range t.encodeWord(text[start:end]) {
			if room == 0 {
				for !utf8.RuneStart(text[at]) {
					at-- // tokens may end inside a code point; show it whole
				}
				rest.WriteString(text[at:])
				return 0
			}
			*ids = append(*ids, p.id)
			at += p.size
			room--
		}
		text = text[end:]
	}
}

// segment is a stretch of a prompt: a special token or the plain text between two.
type segment struct {
	text    string
	special *special
}

// segments yields text cut at every occurrence of a special token, the longest first where several match.
func segments(text string, specials []special) func(yield func(segment) bool) {
	return func(yield func(segment) bool) {
		plain := 0
		for at := 0; at < len(text); {
			found := matchSpecial(text[at:], specials)
			if found == nil {
				at++
				continue
			}
			if at > plain && !yield(segment{text: text[plain:at]}) {
				return
			}
			if !yield(segment{special: found}) {
				return
			}
			at += len(found.text)
			plain = at
		}
		if plain < len(text) {
			yield(segment{text: text[plain:]})
		}
	}
}

// matchSpecial returns the special token text starts with, or nil. specials are sorted from long to short.
func matchSpecial(text string, specials []special) *special {
	i := slices.IndexFunc(specials, func(s special) bool { return strings.HasPrefix(text, s.text) })
	if i < 0 {
		return nil
	}
	return &specials[i]
}

// Decode returns the text of ids without the special tokens: words are separated by single spaces, and bytes that do
// not form UTF-8 become U+FFFD. It fails on an id outside the vocabulary.
func (t *Tokenizer) Decode(ids []int32) (string, error) {
	var text []byte
	for i, id := range ids {
		if id < 0 || int(id) >= len(t.tokens) {
			return "", fmt.Errorf("token %d has id %d, but the vocabulary has ids 0 … %d", i, id, len(t.tokens)-1)
		}
		if t.isSpecial[id] {
			continue
		}
		token, endsWord := strings.CutSuffix(t.tokens[id], endOfWord)
		for _, r := range token {
			if b, ok := byteOf(r); ok {
				text = append(text, b)
			} else {
				text = utf8.AppendRune(text, r)
			}
		}
		if endsWord {
			text = append(text, ' ')
		}
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(text), "\uFFFD")), nil
}
