package tokenizer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The spelling and the length CLIP uses where a tokenizer folder does not say otherwise (transformers, CLIPTokenizer).
const (
	defaultStart  = "<|startoftext|>"
	defaultEnd    = "<|endoftext|>"
	defaultLength = 77
	endOfWord     = "</w>"
)

// vocabulary is what the files of a folder say, before it is checked.
type vocabulary struct {
	file   string // where ids come from, for messages
	ids    map[string]int32
	merges mergeList
	added  map[string]addedToken // by spelling: tokens beside the vocabulary that are matched as a whole
}

// mergeList is a list of merges by rank and the file they come from.
type mergeList struct {
	file  string
	pairs [][2]string
}

// Load reads a tokenizer folder as transformers writes it: vocab.json with merges.txt, or else tokenizer.json alone;
// tokenizer_config.json, special_tokens_map.json and added_tokens.json are read where they are there. Errors name the
// file, what is wrong in it, and what to do.
func Load(dir string) (*Tokenizer, error) {
	settings, err := readSettings(dir)
	if err != nil {
		return nil, err
	}
	vocab, err := readVocabulary(dir, settings)
	if err != nil {
		return nil, err
	}
	return assemble(vocab, settings)
}

// assemble checks a vocabulary and its settings against each other and makes a tokenizer of them.
func assemble(vocab *vocabulary, settings *settings) (t *Tokenizer, err error) {
	t = &Tokenizer{ids: vocab.ids, length: settings.length}
	if t.composer, err = newComposer(); err != nil {
		return nil, err
	}
	if err := vocab.addTokens(settings); err != nil {
		return nil, err
	}
	if t.tokens, err = orderTokens(vocab); err != nil {
		return nil, err
	}
	if t.merges, err = buildMerges(vocab); err != nil {
		return nil, err
	}
	if err := t.setSpecials(vocab, settings); err != nil {
		return nil, err
	}
	if err := t.setBytes(vocab, settings); err != nil {
		return nil, err
	}
	return t, nil
}

// readVocabulary prefers vocab.json and merges.txt, as transformers' Python tokenizer does, to tokenizer.json.
func readVocabulary(dir string, settings *settings) (*vocabulary, error) {
	vocabFile, mergesFile := filepath.Join(dir, "vocab.json"), filepath.Join(dir, "merges.txt")
	single := filepath.Join(dir, "tokenizer.json")
	hasVocab, err := exists(vocabFile)
	if err != nil {
		return nil, err
	}
	hasMerges, err := exists(mergesFile)
	if err != nil {
		return nil, err
	}
	hasSingle, err := exists(single)
	switch {
	case err != nil:
		return nil, err
	case hasVocab && hasMerges:
		return readVocabAndMerges(vocabFile, mergesFile)
	case hasSingle:
		return readSingleFile(single, settings)
	case hasVocab:
		return nil, fmt.Errorf("%s is missing beside vocab.json; copy the whole tokenizer folder of the model", mergesFile)
	case hasMerges:
		return nil, fmt.Errorf("%s is missing beside merges.txt; copy the whole tokenizer folder of the model", vocabFile)
	}
	return nil, fmt.Errorf("%s holds no tokenizer; name a folder with vocab.json and merges.txt, or with tokenizer.json", dir)
}

func exists(file string) (bool, error) {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func readVocabAndMerges(vocabFile, mergesFile string) (*vocabulary, error) {
	data, err := os.ReadFile(vocabFile)
	if err != nil {
		return nil, err
	}
	ids, err := parseIDs(vocabFile, data)
	if err != nil {
		return nil, err
	}
	data, err = os.ReadFile(mergesFile)
	if err != nil {
		return nil, err
	}
	list := mergeList{file: mergesFile}
	for number, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" || number == 0 && strings.HasPrefix(line, "#version") {
			continue
		}
		parts := splitMerge(line)
		if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
			return nil, fmt.Errorf("%s, line %d: %q is not two tokens with one space between; copy the file from the model again",
				mergesFile, number+1, clip(line))
		}
		list.pairs = append(list.pairs, [2]string(parts))
	}
	return &vocabulary{file: vocabFile, ids: ids, merges: list, added: map[string]addedToken{}}, nil
}

// splitMerge splits the line of a merge into its tokens: two if it is well formed.
func splitMerge(line string) []string { return strings.SplitN(line, " ", 3) }

// addTokens puts the tokens that the configuration adds into the vocabulary.
func (v *vocabulary) addTokens(settings *settings) error {
	for _, token := range settings.added {
		v.added[token.Content] = token.addedToken
		if known, ok := v.ids[token.Content]; ok {
			if int64(known) != token.id {
				return fmt.Errorf("%s gives the token %q the id %d, but %s gives it %d; take all files from the same model",
					token.file, clip(token.Content), token.id, v.file, known)
			}
			continue
		}
		if token.id < 0 || token.id >= int64(len(v.ids)+len(settings.added)) {
			return fmt.Errorf("%s gives the token %q the id %d, outside 0 … %d; ids number the tokens without gaps",
				token.file, clip(token.Content), token.id, len(v.ids)+len(settings.added)-1)
		}
		v.ids[token.Content] = int32(token.id)
	}
	return nil
}

