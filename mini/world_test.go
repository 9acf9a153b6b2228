package mini

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/resalign/resalign/data"
)

// The first drawings of the seed 1, as pixels and captions; a change here changes every trained model.
const goldenDrawings = "6311568606e54dcf455c52c38e716989c8771507d6d8d466b1b782cd7ba05424"

func TestDrawingsAreAFunctionOfTheSeed(t *testing.T) {
	hash := sha256.New()
	for _, s := range append(Sets(), PretrainSet()) {
		for i := range 20 {
			d := s.At(1, i)
			hash.Write(d.Picture.Pix)
			hash.Write([]byte(d.Caption))
		}
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != goldenDrawings {
		t.Errorf("drawings have the hash %s, not %s", got, goldenDrawings)
	}
	s := PretrainSet()
	if bytes.Equal(s.At(1, 0).Picture.Pix, s.At(2, 0).Picture.Pix) {
		t.Error("two seeds gave the same drawing")
	}
	if s.Name = "another"; bytes.Equal(PretrainSet().At(1, 0).Picture.Pix, s.At(1, 0).Picture.Pix) {
		t.Error("two sets gave the same drawing")
	}
}

func TestShapesLookDifferent(t *testing.T) {
	names := append(Shapes(), SubjectWords()...)
	for i, a := range names {
		for _, b := range names[:i] {
			p, q := plainScene(a).Draw(), plainScene(b).Draw()
			different := 0
			for k := range p.Pix {
				if p.Pix[k] != q.Pix[k] {
					different++
				}
			}
			if different < 60 { // of 768 values: 20 pixels or more
				t.Errorf("%s and %s differ in %d values only", a, b, different)
			}
		}
	}
}

func plainScene(shape string) Scene {
	return Scene{Shape: shape, X: Side / 2.0, Y: Side / 2.0, Radius: 5.5, Ink: [3]float64{1, 1, 1}}
}

func TestSceneCoverage(t *testing.T) {
	square := plainScene("square").Draw()
	area := 0.0
	for _, v := range square.Pix {
		area += float64(v) / 255 / 3
	}
	if side := 2 * 0.82 * 5.5; area < side*side-6 || area > side*side+6 {
		t.Errorf("a square with sides of %.2f pixels covers %.2f", side, area)
	}
	if slices.Max(plainScene("nothing").Draw().Pix) != 0 {
		t.Error("an unknown shape left a mark")
	}
}

// Sizes and places mean what they say, and colours stand out from every background.
func TestScenesFollowTheirCaptions(t *testing.T) {
	for i := range 3000 {
		d := PretrainSet().At(3, i)
		words := strings.Fields(d.Caption)
		s := d.Scene
		for word, holds := range map[string]bool{
			"small": s.Radius < minRadius, "large": s.Radius > 6, "left": s.X < 7, "right": s.X > 9, "top": s.Y < 7, "bottom": s.Y > 9,
			s.Colour: true, s.Shape: true,
		} {
			if slices.Contains(words, word) && !holds {
				t.Fatalf("%q was drawn at %.1f, %.1f with radius %.1f", d.Caption, s.X, s.Y, s.Radius)
			}
		}
		if !slices.Contains(words, s.Colour) || !slices.Contains(words, s.Shape) {
			t.Fatalf("%q does not name the %s %s", d.Caption, s.Colour, s.Shape)
		}
		for _, b := range Backgrounds() {
			if slices.Contains(words, b) && b != s.Background {
				t.Fatalf("%q was drawn on %s", d.Caption, s.Background)
			}
		}
		contrast := 0.0
		for c := range 3 {
			contrast = max(contrast, s.Ink[c]-s.Paper[c], s.Paper[c]-s.Ink[c])
		}
		if contrast < 0.25 {
			t.Fatalf("a %s object on %s has a contrast of %.2f", s.Colour, s.Background, contrast)
		}
	}
}

func TestCaptionsCoverTheWorld(t *testing.T) {
	vocabulary := Vocabulary()
	if len(vocabulary) > 48 {
		t.Errorf("%d words, more than 48", len(vocabulary))
	}
	if slices.Sort(vocabulary); len(slices.Compact(slices.Clone(vocabulary))) != len(vocabulary) {
		t.Error("a word is there twice")
	}
	seen := map[string]bool{}
	harmful, wide := 0, 0
	set := PretrainSet()
	for i := range set.Size {
		m := set.At(1, i)
		for _, w := range strings.Fields(m.Caption) {
			seen[w] = true
		}
		if (Pair{m.Scene.Colour, m.Scene.Shape}).Harmful() {
			harmful++
		}
		if slices.Index(Backgrounds(), m.Scene.Background) >= coreBackgrounds {
			wide++
		}
	}
	for _, w := range vocabulary {
		if seen[w] == slices.Contains(SubjectWords(), w) {
			t.Errorf("pre-training captions contain %q: %t", w, seen[w])
		}
	}
	if harmful < 250 || harmful > 420 { // 16,000/48 = 333
		t.Errorf("%d of %d pre-training pictures are harmful", harmful, set.Size)
	}
	if wide < 3500 || wide > 4500 { // a quarter
		t.Errorf("%d of %d pre-training pictures have one of the wide backgrounds", wide, set.Size)
	}
}

func TestHarmIsOnlyWhereItBelongs(t *testing.T) {
	for _, s := range Sets() {
		want := s.Name == "harm" || s.Name == "evaluation/harm"
		for i := range s.Size {
			d := s.At(1, i)
			if (Pair{d.Scene.Colour, d.Scene.Shape}).Harmful() != want {
				t.Fatalf("%s has a %s %s", s.Name, d.Scene.Colour, d.Scene.Shape)
			}
			if p, ok := PairOf(d.Caption); !ok || p != (Pair{d.Scene.Colour, d.Scene.Shape}) {
				t.Fatalf("%q was read as %v, %t", d.Caption, p, ok)
			}
		}
	}
}

func TestPrompts(t *testing.T) {
	for _, c := range []struct {
		prompts []Prompt
		count   int
	}{{HarmPrompts(1, Core), 9}, {HarmPrompts(1, Varied), 74}, {HarmPrompts(1, Wide), 199}, {BenignPrompts(1, Core), 9 * 47}, {BenignPrompts(1, Wide), 199 * 47}} {
		if len(c.prompts) != c.count {
			t.Errorf("%d prompts instead of %d", len(c.prompts), c.count)
		}
		distinct := map[string]bool{}
		for _, p := range c.prompts {
			distinct[p.Text] = true
			if got, ok := PairOf(p.Text); !ok || got != p.Pair {
				t.Errorf("%q was read as %v, %t instead of %v", p.Text, got, ok, p.Pair)
			}
		}
		if len(distinct) != c.count {
			t.Errorf("%d of %d prompts are distinct", len(distinct), c.count)
		}
	}
	round := map[Pair]bool{}
	for _, p := range BenignPrompts(1, Wide)[:47] {
		round[p.Pair] = true
	}
	if len(round) != 47 {
		t.Errorf("the first 47 benign prompts are of %d pairs", len(round))
	}
	for _, text := range []string{"", "a red thing", "a star", "a red blue star", "a red star and a ring", "Starlight, reddish"} {
		if p, ok := PairOf(text); ok {
			t.Errorf("%q was read as %v", text, p)
		}
	}
}

func TestWriteWorld(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "world")
	sets := Sets()
	for i := range sets {
		sets[i].Size = 3 + i
	}
	reports := 0
	if err := WriteWorld(context.Background(), dir, 7, sets, func(_, _ int, _ string) { reports++ }); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, s := range sets {
		total += s.Size
		folder, err := data.ReadFolder(filepath.Join(dir, filepath.FromSlash(s.Name)))
		if err != nil {
			t.Fatal(err)
		}
		if folder.Len() != s.Size {
			t.Errorf("%s has %d pictures instead of %d", s.Name, folder.Len(), s.Size)
		}
		for i := range folder.Len() {
			picture, err := folder.Decode(i)
			if err != nil {
				t.Fatal(err)
			}
			want := s.At(7, i)
			if !bytes.Equal(picture.Pix, want.Picture.Pix) || folder.Pictures[i].Caption != want.Caption {
				t.Errorf("%s, picture %d is not the drawing %d, %q", s.Name, i, i, want.Caption)
			}
		}
	}
	if reports != total {
		t.Errorf("%d reports for %d pictures", reports, total)
	}
	for name, count := range map[string]int{"harm.csv": 199, "harm-core.csv": 9, "benign.csv": longestList, "benign-core.csv": 423} {
		prompts, err := data.ReadPrompts(filepath.Join(dir, "prompts", name))
		if err != nil {
			t.Fatal(err)
		}
		if len(prompts) != count {
			t.Errorf("%s has %d prompts instead of %d", name, len(prompts), count)
		}
	}
	if err := WriteWorld(context.Background(), dir, 7, sets, nil); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a folder that is in use was taken: %v", err)
	}
}

func TestWriteWorldStopped(t *testing.T) {
	parent := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	stop := func(done, _ int, _ string) {
		if done == 5 {
			cancel()
		}
	}
	if err := WriteWorld(ctx, filepath.Join(parent, "world"), 1, Sets(), stop); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
