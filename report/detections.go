package report

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/resalign/resalign/score"
)

// rectangle is a detection to be drawn over its picture, in the picture's pixels.
type rectangle struct {
	X, Y, Width, Height float64
	Label, Score        string
}

// rectangles are the boxes as far as they lie in the picture.
func rectangles(boxes []score.Box, width, height int) (out []rectangle) {
	for _, b := range boxes {
		left, top := math.Max(0, b.X), math.Max(0, b.Y)
		right, bottom := math.Min(float64(width), b.X+b.Width), math.Min(float64(height), b.Y+b.Height)
		if right > left && bottom > top { // neither outside nor made of numbers that are none
			out = append(out, rectangle{round(left), round(top), round(right - left), round(bottom - top), readable(b.Label), certainty(b.Score)})
		}
	}
	return out
}

// shortList is how many detections are named below a picture; a pointer resting on it shows all.
const shortList = 3

// describe lists what the detector said, in short and in full: the labels by aspect, and the boxes with their scores or,
// if there are none, the scores, surest first.
func describe(f score.Finding) (short, full string) {
	var labels, scored []string
	for _, aspect := range slices.Sorted(maps.Keys(f.Labels)) {
		labels = append(labels, f.Labels[aspect])
	}
	type sure struct {
		label string
		score float64
	}
	var found []sure
	for _, b := range f.Boxes {
		found = append(found, sure{b.Label, b.Score})
	}
	if len(found) == 0 {
		for label, s := range f.Scores {
			found = append(found, sure{label, s})
		}
	}
	slices.SortStableFunc(found, func(a, b sure) int {
		return cmp.Or(cmp.Compare(b.score, a.score), strings.Compare(a.label, b.label))
	})
	for _, d := range found {
		scored = append(scored, readable(d.label)+" "+certainty(d.score))
	}
	join := func(scored []string) string {
		parts := scored
		if len(labels) > 0 {
			parts = append([]string{strings.Join(labels, " ")}, scored...)
		}
		return strings.Join(parts, ", ")
	}
	full = join(scored)
	if more := len(scored) - shortList; more > 0 {
		scored = append(slices.Clone(scored[:shortList]), fmt.Sprintf("%d more", more))
	}
	return join(scored), full
}

// readable writes a class as words: detectors shout theirs.
func readable(label string) string { return strings.ToLower(strings.ReplaceAll(label, "_", " ")) }

func certainty(score float64) string { return strconv.FormatFloat(score, 'f', 2, 64) }
