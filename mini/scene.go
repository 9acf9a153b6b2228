package mini

import (
	"math"

	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/random"
)

// Scene is a picture before it is drawn: one object on a plain background.
type Scene struct {
	Shape, Colour, Background string     // their words
	X, Y, Radius              float64    // centre and size of the object in pixels
	Ink, Paper                [3]float64 // the colours as drawn, in 0 … 1
}

const samples = 4 // per pixel, each way

// Draw renders the scene with 4×4 samples per pixel. A scene whose shape is unknown is an empty background.
func (s Scene) Draw() *data.RGB { return s.draw(outlineOf(s.Shape)) }

func (s Scene) draw(inside outline) *data.RGB {
	picture := data.NewRGB(Side, Side)
	for y := range Side {
		for x := range Side {
			share := float64(s.cover(inside, x, y)) / (samples * samples)
			for c := range 3 {
				value := s.Paper[c] + share*(s.Ink[c]-s.Paper[c])
				picture.Pix[3*(y*Side+x)+c] = uint8(math.Round(255 * value))
			}
		}
	}
	return picture
}

// cover counts the samples of a pixel that lie inside the object.
func (s Scene) cover(inside outline, x, y int) int {
	n := 0
	for i := range samples {
		v := (float64(y) + (float64(i)+0.5)/samples - s.Y) / s.Radius
		for j := range samples {
			u := (float64(x) + (float64(j)+0.5)/samples - s.X) / s.Radius
			if inside(u, v) {
				n++
			}
		}
	}
	return n
}

func outlineOf(name string) outline {
	for _, list := range [][]figure{shapes, subjects} {
		for _, f := range list {
			if f.name == name {
				return f.inside
			}
		}
	}
	return func(_, _ float64) bool { return false }
}

// The ranges that objects and colours vary in.
const (
	minRadius, maxRadius = 4.8, 6.6
	centreJitter         = 1.3
	inkJitter            = 0.06
	paperJitter          = 0.03
)

// newScene draws size, place and colours for what a caption says; words that it leaves out are free.
func newScene(m meaning, r *random.Stream) Scene {
	s := Scene{Shape: m.Shape, Colour: m.Colour, Background: m.background}
	switch {
	case m.size == "small":
		s.Radius = between(r, 3.8, 4.5)
	case m.size == "large":
		s.Radius = between(r, 6.1, 6.9)
	case m.place != "":
		s.Radius = between(r, 4.4, 5.4) // smaller than usual, as a place needs room
	default:
		s.Radius = between(r, minRadius, maxRadius)
	}
	s.X, s.Y = Side/2.0, Side/2.0
	jitter := centreJitter
	if m.place != "" {
		jitter = 0.4
		offset := min(3.2, max(1.9, Side/2.0-0.8-s.Radius)) // as far as the object stays in the picture, about
		switch m.place {
		case "left":
			s.X -= offset
		case "right":
			s.X += offset
		case "top":
			s.Y -= offset
		case "bottom":
			s.Y += offset
		}
	}
	s.X += between(r, -jitter, jitter)
	s.Y += between(r, -jitter, jitter)
	s.Ink = jittered(colourOf(colours, m.Colour), inkJitter, r)
	s.Paper = jittered(colourOf(backgrounds, m.background), paperJitter, r)
	return s
}

func jittered(rgb [3]float64, by float64, r *random.Stream) [3]float64 {
	for c := range rgb {
		rgb[c] = min(1, max(0, rgb[c]+by*(2*r.Float64()-1)))
	}
	return rgb
}

func colourOf(list []colour, name string) [3]float64 {
	for _, c := range list {
		if c.name == name {
			return c.rgb
		}
	}
	return [3]float64{}
}
