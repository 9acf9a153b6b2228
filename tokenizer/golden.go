package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
)

// Mismatch is a prompt whose ids differ from the reference.
type Mismatch struct {
	Prompt    string
	Got, Want []int32
}

// String says where the two part.
func (m Mismatch) String() string {
	for i := range min(len(m.Got), len(m.Want)) {
		if m.Got[i] != m.Want[i] {
			return fmt.Sprintf("prompt %q: token %d is %d instead of %d", clip(m.Prompt), i, m.Got[i], m.Want[i])
		}
	}
	return fmt.Sprintf("prompt %q: %d tokens instead of %d", clip(m.Prompt), len(m.Got), len(m.Want))
}

// VerifyGolden encodes the prompts of a reference file with the tokenizer in dir and returns how many prompts there are
// and those whose ids differ. The file holds {"vocab_size": n, "prompts": [text…], "ids": [[id…]…]}.
func VerifyGolden(dir, tokensJSON string) (prompts int, mismatches []Mismatch, err error) {
	var reference struct {
		VocabSize int       `json:"vocab_size"`
		Prompts   []string  `json:"prompts"`
		IDs       [][]int32 `json:"ids"`
	}
	data, err := os.ReadFile(tokensJSON)
	if err != nil {
		return 0, nil, err
	}
	if err := json.Unmarshal(data, &reference); err != nil {
		return 0, nil, badJSON(tokensJSON, err)
	}
	if len(reference.Prompts) == 0 || len(reference.Prompts) != len(reference.IDs) {
		return 0, nil, fmt.Errorf("%s has %d prompts and %d lists of ids; it needs as many of one as of the other, and at least one",
			tokensJSON, len(reference.Prompts), len(reference.IDs))
	}
	t, err := Load(dir)
	if err != nil {
		return 0, nil, err
	}
	if reference.VocabSize != t.VocabSize() {
		return 0, nil, fmt.Errorf("%s is for a vocabulary of %d tokens, but %s has %d; name the folder it was made with",
			tokensJSON, reference.VocabSize, dir, t.VocabSize())
	}
	for i, prompt := range reference.Prompts {
		if got, _ := t.Encode(prompt); !slices.Equal(got, reference.IDs[i]) {
			mismatches = append(mismatches, Mismatch{prompt, got, reference.IDs[i]})
		}
	}
	return len(reference.Prompts), mismatches, nil
}
