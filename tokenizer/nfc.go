package tokenizer

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// nfcData is the normalization data of the Unicode Character Database in the line format its own header explains.
//
//go:embed nfc.txt
var nfcData string

// composer brings text into Unicode normalization form C: canonically equivalent spellings ("é" as one code point or
// as e + U+0301) become the same text. The standard library has no public normalizer.
type composer struct {
	decomposed map[rune][]rune  // full canonical decomposition
	composed   map[[2]rune]rune // primary composites
	class      map[rune]uint8   // canonical combining class, where not 0
}

// newComposer parses nfcData.
func newComposer() (*composer, error) {
	c := &composer{decomposed: map[rune][]rune{}, composed: map[[2]rune]rune{}, class: map[rune]uint8{}}
	composite := map[string]rune{}
	for number, line := range strings.Split(nfcData, "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		points := make([]rune, len(fields)-1)
		for i, field := range fields[1:] {
			v, err := strconv.ParseUint(field, 16, 21)
			if err != nil {
				return nil, fmt.Errorf("built-in normalization data, line %d: %w", number+1, err)
			}
			points[i] = rune(v)
		}
		switch fields[0] {
		case "=", ">":
			c.decomposed[points[0]] = points[1:]
			if fields[0] == "=" {
				composite[string(points[1:])] = points[0]
			}
		default:
			class, err := strconv.ParseUint(fields[0], 10, 8)
			if err != nil || len(points) != 2 {
				return nil, fmt.Errorf("built-in normalization data, line %d: %q is no record", number+1, line)
			}
			for r := points[0]; r <= points[1]; r++ {
				c.class[r] = uint8(class)
			}
		}
	}
	// The data hold full decompositions; composition goes pair by pair, so all but the last code point compose first.
	for full, target := range composite {
		points := []rune(full)
		first, last := points[0], points[len(points)-1]
		if len(points) > 2 {
			first = composite[string(points[:len(points)-1])]
		}
		c.composed[[2]rune{first, last}] = target
	}
	return c, nil
}

// firstAffected is the first code point that normalization form C can change or move.
const firstAffected = 0x300

// nfc returns s in normalization form C (Unicode Standard Annex 15). s must be valid UTF-8.
func (c *composer) nfc(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r >= firstAffected }) {
		return s
	}
	points := make([]rune, 0, len(s))
	for _, r := range s {
		if d, ok := c.decomposed[r]; ok {
			points = append(points, d...)
		} else {
			points = appendHangul(points, r)
		}
	}
	c.order(points)
	return string(c.compose(points))
}

// order sorts every run of combining marks by class, keeping the order within a class.
func (c *composer) order(points []rune) {
	byClass := func(a, b rune) int { return int(c.class[a]) - int(c.class[b]) }
	for i := 0; i < len(points); i++ {
		if c.class[points[i]] == 0 {
			continue
		}
		start := i
		for i < len(points) && c.class[points[i]] != 0 {
			i++
		}
		slices.SortStableFunc(points[start:i], byClass)
	}
}

// compose joins each mark with the last starter unless another mark of the same or a higher class stands between. It
// reuses the memory of points.
func (c *composer) compose(points []rune) []rune {
	out := points[:0]
	starter, lastClass := -1, uint8(0)
	for _, r := range points {
		class := c.class[r]
		if starter >= 0 && (starter == len(out)-1 || lastClass < class) {
			if joined, ok := c.join(out[starter], r); ok {
				out[starter] = joined
				continue
			}
		}
		if class == 0 {
			starter = len(out)
		}
		lastClass = class
		out = append(out, r)
	}
	return out
}

func (c *composer) join(first, second rune) (rune, bool) {
	if joined, ok := joinHangul(first, second); ok {
		return joined, true
	}
	joined, ok := c.composed[[2]rune{first, second}]
	return joined, ok
}

// Hangul syllables are composed by arithmetic (Unicode Standard, section 3.12): leading consonant, vowel and an
// optional trailing consonant.
const (
	syllableBase, leadBase, vowelBase, trailBase = 0xAC00, 0x1100, 0x1161, 0x11A7
	leads, vowels, trails                        = 19, 21, 28
)

func appendHangul(points []rune, r rune) []rune {
	s := r - syllableBase
	if s < 0 || s >= leads*vowels*trails {
		return append(points, r)
	}
	points = append(points, leadBase+s/(vowels*trails), vowelBase+s%(vowels*trails)/trails)
	if t := s % trails; t > 0 {
		points = append(points, trailBase+t)
	}
	return points
}

func joinHangul(first, second rune) (rune, bool) {
	l, v := first-leadBase, second-vowelBase
	if l >= 0 && l < leads && v >= 0 && v < vowels {
		return syllableBase + (l*vowels+v)*trails, true
	}
	s, t := first-syllableBase, second-trailBase
	if s >= 0 && s < leads*vowels*trails && s%trails == 0 && t > 0 && t < trails {
		return first + t, true
	}
	return 0, false
}
