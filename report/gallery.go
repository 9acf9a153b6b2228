package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
)

// gallery shows the pictures of a prompt set, prompt by prompt: the same seeds for all models, before and after each
// adaptation.
type gallery struct {
	ID, Title   string
	First, Rest []promptPictures // shown at once, and on request
	Flagged     int
	Large       bool // at least one picture is large enough to need room
}

// promptPictures are the pictures of one prompt, one row for each model.
type promptPictures struct {
	ID, Prompt string
	Columns    []string
	Rows       []galleryRow
	Wide       bool // they need the whole width of the page
}

type galleryRow struct {
	style
	Name  string
	Cells [][]tile // by column; empty: not measured
}

// tile is one picture with what was seen in it. It is veiled until asked for if it was flagged.
type tile struct {
	embeddedPicture
	Flagged      bool
	Number       int
	Prompt       string
	Seen, Detail string // what the detector saw, in short and in full
	Boxes        []rectangle
	Where        string
}

// Widths that decide about the layout, in pixels: the sides of tiles, and what a card of the page's grid has for them.
const (
	smallTile = 80
	largeTile = 136
	cardRoom  = 270
)

// shownPrompts is how many prompts of a set are shown without being asked for.
const shownPrompts = 6

// collection is which kept pictures belong together.
type collection struct{ set, list string }

// galleries returns one for each prompt set with pictures, those of harmful prompts first.
func (v *viewer) galleries(root string) ([]gallery, error) {
	collections := v.collections()
	if len(collections) == 0 {
		return nil, nil
	}
	pictures, err := openAlbum(root)
	if err != nil {
		return nil, err
	}
	defer pictures.close()
	var out []gallery
	for i, c := range collections {
		g, err := v.gallery(pictures, fmt.Sprintf("gallery-%d", i+1), c)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

// collections lists the sets of pictures as they first appear, those of harmful prompts first.
func (v *viewer) collections() (out []collection) {
	for _, set := range []string{"harm", "benign"} {
		for _, row := range v.sorted() {
			for _, k := range row.Pictures {
				if c := (collection{set, k.List}); k.Set == set && !slices.Contains(out, c) {
					out = append(out, c)
				}
			}
		}
	}
	return out
}

func (c collection) title() string {
	title := map[string]string{"harm": "Harmful prompts", "benign": "Benign prompts"}[c.set]
	if c.list != "" {
		title += ": " + c.list
	}
	return title
}

// kept are the pictures of a cell, of its first seed: the same for all cells.
func (c collection) kept(found *cell) (out []audit.Kept) {
	if found == nil {
		return nil
	}
	for _, k := range found.rows[0].Pictures {
		if k.Set == c.set && k.List == c.list {
			out = append(out, k)
		}
	}
	return out
}

func (v *viewer) gallery(pictures *album, id string, c collection) (gallery, error) {
	g, names := gallery{ID: id, Title: c.title()}, []string{"Before"}
	columns := []place{{adaptation: untouched}}
	for _, adaptation := range v.adaptations {
		last := v.last(adaptation)
		columns = append(columns, place{adaptation: adaptation, steps: last})
		names = append(names, fmt.Sprintf("After %s, %s", v.label(adaptation), stepsOf(last)))
	}
	var all []promptPictures
	most := 1
	for _, prompt := range v.prompts(c, columns) {
		card := promptPictures{ID: fmt.Sprintf("%s-%d", id, len(all)+1), Prompt: prompt, Columns: names}
		for _, model := range v.models {
			row := galleryRow{style: v.styles[model], Name: v.label(model)}
			shown := 0
			for i, column := range columns {
				column.model = model
				tiles, err := tilesOf(pictures, c.kept(v.at[column]), prompt, row.Name+", "+strings.ToLower(names[i][:1])+names[i][1:])
				if err != nil {
					return g, err
				}
				for _, t := range tiles {
					g.Large = g.Large || !t.Pixelated
					if t.Flagged {
						g.Flagged++
					}
				}
				shown, most = shown+len(tiles), max(most, len(tiles))
				row.Cells = append(row.Cells, tiles)
			}
			if shown > 0 {
				card.Rows = append(card.Rows, row)
			}
		}
		all = append(all, card)
	}
	side := smallTile
	if g.Large {
		side = largeTile
	}
	for i := range all {
		all[i].Wide = len(columns)*most*side > cardRoom
	}
	g.First, g.Rest = all[:min(shownPrompts, len(all))], all[min(shownPrompts, len(all)):]
	return g, nil
}

// prompts lists the prompts of a collection in the order of its pictures.
func (v *viewer) prompts(c collection, columns []place) (out []string) {
	seen := map[string]bool{}
	for _, model := range v.models {
		for _, column := range columns {
			column.model = model
			for _, k := range c.kept(v.at[column]) {
				if !seen[k.Prompt] {
					seen[k.Prompt], out = true, append(out, k.Prompt)
				}
			}
		}
	}
	return out
}

// tilesOf are the pictures for one prompt.
func tilesOf(pictures *album, kept []audit.Kept, prompt, where string) (out []tile, err error) {
	for _, k := range kept {
		if k.Prompt != prompt {
			continue
		}
		picture, err := pictures.embed(k.File)
		if err != nil {
			return nil, err
		}
		seen, detail := describe(k.Finding)
		out = append(out, tile{
			embeddedPicture: picture, Flagged: k.Flagged, Number: len(out) + 1, Prompt: prompt, Seen: seen, Detail: detail,
			Boxes: rectangles(k.Boxes, picture.Width, picture.Height), Where: where,
		})
	}
	return out, nil
}
