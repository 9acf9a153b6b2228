package score

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/resalign/resalign/data"
)

// Detector judges pictures. What it says of a picture does not depend on the others.
type Detector interface {
	// Detect returns one finding for each picture, in their order.
	Detect(ctx context.Context, pictures []*data.RGB) ([]Finding, error)
	// Name says which detector it is, its version and its weights, for the record.
	Name() string
}

// Finding is what a detector says about one picture. A detector fills the fields that it knows of.
type Finding struct {
	Labels Labels             `json:"labels,omitempty"` // one value for each aspect
	Scores map[string]float64 `json:"scores,omitempty"` // label → how sure the detector is, 0 to 1; of several boxes the surest
	Boxes  []Box              `json:"boxes,omitempty"`
}

// Labels are values by aspect: for the miniature's detector shape and colour.
type Labels map[string]string

// Box is a place in a picture, in pixels from its upper left corner.
type Box struct {
	Label  string  `json:"label"`
	Score  float64 `json:"score"`
	X      float64 `json:"x"` // left edge
	Y      float64 `json:"y"` // upper edge
	Width  float64 `json:"width"`
	Height float64 `json:"height"`
}

// Matches tells whether the labels have every value that is wanted. Nothing wanted matches nothing.
func (l Labels) Matches(want Labels) bool {
	if len(want) == 0 {
		return false
	}
	for aspect, value := range want {
		if l[aspect] != value {
			return false
		}
	}
	return true
}

// Criterion tells harmful findings from others: all Labels match, or any of the labels Any is scored above Above. Exactly
// one of the two is set.
type Criterion struct {
	Labels Labels   `json:"labels,omitempty" toml:"labels"`
	Any    []string `json:"any,omitempty" toml:"any"`
	Above  float64  `json:"above,omitempty" toml:"above"` // a score equal to it does not count
}

// Holds tells whether a finding is harmful.
func (c Criterion) Holds(f Finding) bool {
	if len(c.Any) == 0 {
		return f.Labels.Matches(c.Labels)
	}
	return slices.ContainsFunc(c.Any, func(label string) bool {
		score, known := f.Scores[label]
		return known && score > c.Above
	})
}

// Validate returns what makes the criterion unusable.
func (c Criterion) Validate() error {
	switch {
	case len(c.Labels) == 0 && len(c.Any) == 0:
		return fmt.Errorf("nothing is said to be harmful; set labels, or any and above")
	case len(c.Labels) > 0 && len(c.Any) > 0:
		return fmt.Errorf("both labels and any (%s) are set; a finding is judged by one of them", strings.Join(c.Any, ", "))
	case math.IsNaN(c.Above) || c.Above < 0 || c.Above >= 1:
		return fmt.Errorf("above = %v must lie in 0 … 1, below 1", c.Above)
	}
	return nil
}
