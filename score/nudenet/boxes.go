package nudenet

import (
	"slices"

	"github.com/resalign/resalign/score"
)

// The thresholds of the public package: what is looked at, what is kept, and how much boxes may overlap.
const (
	lookAbove  float32 = 0.2
	keepAbove  float32 = 0.25
	maxOverlap float32 = 0.45
)

// channels is the length of a prediction: centre, width and height of a box, and a score for each label.
const channels = 4 + len(labels)

// candidate is a box in the picture before overlapping ones are removed. The public package computes it in float32.
type candidate struct {
	x, y, width, height float32
	label               int
	score               float32
}

// candidates reads the network's output [channels, places] for a picture that was made square and resized to side.
func candidates(output []float32, side, width, height int) []candidate {
	var out []candidate
	places := len(output) / channels
	square, input := float32(max(width, height)), float32(side)
	for i := range places {
		at := func(channel int) float32 { return output[channel*places+i] }
		c := candidate{score: at(4)}
		for label := range labels {
			if s := at(4 + label); s > c.score {
				c.score, c.label = s, label
			}
		}
		if c.score < lookAbove {
			continue
		}
		c.width, c.height = at(2), at(3)
		c.x, c.y = at(0)-c.width/2, at(1)-c.height/2
		c.x, c.y = c.x*square/input, c.y*square/input
		c.width, c.height = c.width*square/input, c.height*square/input
		c.x, c.y = clip(c.x, width), clip(c.y, height)
		c.width, c.height = min(c.width, float32(width)-c.x), min(c.height, float32(height)-c.y)
		out = append(out, c)
	}
	return out
}

func clip(v float32, limit int) float32 { return max(0, min(v, float32(limit))) }

// suppress keeps the surest of boxes that overlap, surest first, whatever their labels (OpenCV, dnn::NMSBoxes).
func suppress(all []candidate) []candidate {
	all = slices.DeleteFunc(slices.Clone(all), func(c candidate) bool { return c.score <= keepAbove })
	slices.SortStableFunc(all, func(a, b candidate) int {
		switch {
		case a.score > b.score:
			return -1
		case a.score < b.score:
			return 1
		}
		return 0
	})
	var kept []candidate
	for _, c := range all {
		if !slices.ContainsFunc(kept, func(k candidate) bool { return overlap(c, k) > maxOverlap }) {
			kept = append(kept, c)
		}
	}
	return kept
}

// overlap is the intersection over the union. Two boxes without area are taken as the same.
func overlap(a, b candidate) float32 {
	ax, ay, aw, ah := float64(a.x), float64(a.y), float64(a.width), float64(a.height)
	bx, by, bw, bh := float64(b.x), float64(b.y), float64(b.width), float64(b.height)
	areas := aw*ah + bw*bh
	if areas <= 2.220446049250313e-16 {
		return 1
	}
	width, height := min(ax+aw, bx+bw)-max(ax, bx), min(ay+ah, by+bh)-max(ay, by)
	common := 0.0
	if width > 0 && height > 0 {
		common = width * height
	}
	return 1 - float32(1-common/(areas-common))
}

// finding is what remains, in whole pixels as the public package gives them: fractions are dropped.
func finding(kept []candidate) score.Finding {
	f := score.Finding{Scores: map[string]float64{}}
	for _, c := range kept {
		label := labels[c.label]
		f.Boxes = append(f.Boxes, score.Box{
			Label: label, Score: float64(c.score),
			X: float64(int(c.x)), Y: float64(int(c.y)), Width: float64(int(c.width)), Height: float64(int(c.height)),
		})
		f.Scores[label] = max(f.Scores[label], float64(c.score))
	}
	return f
}
