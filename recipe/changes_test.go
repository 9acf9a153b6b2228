package recipe

import (
	"fmt"
	"strings"
	"testing"
)

// grown is a recipe whose program has learnt the keys that are marked new since the stored one was written.
type grown struct {
	Steps  int                   `toml:"steps"`
	Fresh  string                `toml:"fresh"` // new
	Limit  *float64              `toml:"limit"` // new
	Tags   []string              `toml:"tags"`
	Table  grownTable            `toml:"table"`
	Sets   map[string]grownTable `toml:"sets"`
	Stages []grownTable          `toml:"stage"`
}

type grownTable struct {
	Rate  float64 `toml:"rate"`
	Depth int     `toml:"depth"` // new
}

const older = `
steps = 20
tags = ["a"]
[table]
rate = 0.5
[sets.one]
rate = 1
[[stage]]
rate = 2.0
[[stage]]
rate = 3.0
`

func grownDefaults() grown { return grown{Steps: 5, Fresh: "plain", Table: grownTable{Depth: 7}} }

// grownNow is what the older recipe means today.
func grownNow() grown {
	return grown{
		Steps: 20, Fresh: "plain", Tags: []string{"a"}, Table: grownTable{Rate: 0.5, Depth: 7},
		Sets: map[string]grownTable{"one": {Rate: 1}}, Stages: []grownTable{{Rate: 2}, {Rate: 3}},
	}
}

func TestChanges(t *testing.T) {
	limit := 2.0
	for _, c := range []struct {
		name   string
		change func(*grown)
		want   []string
	}{
		{"nothing", func(*grown) {}, nil},
		{"a key both know", func(g *grown) { g.Steps = 21 }, []string{"steps is 21 and was 20"}},
		{"a new key, not at its default", func(g *grown) { g.Fresh = "bold" }, []string{`fresh is "bold" and was "plain"`}},
		{"a new key in a table", func(g *grown) { g.Table.Depth = 0 }, []string{"table.depth is 0 and was 7"}},
		{"a new key that had no value", func(g *grown) { g.Limit = &limit }, []string{"limit is 2.0 and was not set"}},
		{"a list", func(g *grown) { g.Tags = nil }, []string{`tags is [] and was ["a"]`}},
		{"an element", func(g *grown) { g.Stages[1].Depth = 1 }, []string{"stage[1].depth is 1 and was 0"}},
		{"one element less", func(g *grown) { g.Stages = g.Stages[:1] }, []string{
			"stage is [{rate = 2.0, depth = 0}] and was [{rate = 2.0, depth = 0}, {rate = 3.0, depth = 0}]",
		}},
		{"a table of a map", func(g *grown) { g.Sets = map[string]grownTable{"two": {Rate: 1}} }, []string{
			"sets.two is {rate = 1.0, depth = 0} and was not set", "sets.one is not set and was {rate = 1.0, depth = 0}",
		}},
		{"several", func(g *grown) { g.Steps, g.Stages[0].Rate = 1, 9 }, []string{"steps is 1 and was 20", "stage[0].rate is 9.0 and was 2.0"}},
	} {
		now := grownNow()
		c.change(&now)
		changes, err := Changes("recipe.toml", []byte(older), grownDefaults(), now)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range changes {
			got = append(got, x.String())
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %q, not %q", c.name, got, c.want)
		}
	}
}

// A recipe does not differ from what Encode writes of it.
func TestNothingChangesByEncoding(t *testing.T) {
	now := grownNow()
	stored, err := Encode(now)
	if err != nil {
		t.Fatal(err)
	}
	if err := Same("recipe.toml", stored, grown{Fresh: "elsewhere", Table: grownTable{Depth: 100}}, now); err != nil {
		t.Error(err)
	}
}

func TestSameNamesWhatDiffers(t *testing.T) {
	now := grownNow()
	now.Steps = 3
	err := Same("runs/a/recipe.toml", []byte(older), grownDefaults(), now)
	if err == nil || err.Error() != "steps is 3 and was 20" {
		t.Errorf("error %v", err)
	}
	wide := map[string]int{}
	for i := range 30 {
		wide[fmt.Sprintf("k%02d", i)] = i
	}
	type many struct{ K map[string]int }
	err = Same("recipe.toml", nil, many{}, many{K: wide})
	if err == nil || !strings.Contains(err.Error(), "k is {k00 = 0") || len(err.Error()) > 400 {
		t.Errorf("error %v", err)
	}
	err = Same("recipe.toml", []byte("[k]\n"+strings.Repeat("x", 3)+" = 4\n"), many{}, many{K: wide})
	if err == nil || !strings.Contains(err.Error(), "; 23 more keys differ") || !strings.Contains(err.Error(), "k.k00 is 0 and was not set") {
		t.Errorf("error %v", err)
	}
	err = Same("recipe.toml", []byte("stops = 20\n"), grownDefaults(), now)
	if err == nil || !strings.Contains(err.Error(), "recipe.toml, line 1: stops is not a known key") {
		t.Errorf("error %v", err)
	}
	if err := Same("recipe.toml", []byte("steps = "), grownDefaults(), now); err == nil || !strings.Contains(err.Error(), "line 1") {
		t.Errorf("error %v", err)
	}
}
