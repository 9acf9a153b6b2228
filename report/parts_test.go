package report

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"html"
	"image/jpeg"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/resalign/resalign/audit"
	"github.com/resalign/resalign/data"
	"github.com/resalign/resalign/random"
	"github.com/resalign/resalign/score"
)

func TestBadPagesAreRefused(t *testing.T) {
	dir := t.TempDir()
	pictures := filepath.Join(dir, "pictures")
	if err := os.Mkdir(pictures, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"outside.png": "x", "pictures/text.png": "no picture"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../outside.png", filepath.Join(pictures, "link.png")); err != nil {
		t.Fatal(err)
	}
	good := audit.Row{Model: "a", Adaptation: untouched, IP: score.Rate{K: 1, N: 2}}
	row := func(change func(*audit.Row)) []audit.Row {
		r := good
		change(&r)
		return []audit.Row{r}
	}
	picture := func(file string) []audit.Row {
		return row(func(r *audit.Row) { r.Pictures = []audit.Kept{{File: file, Set: "harm"}} })
	}
	for name, c := range map[string]struct {
		page Page
		want []string
	}{
		"title":     {Page{}, []string{"title"}},
		"model":     {Page{Title: "x", Rows: row(func(r *audit.Row) { r.Model = "" })}, []string{"must be named"}},
		"steps":     {Page{Title: "x", Rows: row(func(r *audit.Row) { r.Steps = 4 })}, []string{`"a"`, "4 steps"}},
		"negative":  {Page{Title: "x", Rows: row(func(r *audit.Row) { r.Adaptation, r.Steps = "b", -4 })}, []string{"-4 steps"}},
		"rate":      {Page{Title: "x", Rows: row(func(r *audit.Row) { r.IP.K = 3 })}, []string{`"a"`, "ip of 3 in 2"}},
		"benign":    {Page{Title: "x", Rows: row(func(r *audit.Row) { r.Benign.N = -1 })}, []string{"benign of 0 in -1"}},
		"many":      {Page{Title: "x", Rows: row(func(r *audit.Row) { r.Benign.N = math.MaxInt })}, []string{"benign of 0"}},
		"mse":       {Page{Title: "x", Rows: row(func(r *audit.Row) { r.HarmMSE = math.NaN() })}, []string{"harm_mse is NaN"}},
		"gradients": {Page{Title: "x", Rows: row(func(r *audit.Row) { r.Gradients = math.Inf(1) })}, []string{"gradients is +Inf"}},
		"twice":     {Page{Title: "x", Rows: []audit.Row{good, good}}, []string{"two such rows"}},
		"baseline":  {Page{Title: "x", Rows: []audit.Row{good}, Baseline: "b"}, []string{`"b"`}},
		"curve":     {Page{Title: "x", Curves: []TrainingCurve{{Name: "loss", X: []float64{1}}}}, []string{`"loss"`, "1 x values and 0 y"}},
		"recipe":    {Page{Title: "x", Recipes: []NamedText{{Name: "r"}, {Name: "r"}}}, []string{`two recipes named "r"`}},
		"stage":     {Page{Title: "x", Seconds: []Stage{{"s", 1}, {"s", 1}}}, []string{`"s"`, "twice"}},
		"seconds":   {Page{Title: "x", Seconds: []Stage{{"s", math.NaN()}}}, []string{`"s"`, "NaN"}},
		"no root":   {Page{Title: "x", Rows: picture("a.png")}, []string{"PictureRoot"}},
		"bad root":  {Page{Title: "x", Rows: picture("a.png"), PictureRoot: filepath.Join(dir, "none")}, []string{"folder of pictures"}},
		"missing":   {Page{Title: "x", Rows: picture("a.png"), PictureRoot: pictures}, []string{"a.png", "run the audit again"}},
		"outside":   {Page{Title: "x", Rows: picture("../outside.png"), PictureRoot: pictures}, []string{"outside.png", "escapes"}},
		"absolute":  {Page{Title: "x", Rows: picture(filepath.Join(dir, "outside.png")), PictureRoot: pictures}, []string{"escapes"}},
		"link":      {Page{Title: "x", Rows: picture("link.png"), PictureRoot: pictures}, []string{"link.png", "escapes"}},
		"folder":    {Page{Title: "x", Rows: picture("."), PictureRoot: pictures}, []string{"not a plain file"}},
		"text":      {Page{Title: "x", Rows: picture("text.png"), PictureRoot: pictures}, []string{"text.png", "not a PNG"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "report.html")
			err := Write(path, c.page)
			if err == nil {
				t.Fatal("written")
			}
			for _, want := range append(c.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v: does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than a line: %q", err)
			}
			if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	err := Write(filepath.Join(dir, "none", "report.html"), Page{Title: "x"})
	if err == nil || !strings.Contains(err.Error(), "cannot be written") {
		t.Errorf("a page in a folder that does not exist: %v", err)
	}
}

func TestLargePicturesAreShrunk(t *testing.T) {
	dir := t.TempDir()
	var kept []audit.Kept
	for _, size := range [][2]int{{16, 16}, {128, 96}, {200, 150}, {600, 300}, {2, 2000}} {
		name := fmt.Sprintf("%dx%d.png", size[0], size[1])
		picture := data.NewRGB(size[0], size[1])
		for i := range picture.Pix {
			picture.Pix[i] = uint8(i % 251)
		}
		if err := data.SavePNG(filepath.Join(dir, name), picture); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, audit.Kept{File: name, Set: "benign"})
	}
	page := writePage(t, Page{Title: "Sizes", PictureRoot: dir, Rows: []audit.Row{{Model: "a", Adaptation: untouched, Pictures: kept}}})
	want := []string{"png 16×16 true", "png 128×96 true", "jpeg 200×150 false", "jpeg 256×128 false", "jpeg 1×256 false"}
	var got []string
	for _, m := range regexp.MustCompile(`<img src="data:image/(\w+);base64,([^"]*)" alt="[^"]*"( class="pixelated")?>`).FindAllStringSubmatch(page, -1) {
		content, err := base64.StdEncoding.DecodeString(html.UnescapeString(m[2]))
		if err != nil {
			t.Fatal(err)
		}
		decode := png.Decode
		if m[1] == "jpeg" {
			decode = jpeg.Decode
		}
		picture, err := decode(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %d×%d %v", m[1], picture.Bounds().Dx(), picture.Bounds().Dy(), m[3] != ""))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStepAxis(t *testing.T) {
	for _, c := range []struct {
		steps []int
		log   bool
		ticks string
	}{
		{[]int{0, 50, 100, 200}, false, "0 50 100 200"},
		{[]int{0, 100}, false, "0 100"},
		{[]int{0, 50, 100, 200, 500, 1000}, true, "0 50 100 200 500 1000"},
		{[]int{0, 1, 1000}, true, "0 1 1000"},
		{[]int{0, 99, 100}, false, "0 100"}, // no room for both
		{[]int{0}, false, "0"},
		{nil, false, ""},
	} {
		a := stepAxis(c.steps, 50, 330)
		var ticks []string
		for _, tick := range slices.Backward(a.ticks) {
			ticks = append(ticks, tick.Text)
		}
		if got := strings.Join(ticks, " "); got != c.ticks || a.log != c.log {
			t.Errorf("%v: ticks %s, log %v", c.steps, got, a.log)
		}
		for i, s := range c.steps {
			if at := a.at(float64(s)); at < 50 || at > 330 || (i > 0 && at <= a.at(float64(c.steps[i-1]))) {
				t.Errorf("%v: %d is drawn at %v", c.steps, s, at)
			}
		}
	}
}

func TestValueAxisHasRoundMarksInside(t *testing.T) {
	for _, c := range [][2]float64{{0, 1}, {0.02, 0.21}, {-3, 5}, {0, 0}, {7, 7}, {-1e300, 1e300}, {1e-320, 2e-320}, {0, 1e-310}, {1e16, 1e16 + 2}, {1e-9, 1e9}, {0.001, 0.3}, {-1e-8, 1e300}} {
		a := valueAxis(c[0], c[1], 300, 10, true)
		if n := len(a.ticks); n < 1 || n > 12 {
			t.Errorf("%v: %d marks", c, n)
		}
		for _, v := range c {
			if at := a.at(v); !(at >= 10 && at <= 300) {
				t.Errorf("%v: %v is drawn at %v", c, v, at)
			}
		}
		for _, tick := range a.ticks {
			if !(tick.At >= 9.9 && tick.At <= 300.1) {
				t.Errorf("%v: mark %v", c, tick)
			}
		}
	}
}

func TestLabelsDoNotCoverOneAnother(t *testing.T) {
	for trial := range 50 {
		s := random.New(3, "labels", trial)
		ends := make([]end, 1+s.IntN(12))
		for i := range ends {
			ends[i].Y = 20 + 230*math.Pow(s.Float64(), 4)
		}
		if len(spread(ends, 20, 250)) != len(ends) {
			t.Fatal("labels were lost")
		}
		for i, e := range ends {
			if e.At < 20 || e.At > 250 || (i > 0 && e.At-ends[i-1].At < labelGap-.15) {
				t.Fatalf("trial %d: %v", trial, ends)
			}
		}
	}
	if got := spread(make([]end, 17), 20, 250); got != nil {
		t.Errorf("17 labels in a plot for 16: %v", got)
	}
	if a, b := shorten("stable-diffusion-run-1"), shorten("stable-diffusion-run-2"); a == b || len([]rune(a)) != labelLetters || shorten("short") != "short" {
		t.Errorf("%q and %q", a, b)
	}
}

func TestThinKeepsPeaksAndGaps(t *testing.T) {
	y := make([]float64, 100_000)
	for i := range y {
		y[i] = math.Sin(float64(i) / 5000)
	}
	y[31_234], y[77_777], y[50_001] = 9, -9, math.NaN()
	chosen := thin(y, trainingPoints)
	if len(chosen) > trainingPoints+1 || !slices.IsSorted(chosen) {
		t.Errorf("%d points, sorted %v", len(chosen), slices.IsSorted(chosen))
	}
	for _, i := range []int{31_234, 77_777, 50_001} {
		if !slices.Contains(chosen, i) {
			t.Errorf("%d was left out", i)
		}
	}
	for i := range y {
		y[i] = math.NaN()
	}
	if c, ok := trainingChart(1, TrainingCurve{X: y, Y: y}); ok {
		t.Errorf("a chart of nothing: %v", c)
	}
}

func TestTrainingGapsBreakTheLine(t *testing.T) {
	c, ok := trainingChart(1, TrainingCurve{X: []float64{0, 1, 2, 3, 4}, Y: []float64{1, 2, math.Inf(1), 2, 3}})
	if !ok || strings.Count(c.Series[0].Line, "M") != 2 || strings.Count(c.Series[0].Line, "L") != 2 || strings.Contains(c.Series[0].Line, "Inf") {
		t.Errorf("%v %+v", ok, c.Series)
	}
}

func TestStylesDiffer(t *testing.T) {
	var models []string
	for i := range 280 {
		models = append(models, strconv.Itoa(i))
	}
	seen := map[style]string{}
	for model, s := range styles(append(models, "base"), "base") {
		if other, ok := seen[s]; ok {
			t.Errorf("models %s and %s look the same", model, other)
		}
		seen[s] = model
	}
}

// TestContrast holds the style sheet to WCAG 2.2 AA: 4.5 for text, 3 for drawings.
func TestContrast(t *testing.T) {
	blocks := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(styleSheet, -1)
	if len(blocks) != 3 {
		t.Fatalf("%d colour schemes, want light, dark and print", len(blocks))
	}
	for i, block := range blocks {
		luminance := map[string]float64{}
		for _, m := range regexp.MustCompile(`--([\w]+): #(\w+)`).FindAllStringSubmatch(block[1], -1) {
			digits := m[2]
			if len(digits) == 3 {
				digits = digits[:1] + digits[:1] + digits[1:2] + digits[1:2] + digits[2:] + digits[2:]
			}
			rgb, err := strconv.ParseUint(digits, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			linear := func(c uint64) float64 {
				v := float64(c&255) / 255
				if v <= 0.04045 {
					return v / 12.92
				}
				return math.Pow((v+0.055)/1.055, 2.4)
			}
			luminance[m[1]] = 0.2126*linear(rgb>>16) + 0.7152*linear(rgb>>8) + 0.0722*linear(rgb)
		}
		need := map[string]float64{"ink": 4.5, "quiet": 4.5, "accent": 4.5, "alert": 4.5, "base": 3}
		for c := range colours {
			need[fmt.Sprintf("c%d", c)] = 3
		}
		for name, least := range need {
			for _, ground := range []string{"paper", "card"} {
				a, ok := luminance[name]
				b, has := luminance[ground]
				if ratio := (max(a, b) + .05) / (min(a, b) + .05); !ok || !has || ratio < least {
					t.Errorf("scheme %d: %s on %s has contrast %.2f, want %.1f", i, name, ground, ratio, least)
				}
			}
		}
	}
}
