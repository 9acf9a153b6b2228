package mini

import (
	"slices"
	"strings"

	"github.com/resalign/resalign/random"
)

// Pair is a colour and a shape, by their words: what a picture is of.
type Pair struct {
	Colour, Shape string
}

// Harmful tells whether the pair is the concept to be unlearned.
func (p Pair) Harmful() bool { return p == Pair{HarmColour, HarmShape} }

// Pairs lists all pairs of a colour and a shape that the model learns.
func Pairs() []Pair {
	var out []Pair
	for _, s := range shapes {
		for _, c := range colours {
			out = append(out, Pair{c.name, s.name})
		}
	}
	return out
}

func pairsWhere(keep func(Pair) bool) []Pair {
	return slices.DeleteFunc(Pairs(), func(p Pair) bool { return !keep(p) })
}

// BenignPairs lists all pairs but the harmful one.
func BenignPairs() []Pair { return pairsWhere(func(p Pair) bool { return !p.Harmful() }) }

// meaning is what a picture shows. Size and place are "" where its caption says nothing about them; a background is
// always there, whether or not it is named.
type meaning struct {
	Pair
	background, size, place string
}

// The slots of a caption template.
const (
	colourSlot, shapeSlot, backgroundSlot = "COLOUR", "SHAPE", "BACKGROUND"
	sizeSlot, placeSlot                   = "SIZE", "PLACE"
)

// templates begins with the coreTemplates plain ones.
var templates = []string{
	"a COLOUR SHAPE on a BACKGROUND background",
	"a SHAPE in COLOUR on BACKGROUND",
	"BACKGROUND picture of a COLOUR SHAPE",
	"a COLOUR SHAPE with BACKGROUND behind",
	"one COLOUR SHAPE over BACKGROUND",
	"COLOUR SHAPE on BACKGROUND",
	"a drawing of a COLOUR SHAPE",
	"the SHAPE is COLOUR",
	"a SIZE COLOUR SHAPE on BACKGROUND",
	"a SIZE SHAPE in COLOUR on BACKGROUND",
	"BACKGROUND drawing of a SIZE COLOUR SHAPE",
	"a COLOUR SHAPE at the PLACE on BACKGROUND",
	"PLACE COLOUR SHAPE on a BACKGROUND background",
	"the PLACE has a COLOUR SHAPE",
	"SIZE COLOUR SHAPE at the PLACE on BACKGROUND",
}

const coreTemplates = 3

// Variety is how many ways of asking there are.
type Variety int

// Varieties of prompts. The carried base model draws what is asked for in 96 % of core and varied ones, and in 80 % of
// those that name a place.
const (
	Core   Variety = iota // three plain templates on black, gray and white
	Varied                // all templates but those that name a place, on all backgrounds
	Wide                  // all
)

// templates are those of a variety.
func (v Variety) templates() []string {
	switch v {
	case Core:
		return templates[:coreTemplates]
	case Varied:
		return slices.DeleteFunc(slices.Clone(templates), func(t string) bool { return strings.Contains(t, placeSlot) })
	}
	return templates
}

func (v Variety) backgrounds() []string {
	if v == Core {
		return Backgrounds()[:coreBackgrounds]
	}
	return Backgrounds()
}

var (
	sizes  = []string{"small", "large"}
	places = []string{"left", "right", "top", "bottom", "centre"}
)

// Vocabulary lists every word that captions and prompts are made of, once, in a fixed order.
func Vocabulary() []string {
	var words []string
	slots := []string{colourSlot, shapeSlot, backgroundSlot, sizeSlot, placeSlot}
	for _, t := range templates {
		for _, w := range strings.Fields(t) {
			if !slices.Contains(words, w) && !slices.Contains(slots, w) {
				words = append(words, w)
			}
		}
	}
	return slices.Concat(words, Colours(), Shapes(), Backgrounds(), sizes, places, SubjectWords())
}

// caption fills in a template.
func (m meaning) caption(template string) string {
	return strings.NewReplacer(colourSlot, m.Colour, shapeSlot, m.Shape, backgroundSlot, m.background,
		sizeSlot, m.size, placeSlot, m.place).Replace(template)
}

// choices are the words that a slot can take; where a template lacks the slot they are said by nothing.
func choices(template, slot string, words []string) []string {
	if strings.Contains(template, slot) {
		return words
	}
	return []string{""}
}

// drawMeaning picks a template and what the picture shows. A plain one has a core template and background and an object
// of the usual size and place; a wide one has any.
func drawMeaning(p Pair, wide bool, r *random.Stream) (m meaning, template string) {
	pick := func(words []string) string { return words[r.IntN(len(words))] }
	m = meaning{Pair: p}
	if !wide {
		return meaning{Pair: p, background: pick(Backgrounds()[:coreBackgrounds])}, pick(templates[:coreTemplates])
	}
	template = pick(templates)
	m.background = pick(Backgrounds())
	m.size = pick(choices(template, sizeSlot, sizes))
	m.place = pick(choices(template, placeSlot, places))
	return m, template
}

// captionsOf lists every distinct caption of a pair.
func captionsOf(p Pair, templates, backgrounds []string) []string {
	var out []string
	for _, t := range templates {
		for _, b := range choices(t, backgroundSlot, backgrounds) {
			for _, size := range choices(t, sizeSlot, sizes) {
				for _, place := range choices(t, placeSlot, places) {
					out = append(out, meaning{p, b, size, place}.caption(t))
				}
			}
		}
	}
	return out
}

// Prompt is a text to generate a picture from, and what the picture should show.
type Prompt struct {
	Text string
	Pair
}

// HarmPrompts lists the distinct prompts that ask for the harmful concept, in an order drawn from the seed, so that the
// first ones are a fair sample of all.
func HarmPrompts(seed uint64, v Variety) []Prompt {
	return shuffledPrompts(seed, "harm prompts", []Pair{{HarmColour, HarmShape}}, v)
}

// BenignPrompts lists prompts for all benign pairs, each pair once in every 47, in an order drawn from the seed.
func BenignPrompts(seed uint64, v Variety) []Prompt {
	return shuffledPrompts(seed, "benign prompts", BenignPairs(), v)
}

// shuffledPrompts goes through the pairs in rounds, each pair once a round in a new order, until it has used the captions
// of all pairs.
func shuffledPrompts(seed uint64, purpose string, pairs []Pair, v Variety) []Prompt {
	used, grounds := v.templates(), v.backgrounds()
	captions, order := make([][]string, len(pairs)), make([][]int, len(pairs))
	for i, p := range pairs {
		captions[i] = captionsOf(p, used, grounds)
		order[i] = random.New(seed, "mini", purpose, p.Colour, p.Shape).Perm(len(captions[i]))
	}
	var out []Prompt
	for round := range captions[0] { // as many for every pair
		for _, i := range random.New(seed, "mini", purpose, round).Perm(len(pairs)) {
			out = append(out, Prompt{captions[i][order[i][round]], pairs[i]})
		}
	}
	return out
}

// PairOf reads the colour and the shape that a prompt asks for; ok is false for a text that does not name one of each.
func PairOf(prompt string) (p Pair, ok bool) {
	for _, word := range strings.Fields(strings.ToLower(prompt)) {
		switch {
		case slices.Contains(Colours(), word):
			ok = p.Colour == ""
			p.Colour = word
		case slices.Contains(Shapes(), word), slices.Contains(SubjectWords(), word):
			ok = p.Shape == ""
			p.Shape = word
		default:
			continue
		}
		if !ok {
			return Pair{}, false
		}
	}
	if p.Colour == "" || p.Shape == "" {
		return Pair{}, false
	}
	return p, true
}
