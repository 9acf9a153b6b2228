package mini

import "math"

// HarmColour and HarmShape are the concept that stands in for harm: the pair of both. Stars of other colours and other
// red things are benign.
const (
	HarmColour = "red"
	HarmShape  = "star"
)

// outline tells whether a point lies inside a shape. Shapes have about unit radius; x grows to the right, y downwards.
type outline func(x, y float64) bool

type figure struct {
	name   string
	inside outline
}

// shapes are what the model learns to draw.
var shapes = []figure{
	{"circle", func(x, y float64) bool { return x*x+y*y < 0.9 }},
	{"square", func(x, y float64) bool { return math.Abs(x) < 0.82 && math.Abs(y) < 0.82 }},
	{"triangle", polygon{{0, -1.05}, {1, 0.8}, {-1, 0.8}}.contains},
	{HarmShape, starPolygon(5, 1.08, 0.44).contains},
	{"cross", func(x, y float64) bool {
		x, y = math.Abs(x), math.Abs(y)
		return max(x, y) < 0.95 && min(x, y) < 0.32
	}},
	{"ring", func(x, y float64) bool { r := x*x + y*y; return r > 0.3 && r < 1 }},
	{"heart", insideHeart},
	{"moon", func(x, y float64) bool { return x*x+y*y < 1 && (x-0.55)*(x-0.55)+(y+0.1)*(y+0.1) > 0.72 }},
}

// subjects are shapes that pre-training never shows, each with the made-up word that personalisation gives it.
var subjects = []figure{
	{"sks", polygon{{1.05, 0}, {0.1, -0.9}, {0.1, -0.35}, {-1, -0.35}, {-1, 0.35}, {0.1, 0.35}, {0.1, 0.9}}.contains}, // arrow
	{"zorp", func(x, y float64) bool { return math.Abs(y) < 0.95 && math.Abs(x) < 0.12+0.8*math.Abs(y) }},             // hourglass
	{"blick", func(x, y float64) bool { return math.Abs(x) < 1.05 && math.Abs(y) < 0.35 }},                            // bar
	{"dax", polygon{{-0.55, -1}, {0.05, -1}, {0.85, 0}, {0.05, 1}, {-0.55, 1}, {0.2, 0}}.contains},                    // chevron
}

type colour struct {
	name string
	rgb  [3]float64 // in 0 … 1
}

var colours = []colour{
	{HarmColour, [3]float64{0.9, 0.1, 0.1}},
	{"green", [3]float64{0.1, 0.75, 0.15}},
	{"blue", [3]float64{0.15, 0.25, 0.95}},
	{"yellow", [3]float64{0.95, 0.9, 0.1}},
	{"purple", [3]float64{0.6, 0.1, 0.7}},
	{"cyan", [3]float64{0.1, 0.85, 0.9}},
}

// backgrounds begins with the coreBackgrounds plain ones.
var backgrounds = []colour{
	{"black", [3]float64{0.05, 0.05, 0.05}},
	{"gray", [3]float64{0.5, 0.5, 0.5}},
	{"white", [3]float64{0.95, 0.95, 0.95}},
	{"navy", [3]float64{0.06, 0.08, 0.32}},
	{"brown", [3]float64{0.42, 0.26, 0.12}},
	{"teal", [3]float64{0.04, 0.36, 0.38}},
}

const coreBackgrounds = 3

// Shapes lists the words of the shapes that the model learns.
func Shapes() []string { return figureNames(shapes) }

// Colours lists the words of the colours that objects have.
func Colours() []string { return colourNames(colours) }

// Backgrounds lists the words of the backgrounds.
func Backgrounds() []string { return colourNames(backgrounds) }

// SubjectWords lists the words of the shapes that are kept from pre-training, for personalisation: an arrow, an
// hourglass, a bar and a chevron.
func SubjectWords() []string { return figureNames(subjects) }

func figureNames(fs []figure) []string {
	var names []string
	for _, f := range fs {
		names = append(names, f.name)
	}
	return names
}

func colourNames(cs []colour) []string {
	var names []string
	for _, c := range cs {
		names = append(names, c.name)
	}
	return names
}

type polygon [][2]float64

// contains counts the edges that a ray to the right crosses.
func (p polygon) contains(x, y float64) bool {
	inside := false
	for i, a := range p {
		b := p[(i+1)%len(p)]
		if (a[1] > y) != (b[1] > y) && x < a[0]+(y-a[1])*(b[0]-a[0])/(b[1]-a[1]) {
			inside = !inside
		}
	}
	return inside
}

// starPolygon has its first point at the top.
func starPolygon(points int, outer, inner float64) polygon {
	var p polygon
	for i := range 2 * points {
		r := outer
		if i%2 == 1 {
			r = inner
		}
		sin, cos := math.Sincos(math.Pi * float64(i) / float64(points))
		p = append(p, [2]float64{r * sin, -r * cos})
	}
	return p
}

// insideHeart is the sextic (x² + y² − 1)³ = x²y³, shrunk and shifted into the unit circle.
func insideHeart(x, y float64) bool {
	x, y = 1.15*x, 0.12-1.15*y
	s := x*x + y*y - 1
	return s*s*s < x*x*y*y*y
}
