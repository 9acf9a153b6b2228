package tokenizer

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// clipMerges are the 48,894 merges of CLIP's vocabulary, one a line, from the start of bpe_simple_vocab_16e6.txt, which
// OpenAI published with CLIP (MIT licence, © 2021 OpenAI) and OpenCLIP carries (MIT licence, © 2012–2021 Ilharco et al.).
//
//go:embed clip_merges.txt.gz
var clipMerges []byte

// CLIP is the tokenizer that all published models of Stable Diffusion and OpenAI's CLIP models share, from the vocabulary
// that the program carries; no file is read. For padding see [WriteCLIP].
func CLIP(padding string) (*Tokenizer, error) {
	const own = "the program's own vocabulary"
	lines, tokens, err := clipVocabulary()
	if err != nil {
		return nil, err
	}
	vocab := &vocabulary{file: own, ids: make(map[string]int32, len(tokens)), merges: mergeList{file: own}, added: map[string]addedToken{}}
	for id, token := range tokens {
		vocab.ids[token] = int32(id)
	}
	for line := range strings.Lines(string(lines)) {
		left, right, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		vocab.merges.pairs = append(vocab.merges.pairs, [2]string{left, right})
	}
	start, end := configuredToken{addedToken{defaultStart, true}, own}, configuredToken{addedToken{defaultEnd, true}, own}
	pad := configuredToken{addedToken{Content: padding}, "the text encoder"}
	return assemble(vocab, &settings{dir: own, start: start, end: end, unknown: end, pad: pad, length: defaultLength})
}

// WriteCLIP writes the tokenizer that all published models of Stable Diffusion share into the folder dir, which must
// exist: vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, as transformers reads them. Prompts
// are filled up with the token padding: "<|endoftext|>" for OpenAI's text encoder, "!" for OpenCLIP's.
func WriteCLIP(dir, padding string) error {
	merges, tokens, err := clipVocabulary()
	if err != nil {
		return err
	}
	vocab, err := objectOfIDs(tokens)
	if err != nil {
		return err
	}
	end := map[string]any{"content": defaultEnd, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false}
	start := map[string]any{"content": defaultStart, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false}
	special := map[string]any{"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": padding}
	config := map[string]any{
		"add_prefix_space": false, "do_lower_case": true, "errors": "replace", "model_max_length": defaultLength, "tokenizer_class": "CLIPTokenizer",
	}
	for role, token := range special {
		config[role] = token
	}
	for name, content := range map[string]any{"tokenizer_config.json": config, "special_tokens_map.json": special} {
		text, err := indented(content)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return fmt.Errorf("tokenizer: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "vocab.json"), vocab, 0o644); err != nil {
		return fmt.Errorf("tokenizer: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "merges.txt"), append([]byte("#version: 0.2\n"), merges...), 0o644); err != nil {
		return fmt.Errorf("tokenizer: %w", err)
	}
	return nil
}

// clipVocabulary returns the merges, as lines, and the tokens by id: the bytes, the bytes at the end of a word, the merged
// pairs by rank, start and end (openai/CLIP, simple_tokenizer.py).
func clipVocabulary() (merges []byte, tokens []string, err error) {
	unpacked, err := gzip.NewReader(bytes.NewReader(clipMerges))
	if err == nil {
		merges, err = io.ReadAll(unpacked)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("tokenizer: the program's own vocabulary is damaged: %w", err)
	}
	// Visible Latin-1 characters, which stand for themselves, come before the other bytes.
	var visible, others []string
	for b := range 256 {
		if letter := letterOf(byte(b)); letter == rune(b) {
			visible = append(visible, string(letter))
		} else {
			others = append(others, string(letter))
		}
	}
	tokens = append(visible, others...)
	for _, letter := range tokens[:256] {
		tokens = append(tokens, letter+endOfWord)
	}
	for line := range strings.Lines(string(merges)) {
		tokens = append(tokens, strings.Replace(strings.TrimSuffix(line, "\n"), " ", "", 1))
	}
	return merges, append(tokens, defaultStart, defaultEnd), nil
}

// objectOfIDs is the JSON object token → id, in the order of the ids.
func objectOfIDs(tokens []string) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	b.WriteByte('{')
	for id, token := range tokens {
		if id > 0 {
			b.WriteString(", ")
		}
		if err := encoder.Encode(token); err != nil {
			return nil, err
		}
		b.Truncate(b.Len() - 1) // the encoder's newline
		fmt.Fprintf(&b, ": %d", id)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func indented(content any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(content)
	return b.Bytes(), err
}
