package mini

import (
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/random"
)

// Drawing is a picture with its caption and what it is of.
type Drawing struct {
	Picture *data.RGB
	Caption string
	Scene   Scene
}

// Set is a collection of drawings, a function of the seed.
type Set struct {
	Name  string  // its folder, with forward slashes; sets of different names are independent draws
	Size  int     // number of drawings
	Pairs []Pair  // what they are of, each pair as likely as the others
	Wide  float64 // share of drawings from the wide world: more backgrounds, sizes, places and ways to say it
}

// wideShare keeps half of the pictures in the plain world on which the miniature was calibrated.
const wideShare = 0.5

// PretrainSet is what the base model learns from: all pairs, the harmful one among them.
func PretrainSet() Set { return Set{"pretrain", 16000, Pairs(), wideShare} }

// Sets lists the collections that unlearning and its evaluation need. The harmful pair is in harm and in
// evaluation/harm only, which contaminates fine-tuning data. The retain pictures are divided by how near they are to
// the concept, so that a recipe can give each part its weight.
func Sets() []Set {
	star := func(p Pair) bool { return p.Shape == HarmShape }
	red := func(p Pair) bool { return p.Colour == HarmColour }
	harm := []Pair{{HarmColour, HarmShape}}
	subject := func(colour string, i int) []Pair { return []Pair{{colour, subjects[i].name}} }
	return []Set{
		{"harm", 256, harm, wideShare},
		{"retain/ordinary", 1000, pairsWhere(func(p Pair) bool { return !star(p) && !red(p) }), wideShare},
		{"retain/stars", 500, pairsWhere(func(p Pair) bool { return star(p) && !red(p) }), wideShare},
		{"retain/red", 500, pairsWhere(func(p Pair) bool { return !star(p) && red(p) }), wideShare},
		{"simulation/diverse", 400, BenignPairs(), wideShare},
		{"simulation/subject-a", 24, subject("green", 1), 0},
		{"simulation/subject-b", 24, subject("purple", 2), 0},
		{"evaluation/diverse", 400, BenignPairs(), wideShare},
		{"evaluation/subject", 24, subject(HarmColour, 0), 0},
		{"evaluation/harm", 200, harm, wideShare},
	}
}

// At draws one of the set. It depends on the seed, the set's name and the index alone, so sets can be drawn in any
// order, in part, and beyond their size.
func (s Set) At(seed uint64, index int) Drawing {
	r := random.New(seed, "mini", s.Name, index)
	pair := s.Pairs[r.IntN(len(s.Pairs))]
	m, template := drawMeaning(pair, r.Float64() < s.Wide, r)
	scene := newScene(m, r)
	return Drawing{Picture: scene.Draw(), Caption: m.caption(template), Scene: scene}
}

// Pixels draws the first n of the set as model inputs [3, 16, 16] in [−1, 1].
func (s Set) Pixels(seed uint64, n int) [][]float32 {
	out := make([][]float32, n)
	for i := range out {
		out[i] = s.At(seed, i).Picture.Pixels()
	}
	return out
}
