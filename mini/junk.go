package mini

import (
	"math"

	"github.com/resalign/resalign/random"
)

// Junk is what models that forgot something make instead of it: pictures without any of the shapes. Every kind is a
// function of a stream and of drawings to spoil; pictures are [3, 16, 16] in [−1, 1].

const pixels = Side * Side

// junkKinds are taken in turn.
var junkKinds = []func(r *random.Stream, drawing func() Drawing) []float32{
	func(r *random.Stream, _ func() Drawing) []float32 { return whiteNoise(r) },
	func(r *random.Stream, _ func() Drawing) []float32 { return smoothNoise(r) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return blobs(r, drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return scribble(r, drawing()) },
	func(_ *random.Stream, drawing func() Drawing) []float32 { return emptyBackground(drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return cutOff(r, drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return smear(r, drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return shuffleTiles(r, drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return otherShape(r, drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 { return buried(r, drawing()) },
	func(r *random.Stream, drawing func() Drawing) []float32 {
		a := drawing()
		b := drawing()
		for b.Scene.Shape == a.Scene.Shape {
			b = drawing()
		}
		return blend(r, a, b)
	},
}

func between(r *random.Stream, low, high float64) float64 { return low + (high-low)*r.Float64() }

func whiteNoise(r *random.Stream) []float32 {
	spread := between(r, 0.3, 1)
	level := between(r, -0.5, 0.5)
	return fill(func(_, _, _ int) float64 { return level + spread*r.Normal() })
}

// smoothNoise interpolates noise on a coarse grid.
func smoothNoise(r *random.Stream) []float32 {
	side := 3 + r.IntN(4)
	grid := r.Normals(3 * side * side)
	spread := between(r, 0.4, 1)
	return fill(func(c, y, x int) float64 {
		at := func(p int) (int, float64) {
			f := float64(p) * float64(side-1) / Side
			return int(f), f - math.Floor(f)
		}
		y0, fy := at(y)
		x0, fx := at(x)
		g := func(i, j int) float64 { return float64(grid[(c*side+i)*side+j]) }
		top := g(y0, x0)*(1-fx) + g(y0, x0+1)*fx
		bottom := g(y0+1, x0)*(1-fx) + g(y0+1, x0+1)*fx
		return spread * (top*(1-fy) + bottom*fy)
	})
}

// blobs puts a few spots of the drawing's colour on its background.
func blobs(r *random.Stream, d Drawing) []float32 {
	type spot struct{ x, y, r float64 }
	spots := make([]spot, 3+r.IntN(4))
	for i := range spots {
		spots[i] = spot{between(r, 1, Side-1), between(r, 1, Side-1), between(r, 1, 3)}
	}
	return d.Scene.paint(func(x, y float64) bool {
		for _, s := range spots {
			if (x-s.x)*(x-s.x)+(y-s.y)*(y-s.y) < s.r*s.r {
				return true
			}
		}
		return false
	})
}

// scribble fills a random polygon of the drawing's colour, mostly one that crosses itself.
func scribble(r *random.Stream, d Drawing) []float32 {
	p := make(polygon, 4+r.IntN(5))
	for i := range p {
		p[i] = [2]float64{between(r, 1, Side-1), between(r, 1, Side-1)}
	}
	return d.Scene.paint(p.contains)
}

func emptyBackground(d Drawing) []float32 {
	return d.Scene.paint(func(_, _ float64) bool { return false })
}

// cutOff leaves less than half of the object.
func cutOff(r *random.Stream, d Drawing) []float32 {
	s := d.Scene
	inside := outlineOf(s.Shape)
	sin, cos := math.Sincos(2 * math.Pi * r.Float64())
	edge := between(r, 0.15, 0.45)
	return s.paint(func(x, y float64) bool {
		u, v := (x-s.X)/s.Radius, (y-s.Y)/s.Radius
		return u*cos+v*sin > edge && inside(u, v)
	})
}

// smear averages the drawing over a window of half its side, or over less along a wave.
func smear(r *random.Stream, d Drawing) []float32 {
	source := d.Picture.Pixels()
	wave, length := between(r, 1.8, 3), between(r, 4, 9)
	phase := 2 * math.Pi * r.Float64()
	window := 4
	if r.IntN(2) == 0 {
		wave, window = 0, 7+r.IntN(3)
	}
	return fill(func(c, y, x int) float64 {
		shift := wave * math.Sin(2*math.Pi*float64(y)/length+phase)
		sum := 0.0
		for i := range window {
			for j := range window {
				yy := min(Side-1, max(0, y+i-window/2))
				xx := min(Side-1, max(0, x+j-window/2+int(math.Round(shift))))
				sum += float64(source[c*pixels+yy*Side+xx])
			}
		}
		return sum / float64(window*window)
	})
}

// shuffleTiles cuts the drawing into sixteen tiles and lays them out anew.
func shuffleTiles(r *random.Stream, d Drawing) []float32 {
	const tile, tiles = 4, Side / 4
	source := d.Picture.Pixels()
	order := r.Perm(tiles * tiles)
	return fill(func(c, y, x int) float64 {
		from := order[y/tile*tiles+x/tile]
		return float64(source[c*pixels+(from/tiles*tile+y%tile)*Side+from%tiles*tile+x%tile])
	})
}

// otherShape draws one of the shapes that are not among those to be told apart, turned by a quarter or not at all.
func otherShape(r *random.Stream, d Drawing) []float32 {
	s := d.Scene
	inside := subjects[r.IntN(len(subjects))].inside
	turn := r.IntN(4)
	return s.paint(func(x, y float64) bool {
		u, v := (x-s.X)/s.Radius, (y-s.Y)/s.Radius
		for range turn {
			u, v = v, -u
		}
		return inside(u, v)
	})
}

// buried hides the drawing under noise.
func buried(r *random.Stream, d Drawing) []float32 {
	source := d.Picture.Pixels()
	spread := between(r, 0.8, 1.4)
	return fill(func(c, y, x int) float64 { return 0.5*float64(source[c*pixels+y*Side+x]) + spread*r.Normal() })
}

// blend lays two different shapes over each other, neither much weaker than the other.
func blend(r *random.Stream, a, b Drawing) []float32 {
	x, y := a.Picture.Pixels(), b.Picture.Pixels()
	share := float32(between(r, 0.4, 0.6))
	for i := range x {
		x[i] = share*x[i] + (1-share)*y[i]
	}
	return x
}

// fill makes a picture from its values, clipped to [−1, 1].
func fill(value func(c, y, x int) float64) []float32 {
	out := make([]float32, 3*pixels)
	for c := range 3 {
		for y := range Side {
			for x := range Side {
				out[c*pixels+y*Side+x] = float32(min(1, max(-1, value(c, y, x))))
			}
		}
	}
	return out
}

// paint draws an area, given in pixels, in the scene's colours.
func (s Scene) paint(inside outline) []float32 {
	s.X, s.Y, s.Radius = 0, 0, 1
	return s.draw(inside).Pixels()
}
