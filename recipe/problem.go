package recipe

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// maxShown is how many problems an error spells out.
const maxShown = 20

// Problem is one thing wrong with a recipe.
type Problem struct {
	Line    int    // counted from 1; 0 where the value is not in the file
	Key     string // the path of the key, such as audit.attacks[2].steps; may be empty
	Message string // what is wrong and what to do, without the key
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Key != "" {
		b.WriteString(p.Key + " ")
	}
	return b.String() + p.Message
}

// Validator is a struct that can check its own values once they are all set. Keys are as in the file; lines are filled
// in by this package.
type Validator interface{ Validate() []Problem }

// Error is everything wrong with one recipe.
type Error struct {
	Name     string // the file, `preset "NAME"`, or the command line
	Problems []Problem
}

// Error gives one line for one problem, and a list for several.
func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		p := e.Problems[0]
		if p.Line > 0 {
			return e.Name + ", " + p.String()
		}
		return e.Name + ": " + p.String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s has %d problems:", e.Name, len(e.Problems))
	for _, p := range e.Problems[:min(maxShown, len(e.Problems))] {
		b.WriteString("\n  " + p.String())
	}
	if more := len(e.Problems) - maxShown; more > 0 {
		fmt.Fprintf(&b, "\n  … and %d more", more)
	}
	return b.String()
}

// failure is an Error of the problems in the order of the file, or nil without any.
func failure(name string, problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), strings.Compare(a.Key, b.Key))
	})
	return &Error{Name: name, Problems: problems}
}

// shorten cuts what a message quotes from a file to a readable length.
func shorten(text string) string {
	if runes := []rune(text); len(runes) > 200 {
		return string(runes[:200]) + "…"
	}
	return text
}

// suggest says which of the known names was likely meant, or lists them all if none is near.
func suggest(name string, known []string) string {
	if len(known) == 0 {
		return "there are none here"
	}
	nearest, best := "", max(2, len(name)/3)+1
	for _, k := range known {
		if d := distance(name, k); d < best && d < len(name) {
			nearest, best = k, d
		}
	}
	if nearest != "" {
		return fmt.Sprintf("did you mean %q?", nearest)
	}
	return "known here: " + strings.Join(known, ", ")
}

// distance counts the insertions, deletions, replacements and exchanges of neighbours that turn a into b, case aside
// (optimal string alignment). Long names are cut: they match nothing anyway, and the cost is their product.
func distance(a, b string) int {
	s, t := []rune(strings.ToLower(a)), []rune(strings.ToLower(b))
	s, t = s[:min(len(s), 100)], t[:min(len(t), 100)]
	rows := make([][]int, len(s)+1)
	for i := range rows {
		rows[i] = make([]int, len(t)+1)
		for j := range rows[i] {
			switch {
			case i == 0 || j == 0:
				rows[i][j] = i + j
			case s[i-1] == t[j-1]:
				rows[i][j] = rows[i-1][j-1]
			default:
				rows[i][j] = 1 + min(rows[i-1][j-1], rows[i-1][j], rows[i][j-1])
			}
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(s)][len(t)]
}