// orderTokens inverts token → id and checks that the ids are 0 … n−1, each once.
func orderTokens(v *vocabulary) ([]string, error) {
	tokens := make([]string, len(v.ids))
	taken := make([]bool, len(v.ids))
	for token, id := range v.ids {
		if id < 0 || int(id) >= len(tokens) {
			return nil, fmt.Errorf("%s gives the token %q the id %d, but it has %d tokens with ids 0 … %d; "+
				"the file is incomplete or damaged, copy it from the model again", v.file, clip(token), id, len(tokens), len(tokens)-1)
		}
		if taken[id] {
			return nil, fmt.Errorf("%s gives the id %d to both %q and %q; copy the file from the model again",
				v.file, id, clip(min(token, tokens[id])), clip(max(token, tokens[id])))
		}
		tokens[id], taken[id] = token, true
	}
	return tokens, nil
}

func buildMerges(v *vocabulary) (merges, error) {
	table := make(merges, len(v.merges.pairs))
	for rank, p := range v.merges.pairs {
		var ids [3]int32
		for i, token := range []string{p[0], p[1], p[0] + p[1]} {
			id, ok := v.ids[token]
			if !ok {
				return nil, fmt.Errorf("%s: merge %d (%q + %q) needs the token %q, which %s lacks; take both from the same model",
					v.merges.file, rank+1, clip(p[0]), clip(p[1]), clip(token), v.file)
			}
			ids[i] = id
		}
		key := pair(ids[0], ids[1])
		if earlier, ok := table[key]; ok {
			return nil, fmt.Errorf("%s: merge %d (%q + %q) repeats merge %d; copy the file from the model again",
				v.merges.file, rank+1, clip(p[0]), clip(p[1]), earlier.rank+1)
		}
		table[key] = merge{rank: int32(rank), id: ids[2]}
	}
	return table, nil
}

// setSpecials looks up start, end and padding and lists the tokens that are matched as a whole in prompts.
func (t *Tokenizer) setSpecials(v *vocabulary, s *settings) error {
	t.isSpecial = map[int32]bool{}
	for _, role := range []struct {
		field string
		token configuredToken
		id    *int32
	}{{"bos_token", s.start, &t.start}, {"eos_token", s.end, &t.end}, {"pad_token", s.pad, &t.pad}} {
		id, ok := v.ids[role.token.Content]
		if !ok {
			return fmt.Errorf("%s has no token %q, which %s needs as %s; the vocabulary is incomplete or of another model",
				v.file, clip(role.token.Content), role.token.source(s.dir), role.field)
		}
		*role.id = id
		t.isSpecial[id] = true
		v.matchWhole(role.token.addedToken)
	}
	if id, ok := v.ids[s.unknown.Content]; ok {
		t.isSpecial[id] = true
		v.matchWhole(s.unknown.addedToken)
	}
	for text, token := range v.added {
		if text == "" {
			return fmt.Errorf("%s adds a token without text; remove it", s.dir)
		}
		found := special{text: text, id: v.ids[text]}
		if token.Normalized {
			// It is looked for after cleaning, so its own spelling has to be cleaned too.
			found.text = t.composer.clean(text)
			if strings.TrimSpace(found.text) == "" {
				return fmt.Errorf("%s adds the token %q, which is empty once cleaned; remove it", s.dir, clip(text))
			}
			t.cleanSpecials = append(t.cleanSpecials, found)
		} else {
			t.rawSpecials = append(t.rawSpecials, found)
		}
	}
	slices.SortFunc(t.rawSpecials, longestFirst)
	slices.SortFunc(t.cleanSpecials, longestFirst)
	return nil
}

// longestFirst orders special tokens.
func longestFirst(a, b special) int {
	if len(a.text) != len(b.text) {
		return len(b.text) - len(a.text)
	}
	return strings.Compare(a.text, b.text)
}

// matchWhole lists a special token unless it is listed: several roles may share one, and the first says how it matches.
func (v *vocabulary) matchWhole(token addedToken) {
	if _, ok := v.added[token.Content]; !ok {
		v.added[token.Content] = token
	}
}

// setBytes finds the tokens of single bytes, from which all others are merged. Where the vocabulary lacks one, the
// unknown token stands for it.
func (t *Tokenizer) setBytes(v *vocabulary, s *settings) error {
	for b := range 256 {
		for _, form := range []struct {
			token string
			id    *int32
		}{{string(letterOf(byte(b))), &t.byteID[b]}, {string(letterOf(byte(b))) + endOfWord, &t.lastByteID[b]}} {
			id, ok := v.ids[form.token]
			if !ok {
				id, ok = v.ids[s.unknown.Content]
			}
			if !ok {
				return fmt.Errorf("%s has no token %q for the byte %#02x and no unknown token %q to stand for it; "+
					"the vocabulary is incomplete or not CLIP's", v.file, form.token, b, clip(s.unknown.Content))
			}
			*form.id = id
		}
	}
	return nil
}

// letterOf returns the letter that stands for a byte in vocabulary files: visible Latin-1 characters stand for
// themselves, the other bytes are numbered from U+0100 (openai/gpt-2, bytes_to_unicode).
func letterOf(b byte) rune {
	switch {
	case b <= ' ':
		return 0x100 + rune(b)
	case b < 0x7F || b >= 0xA1 && b != 0xAD:
		return rune(b)
	case b <= 0xA0:
		return 0x100 + 33 + rune(b-0x7F)
	}
	return 0x143 // the soft hyphen, 0xAD
}

// byteOf is the inverse of letterOf.
func byteOf(r rune) (b byte, ok bool) {
	switch {
	case r >= 0x100 && r <= 0x120:
		b = byte(r - 0x100)
	case r > 0x120 && r <= 0x142:
		b = byte(r - 0x121 + 0x7F)
	case r == 0x143:
		b = 0xAD
	case r < 0x100:
		b = byte(r)
	}
	return b, letterOf(b) == r
}

// clip shortens text from a file to what fits into a message.
func clip(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
