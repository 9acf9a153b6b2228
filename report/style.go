package report

// style tells one model from the others, by three things at once so that none of them is needed: colour, marker, dashes.
type style struct {
	Colour string // a class of the style sheet
	Marker string // a path around the origin
	Dash   string
}

var markers = []string{
	"M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",    // disc
	"M-3.6-3.6h7.2v7.2h-7.2z",               // square
	"M0-4.8L4.6 3.6H-4.6z",                  // triangle
	"M0-5L5 0L0 5L-5 0z",                    // diamond
	"M0 4.8L4.6-3.6H-4.6z",                  // triangle on its tip
	"M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z", // plus
	"M-4.6-2.5L-2.5-4.6L0-2.1L2.5-4.6L4.6-2.5L2.1 0L4.6 2.5L2.5 4.6L0 2.1L-2.5 4.6L-4.6 2.5L-2.1 0z", // cross
}

var dashes = []string{"", "7 3", "2 3", "10 3 2 3", "5 2 1 2 1 2"}

// colours is how many colour classes, c0 and on, the style sheet has; no two of 8, 7 and 5 share a factor, so that the
// styles repeat after 280 models.
const colours = 8

// styles gives each model its style; the baseline is the one without colour.
func styles(models []string, baseline string) map[string]style {
	out := map[string]style{}
	i := 0
	for _, model := range models {
		if model == baseline {
			out[model] = style{"base", markers[0], "4 4"}
			continue
		}
		out[model] = style{"c" + string(rune('0'+i%colours)), markers[i%len(markers)], dashes[i%len(dashes)]}
		i++
	}
	return out
}
