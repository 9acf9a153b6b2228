package tokenizer

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
)

// WithPlaceholder returns a tokenizer that also knows a new word, such as "<cat>", which stands for the given number of
// new tokens: their ids follow the last one of the vocabulary. As in transformers the word is looked for in the cleaned
// prompt, also inside other words.
func (t *Tokenizer) WithPlaceholder(word string, tokens int) (*Tokenizer, error) {
	text := t.composer.clean(word)
	switch {
	case text == "" || strings.ContainsFunc(text, unicode.IsSpace):
		return nil, fmt.Errorf("the placeholder %q must be a word without white space, such as <cat>", clip(word))
	case tokens < 1 || tokens > t.length-2:
		return nil, fmt.Errorf("the placeholder %q stands for %d tokens, but a prompt holds 1 to %d", clip(word), tokens, t.length-2)
	}
	next := *t
	next.tokens, next.ids = slices.Clone(t.tokens), maps.Clone(t.ids)
	for i := range tokens {
		name := word
		if i > 0 {
			name = fmt.Sprintf("%s_%d", word, i) // diffusers' names of the further tokens
		}
		for _, known := range []string{name, t.composer.clean(name), t.composer.clean(name) + endOfWord} {
			if _, ok := t.ids[known]; ok {
				return nil, fmt.Errorf("the placeholder %q is a word that the tokenizer knows already; choose another one, such as <%s>", clip(word), clip(strings.Trim(word, "<>")))
			}
		}
		next.ids[name] = int32(len(next.tokens))
		next.tokens = append(next.tokens, name)
	}
	next.cleanSpecials = append(slices.Clone(t.cleanSpecials), special{text: text, id: next.ids[word], more: tokens - 1})
	slices.SortFunc(next.cleanSpecials, longestFirst)
	return &next, nil
}
