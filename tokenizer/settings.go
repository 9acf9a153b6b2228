package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// addedToken is a token that prompts are searched for as a whole. Files spell it as a plain string or as an object.
type addedToken struct {
	Content    string `json:"content"`
	Normalized bool   `json:"normalized"` // searched for in the cleaned prompt instead of the typed one
}

// UnmarshalJSON accepts both spellings.
func (t *addedToken) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		t.Normalized = false
		return json.Unmarshal(data, &t.Content)
	}
	type object addedToken
	if err := json.Unmarshal(data, (*object)(t)); err != nil {
		return err
	}
	if t.Content == "" {
		return errors.New("the token has no content")
	}
	return nil
}

// configuredToken is a special token and the file that names it; an empty file stands for CLIP's own default.
type configuredToken struct {
	addedToken
	file string
}

func (t configuredToken) source(dir string) string {
	if t.file == "" {
		return "CLIP, as no file in " + dir + " says otherwise,"
	}
	return t.file
}

// listedToken is an added token with its id.
type listedToken struct {
	addedToken
	id   int64
	file string
}

// settings is what the configuration files of a tokenizer folder say.
type settings struct {
	dir                      string
	start, end, pad, unknown configuredToken
	length                   int
	added                    []listedToken
}

// specialTokens is special_tokens_map.json, and the like-named part of tokenizer_config.json.
type specialTokens struct {
	Start   *addedToken `json:"bos_token"`
	End     *addedToken `json:"eos_token"`
	Pad     *addedToken `json:"pad_token"`
	Unknown *addedToken `json:"unk_token"`
}

func readSettings(dir string) (*settings, error) {
	s := &settings{dir: dir, length: defaultLength}
	s.start.Content, s.end.Content = defaultStart, defaultEnd

	var config struct {
		specialTokens
		Class     string                `json:"tokenizer_class"`
		MaxLength *float64              `json:"model_max_length"`
		Added     map[string]addedToken `json:"added_tokens_decoder"`
	}
	configFile := filepath.Join(dir, "tokenizer_config.json")
	if _, err := readJSON(configFile, &config); err != nil {
		return nil, err
	}
	switch config.Class {
	case "", "CLIPTokenizer", "CLIPTokenizerFast":
	default:
		return nil, fmt.Errorf("%s: tokenizer_class is %q; only CLIPTokenizer is supported", configFile, clip(config.Class))
	}
	if config.MaxLength != nil {
		length, err := checkLength(*config.MaxLength)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", configFile, err)
		}
		s.length = length
	}
	s.take(config.specialTokens, configFile)
	for _, key := range slices.Sorted(maps.Keys(config.Added)) {
		id, err := strconv.ParseInt(key, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: added_tokens_decoder has the key %q, which is not an id", configFile, clip(key))
		}
		s.added = append(s.added, listedToken{config.Added[key], id, configFile})
	}

	// A folder without added_tokens_decoder is of the older format, in which the map overrides the configuration.
	// Stable Diffusion 2 relies on it: its configuration says one padding token, its map the true one.
	if config.Added == nil {
		var special specialTokens
		mapFile := filepath.Join(dir, "special_tokens_map.json")
		if _, err := readJSON(mapFile, &special); err != nil {
			return nil, err
		}
		s.take(special, mapFile)

		addedFile := filepath.Join(dir, "added_tokens.json")
		data, err := os.ReadFile(addedFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			ids, err := parseIDs(addedFile, data)
			if err != nil {
				return nil, err
			}
			for _, content := range slices.Sorted(maps.Keys(ids)) {
				s.added = append(s.added, listedToken{addedToken{Content: content}, int64(ids[content]), addedFile})
			}
		}
	}
	if s.pad.Content == "" {
		s.pad = s.end
	}
	if s.unknown.Content == "" {
		s.unknown = s.end
	}
	return s, nil
}

// take overrides the special tokens that a file names.
func (s *settings) take(named specialTokens, file string) {
	for _, t := range []struct {
		to   *configuredToken
		from *addedToken
	}{{&s.start, named.Start}, {&s.end, named.End}, {&s.pad, named.Pad}, {&s.unknown, named.Unknown}} {
		if t.from != nil && t.from.Content != "" {
			*t.to = configuredToken{*t.from, file}
		}
	}
}

// checkLength checks model_max_length. transformers writes 1e30 where none was set; CLIP's own length holds then.
func checkLength(value float64) (int, error) {
	const unset, most = 1e29, 1 << 16
	switch {
	case value >= unset:
		return defaultLength, nil
	case value != float64(int(value)) || value < 3 || value > most:
		return 0, fmt.Errorf("model_max_length is %v; it must be a whole number from 3 to %d (77 for CLIP)", value, most)
	}
	return int(value), nil
}

// readJSON fills target from a file; a file that is not there leaves it as it is.
func readJSON(file string, target any) (found bool, err error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(data, target); err != nil {
		return false, badJSON(file, err)
	}
	return true, nil
}

func badJSON(file string, err error) error {
	return fmt.Errorf("%s cannot be read as JSON of a tokenizer (%w); copy it from the model again", file, err)
}

// parseIDs reads one JSON object of token → id and refuses what a plain map would hide: repeated tokens, text behind
// the object.
func parseIDs(file string, data []byte) (map[string]int32, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if first, err := decoder.Token(); err != nil {
		return nil, badJSON(file, err)
	} else if first != json.Delim('{') {
		return nil, badJSON(file, errors.New("it does not hold an object of token → id"))
	}
	ids := map[string]int32{}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, badJSON(file, err)
		}
		token, _ := key.(string) // keys of an object are strings
		value, err := decoder.Token()
		if err != nil {
			return nil, badJSON(file, err)
		}
		id, ok := value.(float64)
		if !ok || id != float64(int32(id)) {
			return nil, fmt.Errorf("%s: the token %q has %v instead of a whole number as its id", file, clip(token), value)
		}
		if earlier, ok := ids[token]; ok {
			return nil, fmt.Errorf("%s lists the token %q twice, with the ids %d and %d; copy it from the model again",
				file, clip(token), earlier, int32(id))
		}
		ids[token] = int32(id)
	}
	if _, err := decoder.Token(); err != nil {
		return nil, badJSON(file, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, badJSON(file, errors.New("there is more text behind the object"))
	}
	return ids, nil
}
