package mini

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// promptTokens is the length of encoded prompts: the longest caption has eight words, and start and end of text join.
const promptTokens = 10

const (
	startToken = "<|startoftext|>"
	endToken   = "<|endoftext|>"
	endOfWord  = "</w>"
)

// bytePairs is a byte-pair vocabulary in CLIP's form.
type bytePairs struct {
	tokens []string // by id
	merges [][2]string
}

// newBytePairs makes a vocabulary in which every given word, in lower-case ASCII letters, is one token, and in which any
// other text can be spelled byte by byte.
func newBytePairs(words []string) bytePairs {
	var v bytePairs
	letters := byteLetters()
	for _, suffix := range []string{"", endOfWord} {
		for _, l := range letters {
			v.tokens = append(v.tokens, l+suffix)
		}
	}
	// A merge ranks below all earlier ones, so it cannot change how earlier words are put together.
	for _, word := range words {
		for {
			pieces := v.split(word)
			if len(pieces) == 1 {
				break
			}
			v.merges = append(v.merges, [2]string{pieces[0], pieces[1]})
			v.tokens = append(v.tokens, pieces[0]+pieces[1])
		}
	}
	v.tokens = append(v.tokens, startToken, endToken)
	return v
}

// split applies the merges to a word in the order of their ranks.
func (v bytePairs) split(word string) []string {
	pieces := strings.Split(word, "")
	pieces[len(pieces)-1] += endOfWord
	for _, m := range v.merges {
		for i := 0; i+1 < len(pieces); i++ {
			if pieces[i] == m[0] && pieces[i+1] == m[1] {
				pieces[i] += m[1]
				pieces = slices.Delete(pieces, i+1, i+2)
			}
		}
	}
	return pieces
}

// byteLetters are the letters that stand for the 256 bytes in vocabulary files, in the order that CLIP lists them:
// visible Latin-1 characters for themselves, then letters from U+0100 for the others.
func byteLetters() []string {
	var visible, others []string
	for b := range rune(256) {
		if b >= '!' && b <= '~' || b >= 0xA1 && b != 0xAD {
			visible = append(visible, string(b))
		} else {
			others = append(others, string(0x100+rune(len(others))))
		}
	}
	return append(visible, others...)
}

// write writes the vocabulary as a tokenizer folder that transformers' CLIPTokenizer reads.
func (v bytePairs) write(dir string) error {
	ids := make(map[string]int, len(v.tokens))
	for id, token := range v.tokens {
		ids[token] = id
	}
	var merges strings.Builder
	merges.WriteString("#version: 0.2\n")
	for _, m := range v.merges {
		fmt.Fprintf(&merges, "%s %s\n", m[0], m[1])
	}
	special := map[string]any{"bos_token": startToken, "eos_token": endToken, "pad_token": endToken, "unk_token": endToken}
	config := map[string]any{
		"tokenizer_class": "CLIPTokenizer", "model_max_length": promptTokens, "do_lower_case": true, "add_prefix_space": false,
		"errors": "replace",
	}
	for role, token := range special {
		config[role] = token
	}
	if err := writeJSON(filepath.Join(dir, "vocab.json"), ids); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, "merges.txt"), []byte(merges.String())); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, "special_tokens_map.json"), special); err != nil {
		return err
	}
	return writeJSON(filepath.Join(dir, "tokenizer_config.json"), config)
}
