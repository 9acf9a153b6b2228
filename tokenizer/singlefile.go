package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
)

// readSingleFile reads tokenizer.json, the format of the tokenizers library, which holds vocabulary, merges and added
// tokens in one file.
func readSingleFile(file string, settings *settings) (*vocabulary, error) {
	var content struct {
		Added []struct {
			ID         *int64 `json:"id"`
			Content    string `json:"content"`
			Normalized bool   `json:"normalized"`
		} `json:"added_tokens"`
		Padding *struct {
			Token string `json:"pad_token"`
		} `json:"padding"`
		Model struct {
			Type   string          `json:"type"`
			Suffix string          `json:"end_of_word_suffix"`
			Vocab  json.RawMessage `json:"vocab"`
			Merges []mergePair     `json:"merges"`
		} `json:"model"`
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &content); err != nil {
		return nil, badJSON(file, err)
	}
	model := content.Model
	if model.Type != "BPE" || model.Suffix != endOfWord {
		return nil, fmt.Errorf("%s: model.type is %q and model.end_of_word_suffix %q; only CLIP's, \"BPE\" and %q, is supported",
			file, clip(model.Type), clip(model.Suffix), endOfWord)
	}
	if len(model.Vocab) == 0 {
		return nil, fmt.Errorf("%s has no model.vocab; copy it from the model again", file)
	}
	ids, err := parseIDs(file, model.Vocab)
	if err != nil {
		return nil, err
	}
	vocab := &vocabulary{file: file, ids: ids, merges: mergeList{file: file}, added: map[string]addedToken{}}
	for _, p := range model.Merges {
		vocab.merges.pairs = append(vocab.merges.pairs, p)
	}
	for i, token := range content.Added {
		if token.ID == nil || token.Content == "" {
			return nil, fmt.Errorf("%s: added_tokens[%d] lacks its id or its content; copy the file from the model again", file, i)
		}
		added := addedToken{token.Content, token.Normalized}
		settings.added = append(settings.added, listedToken{added, *token.ID, file})
	}
	if content.Padding != nil && content.Padding.Token != "" && settings.pad.file == "" {
		settings.pad = configuredToken{addedToken{Content: content.Padding.Token}, file}
	}
	return vocab, nil
}

// mergePair is one merge, spelled "left right" or ["left", "right"].
type mergePair [2]string

// UnmarshalJSON accepts both spellings.
func (p *mergePair) UnmarshalJSON(data []byte) error {
	var parts []string
	if len(data) > 0 && data[0] == '"' {
		var line string
		if err := json.Unmarshal(data, &line); err != nil {
			return err
		}
		parts = splitMerge(line)
	} else if err := json.Unmarshal(data, &parts); err != nil {
		return err
	}
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return fmt.Errorf("the merge %s is not two tokens", clip(string(data)))
	}
	p[0], p[1] = parts[0], parts[1]
	return nil
}
