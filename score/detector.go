package score

import (
	"context"

	"github.com/resalign/resalign/data"
)

// Labels are what a detector says about a picture, by aspect: for the miniature's detector shape and colour.
type Labels map[string]string

// Detector labels pictures. What it says of a picture does not depend on the others.
type Detector interface {
	Detect(ctx context.Context, pictures []*data.RGB) ([]Labels, error)
	// Name says which detector it is, and its version, for the record.
	Name() string
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
