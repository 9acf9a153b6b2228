package recipe

import (
	"fmt"
	"time"
)

// sample has every kind of field that a recipe may have.
type sample struct {
	Preset string        `toml:"preset"`
	Seed   uint64        `toml:"seed"`
	Limit  time.Duration `toml:"limit"`
	Common
	Method method            `toml:"method"`
	Audit  *audit            `toml:"audit"`
	Labels map[string]string `toml:"labels"`
	Parts  map[string]part   `toml:"parts"`
	Hidden int               `toml:"-"`
	secret int
}

type Common struct {
	Steps   int     `toml:"steps"`
	Verbose bool    `toml:"verbose"`
	Small   int8    `toml:"small"`
	Half    float32 `toml:"half"`
}

type method struct {
	Lambda float64     `toml:"lambda"`
	Rank   *int        `toml:"rank"`
	Names  []string    `toml:"names"`
	Matrix [][]float64 `toml:"matrix"`
	Pair   [2]int      `toml:"pair"`
	Colour colour      `toml:"colour"`
	Grid   [][]part    `toml:"grid"`
}

type audit struct {
	Attacks []attack `toml:"attacks"`
	Refs    []*part  `toml:"refs"`
}

type attack struct {
	Name  string        `toml:"name"`
	Steps int           `toml:"steps"`
	Wait  time.Duration `toml:"wait"`
	Parts []part        `toml:"parts"`
}

type part struct {
	Weight float64 `toml:"weight"`
	Folder string  `toml:"folder"`
}

// colour reads and writes text.
type colour struct{ index int }

var colours = []string{"red", "green"}

func (c *colour) UnmarshalText(text []byte) error {
	for i, name := range colours {
		if name == string(text) {
			c.index = i
			return nil
		}
	}
	return fmt.Errorf("the colours are %v", colours)
}

func (c colour) MarshalText() ([]byte, error) { return []byte(colours[c.index]), nil }

func (s *sample) Validate() []Problem {
	var out []Problem
	if s.Method.Lambda < 0 {
		out = append(out, Problem{Key: "method.lambda", Message: "is negative; use 0 or more"})
	}
	if s.Audit != nil {
		for i, a := range s.Audit.Attacks {
			if a.Steps > 500 {
				out = append(out, Problem{Key: fmt.Sprintf("audit.attacks[%d].steps", i), Message: "is over 500"})
			}
		}
	}
	return out
}

const whole = `# a comment
seed = 7
limit = "1h30m"
steps = 40
half = 3
small = -128
preset = "tiny"

[method]
lambda = 1
rank = 4
names = ["a", "b\n\"c\"", '''
d]''', ]
matrix = [[1, 2.5],
  [], [3]]
pair = [1, 2]
colour = "green"
grid = [[{weight = 1, folder = "x"}], []]

[labels]
"a b" = "c"
plain = "é"

[parts.first]
weight = 0.25

[[audit.attacks]]
name = "lora"
steps = 100
parts = [{weight = 1e-05, folder = "f"}, {folder = "g"}]

[[audit.attacks]]
name = "full"
wait = "90s"
  [[audit.attacks.parts]]
  folder = "h"

[[audit.refs]]
weight = 2
`
