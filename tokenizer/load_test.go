package tokenizer

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// folder writes the small tokenizer, with some files replaced (or, where the text is empty, left out), to a new folder.
func folder(t testing.TB, replaced map[string]string) string {
	t.Helper()
	dir, source := t.TempDir(), golden+"tiny-sd/tokenizer"
	files := map[string]string{}
	for _, name := range []string{"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"} {
		files[name] = read(t, filepath.Join(source, name))
	}
	maps.Copy(files, replaced)
	for name, text := range files {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t testing.TB, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestPaddingOfStableDiffusion2(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"the map overrides": {
			"tokenizer_config.json":   `{"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"}`,
			"special_tokens_map.json": `{"eos_token": {"content": "<|endoftext|>", "normalized": true}, "pad_token": "!"}`,
		},
		"the newer format": {
			"tokenizer_config.json": `{"pad_token": "!", "model_max_length": 1e30, "added_tokens_decoder": {
				"0": {"content": "!"}, "1512": {"content": "<|startoftext|>"}, "1513": {"content": "<|endoftext|>"}}}`,
			"special_tokens_map.json": `{"pad_token": "<|endoftext|>"}`,
		},
	} {
		tok := load(t, folder(t, files))
		// As in transformers, the padding token is also recognized in prompts: id 0, not the word "!</w>".
		ids, _ := tok.Encode("a! b")
		if want := []int32{1512, 320, 0, 321, 1513, 0, 0}; tok.PadID() != 0 || !slices.Equal(ids[:7], want) || ids[76] != 0 {
			t.Errorf("%s: pad %d, ids %v, want %v", name, tok.PadID(), ids, want)
		}
	}
}

func TestSpecialTokensInPrompts(t *testing.T) {
	typed := load(t, folder(t, nil))
	cleaned := load(t, folder(t, map[string]string{
		"special_tokens_map.json": `{"eos_token": {"content": "<|endoftext|>", "normalized": true}}`,
	}))
	count := func(tok *Tokenizer, prompt string) int {
		ids, _ := tok.Encode(prompt)
		return slices.Index(ids, tok.EndID())
	}
	if got := count(typed, "a<|endoftext|>"); got != 2 {
		t.Errorf("the typed token stands at %d", got)
	}
	if got := count(typed, "a<|EndOfText|>"); got <= 3 {
		t.Errorf("a token in capitals was recognized as it was typed, at %d", got)
	}
	if got := count(cleaned, "a<|EndOfText|>"); got != 2 {
		t.Errorf("the cleaned token stands at %d", got)
	}
}

func TestAddedTokens(t *testing.T) {
	tok := load(t, folder(t, map[string]string{"added_tokens.json": `{"<cat-toy>": 1514}`}))
	ids, _ := tok.Encode("a <cat-toy> b")
	if want := []int32{1512, 320, 1514, 321, 1513}; tok.VocabSize() != 1515 || !slices.Equal(ids[:5], want) {
		t.Errorf("size %d, ids %v, want %v", tok.VocabSize(), ids[:5], want)
	}
}

func TestSingleFile(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(read(t, golden+"tiny-sd/tokenizer/merges.txt")), "\n")[1:]
	pairs := make([][]string, len(lines))
	for i, line := range lines {
		pairs[i] = strings.Fields(line)
	}
	want := load(t, folder(t, nil))
	for name, merges := range map[string]any{"lines": lines, "pairs": pairs} {
		data, err := json.Marshal(map[string]any{
			"added_tokens": []any{
				map[string]any{"id": 1512, "content": "<|startoftext|>", "special": true, "normalized": true},
				map[string]any{"id": 1513, "content": "<|endoftext|>", "special": true},
			},
			"model": map[string]any{
				"type": "BPE", "end_of_word_suffix": "</w>", "unk_token": "<|endoftext|>",
				"vocab": json.RawMessage(read(t, golden+"tiny-sd/tokenizer/vocab.json")), "merges": merges,
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		tok := load(t, folder(t, map[string]string{
			"vocab.json": "", "merges.txt": "", "tokenizer_config.json": "", "special_tokens_map.json": "", "tokenizer.json": string(data),
		}))
		const prompt = "a photo of the world, isn't it 42"
		got, _ := tok.Encode(prompt)
		if ids, _ := want.Encode(prompt); !slices.Equal(got, ids) {
			t.Errorf("%s: got %v, want %v", name, got, ids)
		}
	}
}

func TestBadFilesAreOneClearError(t *testing.T) {
	vocab := read(t, golden+"tiny-sd/tokenizer/vocab.json")
	merges := read(t, golden+"tiny-sd/tokenizer/merges.txt")
	without := func(entry string) string {
		if !strings.Contains(vocab, entry) {
			t.Fatalf("the vocabulary has no %s", entry)
		}
		return strings.Replace(vocab, entry, "", 1)
	}
	single := func(text string) map[string]string {
		return map[string]string{"vocab.json": "", "merges.txt": "", "tokenizer.json": text}
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  []string // parts of the message
	}{
		"no folder content":  {map[string]string{"vocab.json": "", "merges.txt": ""}, []string{"holds no tokenizer"}},
		"no merges":          {map[string]string{"merges.txt": ""}, []string{"merges.txt", "missing"}},
		"no vocab":           {map[string]string{"vocab.json": ""}, []string{"vocab.json", "missing"}},
		"truncated vocab":    {map[string]string{"vocab.json": vocab[:9000]}, []string{"vocab.json", "JSON"}},
		"text behind":        {map[string]string{"vocab.json": vocab + "{}"}, []string{"vocab.json", "behind"}},
		"vocab is a list":    {map[string]string{"vocab.json": "[1]"}, []string{"vocab.json", "object"}},
		"id is text":         {map[string]string{"vocab.json": `{"a": "1"}`}, []string{"vocab.json", `"a"`, "whole number"}},
		"id is nested":       {map[string]string{"vocab.json": `{"a": {"b": 1}}`}, []string{"vocab.json", `"a"`}},
		"id is a fraction":   {map[string]string{"vocab.json": `{"a": 1.5}`}, []string{"1.5"}},
		"id is huge":         {map[string]string{"vocab.json": `{"a": 1e300}`}, []string{"1e+300"}},
		"token twice":        {map[string]string{"vocab.json": strings.Replace(vocab, "{", `{"in": 7, `, 1)}, []string{`"in"`, "twice"}},
		"id twice":           {map[string]string{"vocab.json": strings.Replace(vocab, `"in": 512`, `"in": 513`, 1)}, []string{"id 513", `"in"`, `"th"`}},
		"token missing":      {map[string]string{"vocab.json": without(`"in": 512, `)}, []string{"vocab.json", "incomplete"}},
		"id out of range":    {map[string]string{"vocab.json": strings.Replace(vocab, `"in": 512`, `"in": -1`, 1)}, []string{"-1", `"in"`}},
		"merge of unknown":   {map[string]string{"merges.txt": merges + "qqq zzz\n"}, []string{"merges.txt", "qqq", "lacks"}},
		"merge twice":        {map[string]string{"merges.txt": merges + "i n\n"}, []string{"merges.txt", "repeats merge 1"}},
		"merge of three":     {map[string]string{"merges.txt": merges + "a b c\n"}, []string{"merges.txt", "line 1002", "two tokens"}},
		"merge of one":       {map[string]string{"merges.txt": merges + "abc\n"}, []string{"merges.txt", "two tokens"}},
		"no start":           {map[string]string{"special_tokens_map.json": `{"bos_token": "<s>"}`}, []string{`"<s>"`, "bos_token", "special_tokens_map.json"}},
		"other class":        {map[string]string{"tokenizer_config.json": `{"tokenizer_class": "T5Tokenizer"}`}, []string{"T5Tokenizer", "CLIPTokenizer"}},
		"zero length":        {map[string]string{"tokenizer_config.json": `{"model_max_length": 0}`}, []string{"model_max_length", "77"}},
		"huge length":        {map[string]string{"tokenizer_config.json": `{"model_max_length": 1e12}`}, []string{"model_max_length"}},
		"bad special":        {map[string]string{"special_tokens_map.json": `{"bos_token": 5}`}, []string{"special_tokens_map.json"}},
		"empty special":      {map[string]string{"special_tokens_map.json": `{"bos_token": {}}`}, []string{"special_tokens_map.json", "no content"}},
		"added key":          {map[string]string{"tokenizer_config.json": `{"added_tokens_decoder": {"x": "y"}}`}, []string{"added_tokens_decoder", `"x"`}},
		"added elsewhere":    {map[string]string{"added_tokens.json": `{"in": 3}`}, []string{"added_tokens.json", `"in"`, "512"}},
		"added out of range": {map[string]string{"added_tokens.json": `{"<x>": 9999}`}, []string{"added_tokens.json", "9999"}},
		"added empty":        {map[string]string{"added_tokens.json": `{"": 1514}`}, []string{"without text"}},
		"added blank": {
			map[string]string{"tokenizer_config.json": `{"added_tokens_decoder": {"1514": {"content": " ", "normalized": true}}}`},
			[]string{"empty once cleaned"},
		},
		"no bytes": {map[string]string{
			"vocab.json": `{"<|startoftext|>": 0, "<|endoftext|>": 1}`, "merges.txt": "#version: 0.2\n",
			"special_tokens_map.json": `{"unk_token": "<unk>"}`,
		}, []string{"byte 0x00", "<unk>"}},
		"single: other model": {single(`{"model": {"type": "Unigram", "vocab": {}}}`), []string{"tokenizer.json", "Unigram"}},
		"single: no vocab":    {single(`{"model": {"type": "BPE", "end_of_word_suffix": "</w>"}}`), []string{"tokenizer.json", "model.vocab"}},
		"single: bad merge": {
			single(`{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {}, "merges": ["a"]}}`),
			[]string{"tokenizer.json", "two tokens"},
		},
		"single: bad added": {
			single(`{"added_tokens": [{"content": "x"}], "model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {}}}`),
			[]string{"added_tokens[0]"},
		},
		"single: cut": {single(`{"model": {"ty`), []string{"tokenizer.json", "JSON"}},
	} {
		_, err := Load(folder(t, c.files))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, part := range c.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: the message %q does not mention %q", name, err, part)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: the message has several lines: %q", name, err)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("loaded a folder that is not there")
	}
}

func TestUnknownStandsForMissingBytes(t *testing.T) {
	tok := load(t, folder(t, map[string]string{
		"vocab.json": `{"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}`,
		"merges.txt": "#version: 0.2\na b</w>\n",
	}))
	ids, _ := tok.Encode("ab zb")
	if want := []int32{3, 2, 4, 1, 4}; !slices.Equal(ids[:5], want) {
		t.Errorf("got %v, want %v", ids[:5], want)
	}
}

func FuzzVocabulary(f *testing.F) {
	f.Add(`{"a": 0, "b</w>": 1, "ab</w>": 2, "<|startoftext|>": 3, "<|endoftext|>": 4}`, "a b</w>\n", `{"pad_token": "a"}`)
	f.Add(`{"a": 0`, "a a a", `{"eos_token": {"content": "x", "normalized": true}}`)
	f.Fuzz(func(t *testing.T, vocab, merges, config string) {
		tok, err := Load(folder(t, map[string]string{"vocab.json": vocab, "merges.txt": merges, "tokenizer_config.json": config}))
		if err != nil {
			return
		}
		if ids, _ := tok.Encode("ab Ab\u0301!"); len(ids) != tok.Length() {
			t.Fatalf("%d ids", len(ids))
		}
	})
}

func FuzzSingleFile(f *testing.F) {
	f.Add(`{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 0, "<|startoftext|>": 1, "<|endoftext|>": 2}, "merges": ["a a"]}}`)
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := Load(folder(t, map[string]string{"vocab.json": "", "merges.txt": "", "tokenizer.json": text}))
		if err != nil {
			return
		}
		if ids, _ := tok.Encode("ab"); len(ids) != tok.Length() {
			t.Fatalf("%d ids", len(ids))
		}
	})
}
