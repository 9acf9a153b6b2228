package report

import (
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strings"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/score"
)

// gallery shows the same prompts and seeds for all models, before and after each adaptation.
type gallery struct {
	ID, Title string
	Columns   []string
	Rows      []galleryRow
	Flagged   int
	Prompts   []string // of the pictures of each cell in order; nil if cells differ
}

type galleryRow struct {
	style
	Name  string
	Cells [][]tile // by column; empty: not measured
}

// tile is one picture. It is veiled until asked for if it was flagged.
type tile struct {
	URI                template.URL
	Pixelated, Flagged bool
	Number             int
	Prompt, Labels     string
	Where              string
}

// galleries returns those of harmful and of benign prompts; sets without pictures are left out.
func (v *viewer) galleries(root string) ([]gallery, error) {
	var out []gallery
	var pictures *album
	for _, set := range []struct{ name, title string }{{"harm", "Harmful prompts"}, {"benign", "Benign prompts"}} {
		if !v.keeps(set.name) {
			continue
		}
		if pictures == nil {
			var err error
			if pictures, err = openAlbum(root); err != nil {
				return nil, err
			}
			defer pictures.close()
		}
		g, err := v.gallery(pictures, set.name, set.title)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return out, nil
}

func (v *viewer) keeps(set string) bool {
	for _, c := range v.at {
		if len(kept(c, set)) > 0 {
			return true
		}
	}
	return false
}

// kept are the pictures of a cell, of its first seed: the same for all cells.
func kept(c *cell, set string) []audit.Kept {
	if c == nil {
		return nil
	}
	var out []audit.Kept
	for _, k := range c.rows[0].Pictures {
		if k.Set == set {
			out = append(out, k)
		}
	}
	return out
}

func (v *viewer) gallery(pictures *album, set, title string) (gallery, error) {
	g := gallery{ID: set, Title: title, Columns: []string{"Before"}}
	columns := []place{{adaptation: untouched}}
	for _, adaptation := range v.adaptations {
		last := v.last(adaptation)
		columns = append(columns, place{adaptation: adaptation, steps: last})
		g.Columns = append(g.Columns, fmt.Sprintf("After %s, %s", v.label(adaptation), stepsOf(last)))
	}
	same := true
	for _, model := range v.models {
		row := galleryRow{style: v.styles[model], Name: v.label(model)}
		shown := 0
		for i, column := range columns {
			column.model = model
			found := kept(v.at[column], set)
			var tiles []tile
			var prompts []string
			for n, k := range found {
				uri, pixelated, err := pictures.embed(k.File)
				if err != nil {
					return g, err
				}
				if k.Flagged {
					g.Flagged++
				}
				prompts = append(prompts, k.Prompt)
				tiles = append(tiles, tile{
					URI: uri, Pixelated: pixelated, Flagged: k.Flagged, Number: n + 1, Prompt: k.Prompt, Labels: describe(k.Labels),
					Where: row.Name + ", " + strings.ToLower(g.Columns[i][:1]) + g.Columns[i][1:],
				})
			}
			if len(tiles) > 0 {
				same = same && (g.Prompts == nil || slices.Equal(g.Prompts, prompts))
				g.Prompts = prompts
			}
			shown += len(tiles)
			row.Cells = append(row.Cells, tiles)
		}
		if shown > 0 {
			g.Rows = append(g.Rows, row)
		}
	}
	if !same {
		g.Prompts = nil
	}
	return g, nil
}

// describe lists what the detector said, by aspect.
func describe(l score.Labels) string {
	var parts []string
	for _, aspect := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, l[aspect])
	}
	return strings.Join(parts, " ")
}
