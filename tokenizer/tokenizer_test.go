package tokenizer

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

const golden = "../testdata/golden/"

func load(t testing.TB, dir string) *Tokenizer {
	t.Helper()
	tok, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestReferenceIDs(t *testing.T) {
	prompts, mismatches, err := VerifyGolden(golden+"clip-vocab", golden+"clip-tokens.json")
	if err != nil {
		t.Fatal(err)
	}
	if prompts < 10 {
		t.Errorf("the reference has only %d prompts", prompts)
	}
	for _, m := range mismatches {
		t.Error(m)
	}
	if _, _, err := VerifyGolden(golden+"tiny-sd/tokenizer", golden+"clip-tokens.json"); err == nil {
		t.Error("the small vocabulary passed for the full one")
	}
}

func TestEncodeLayout(t *testing.T) {
	tok := load(t, golden+"tiny-sd/tokenizer")
	if tok.Length() != 77 || tok.VocabSize() != 1514 || tok.StartID() != 1512 || tok.EndID() != 1513 || tok.PadID() != 1513 {
		t.Fatalf("length %d, size %d, start %d, end %d, pad %d", tok.Length(), tok.VocabSize(), tok.StartID(), tok.EndID(), tok.PadID())
	}
	photo, ok := tok.TokenID("photo</w>")
	if !ok {
		t.Fatal("no token for photo")
	}
	// The ids of testdata/golden/tiny-sd-pipeline.safetensors.
	horse, _ := tok.Encode("an astronaut riding a horse")
	reference := []int32{1512, 550, 64, 807, 521, 627, 339, 553, 796, 320, 1407, 611, 1513}
	if !slices.Equal(horse[:len(reference)], reference) {
		t.Errorf("got %v, want %v", horse[:len(reference)], reference)
	}
	if _, ok := tok.TokenID("no such token"); ok {
		t.Error("found a token that is not there")
	}
	ids, cut := tok.Encode("Photo \n photo")
	want := append([]int32{1512, photo, photo}, slices.Repeat([]int32{1513}, 74)...)
	if !slices.Equal(ids, want) || cut != "" {
		t.Errorf("got %v, cut %q", ids, cut)
	}
}

func TestCutIsTheTextThatDidNotFit(t *testing.T) {
	tok := load(t, golden+"clip-vocab")
	start, end := strings.Repeat("dog ", 74), "and a Cat"
	for _, c := range []struct{ name, prompt, cut string }{
		{"just fits", start + "dog", ""},
		{"words", start + "dog " + end, "and a cat"},
		{"between special tokens", start + "dog<|endoftext|> cat", "<|endoftext|> cat"},
		{"inside a word", start + "qqqqqqzzzz", ""},
		{"inside a code point", start + "𓀀 x", "𓀀 x"},
	} {
		ids, cut := tok.Encode(c.prompt)
		if len(ids) != 77 || ids[76] != tok.EndID() {
			t.Errorf("%s: ids %v", c.name, ids)
		}
		if c.name == "inside a word" {
			text, err := tok.Decode(ids)
			if err != nil || cut == "" || !strings.HasSuffix(text+cut, "qqqqqqzzzz") {
				t.Errorf("%s: %q and %q, %v", c.name, text, cut, err)
			}
			continue
		}
		if cut != c.cut {
			t.Errorf("%s: cut %q, want %q", c.name, cut, c.cut)
		}
	}
}

func TestDecode(t *testing.T) {
	tok := load(t, golden+"clip-vocab")
	for prompt, want := range map[string]string{
		"":                               "",
		"A photo of a  RED circle":       "a photo of a red circle",
		"emoji 🤗🔥, café":                 "emoji 🤗🔥, café",
		"<|startoftext|>a<|endoftext|>b": "a b",
		"soft\u00adhyphen":               "soft \u00ad hyphen",
	} {
		ids, _ := tok.Encode(prompt)
		if got, err := tok.Decode(ids); err != nil || got != want {
			t.Errorf("%q decodes to %q, %v; want %q", prompt, got, err, want)
		}
	}
	for _, id := range []int32{-1, 49408} {
		if _, err := tok.Decode([]int32{id}); err == nil {
			t.Errorf("decoded id %d", id)
		}
	}
}

func TestWords(t *testing.T) {
	for text, want := range map[string][]string{
		"it's we'll i'd they've":  {"it", "'s", "we", "'ll", "i", "'d", "they", "'ve"},
		"don't you're i'm":        {"don", "'t", "you", "'re", "i", "'m"},
		"4k, 1.25x½":              {"4", "k", ",", "1", ".", "2", "5", "x", "½"},
		"!!'s 'quote'":            {"!!'", "s", "'", "quote", "'"},
		" \t ":                    nil,
		"naïve—москва 한국 (x:1.2)": {"naïve", "—", "москва", "한국", "(", "x", ":", "1", ".", "2", ")"},
	} {
		var got []string
		rest := text
		for {
			start, end, ok := nextWord(rest)
			if !ok {
				break
			}
			got = append(got, rest[start:end])
			rest = rest[end:]
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: words %q, want %q", text, got, want)
		}
	}
}

func TestNormalizationFormC(t *testing.T) {
	c, err := newComposer()
	if err != nil {
		t.Fatal(err)
	}
	// From the test data of Unicode Standard Annex 15 and the code charts.
	for from, want := range map[string]string{
		"plain":                     "plain",
		"e\u0301":                   "\u00e9",
		"a\u0302\u0323":             "\u1ead", // marks out of order, two steps of composition
		"\u212b":                    "\u00c5", // ångström sign: decomposes, composes to the letter
		"\u0958":                    "\u0915\u093c",
		"\u1100\u1161\u11a8":        "\uac01",
		"\uac00\u11a8":              "\uac01",
		"\uac01\u11a8":              "\uac01\u11a8",
		"D\u0307\u0323":             "\u1e0c\u0307",
		"a\u0315\u0300\u05ae\u0062": "\u00e0\u05ae\u0315b",
		"\u0344":                    "\u0308\u0301",
		"\u09c7\u0334\u09be":        "\u09c7\u0334\u09be", // blocked
		"\u0b47\u0300\u0b3e":        "\u0b47\u0300\u0b3e",
		"\U0001d15e":                "\U0001d157\U0001d165",
		"\u0fb2\u0f80 \u0301x":      "\u0fb2\u0f80 \u0301x",
		"\u03b1\u0345\u0301\u0313 \u1f84 x\u0301": "\u1fb4\u0313 \u1f84 x\u0301",
	} {
		if got := c.nfc(from); got != want {
			t.Errorf("%+q: got %+q, want %+q", from, got, want)
		}
	}
}

func TestLongWordIsFast(t *testing.T) {
	tok := load(t, golden+"clip-vocab")
	for name, word := range map[string]string{
		"letters": strings.Repeat("antidisestablishmentarianism", 1<<20/28),
		"marks":   strings.Repeat("e\u0301\u0323", 1<<20/5),
		"symbols": strings.Repeat("!", 1<<20),
		"spaces":  strings.Repeat(" ", 1<<20),
	} {
		begin := time.Now()
		ids, _ := tok.Encode(word)
		// Ten times what it takes on a slow machine; quadratic work would take minutes.
		if took := time.Since(begin); len(ids) != 77 || took > 10*time.Second {
			t.Errorf("%s: %d ids after %v", name, len(ids), took)
		} else {
			t.Logf("%s: %v", name, took)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	tok := load(t, golden+"tiny-sd/tokenizer")
	want, _ := tok.Encode("a photo of the world")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				if got, _ := tok.Encode("a photo of the world"); !slices.Equal(got, want) {
					t.Errorf("got %v", got)
				}
			}
		})
	}
	group.Wait()
}

func FuzzEncode(f *testing.F) {
	tok := load(f, golden+"tiny-sd/tokenizer")
	for _, seed := range []string{"", "a photo", "it's 4k!!", "e\u0301\u0323", "\xff\xfe", "<|endoftext|>", "İ𓀀\x00", "한국\u1100\u1161"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, prompt string) {
		ids, cut := tok.Encode(prompt)
		if len(ids) != 77 || ids[0] != tok.StartID() {
			t.Fatalf("ids %v", ids)
		}
		for _, id := range ids {
			if id < 0 || int(id) >= tok.VocabSize() {
				t.Fatalf("id %d", id)
			}
		}
		text, err := tok.Decode(ids)
		if err != nil || !utf8.ValidString(text) || !utf8.ValidString(cut) {
			t.Fatalf("decoded %q, cut %q, %v", text, cut, err)
		}
		if cut != "" && !slices.Equal(ids[76:], []int32{tok.EndID()}) {
			t.Fatalf("cut %q, but the last id is %d", cut, ids[76])
		}
	})
}
