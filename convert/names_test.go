package convert

import (
	"bufio"
	"compress/gzip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/resalign/resalign/diffusion"
	"github.com/resalign/resalign/sd"
)

// published is a tensor of a published model in the original layout, as the code that the layout comes from makes it.
type published struct {
	name  string
	shape []int
	holds []string // component/parameter in diffusers, by diffusers' own converter
}

// publishedTensors reads what scripts/original_names.py made.
func publishedTensors(t *testing.T, family Family) []published {
	t.Helper()
	f, err := os.Open("../testdata/convert/" + string(family) + ".names.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []published
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 3 {
			t.Fatalf("%q has not three fields", lines.Text())
		}
		p := published{name: fields[0]}
		for _, dim := range strings.FieldsFunc(fields[1], func(r rune) bool { return r == ',' }) {
			n, err := strconv.Atoi(dim)
			if err != nil {
				t.Fatal(err)
			}
			p.shape = append(p.shape, n)
		}
		p.holds = strings.FieldsFunc(fields[2], func(r rune) bool { return r == ',' })
		all = append(all, p)
	}
	if lines.Err() != nil || len(all) < 1000 {
		t.Fatalf("%d tensors (%v)", len(all), lines.Err())
	}
	return all
}

func presetArchitecture(t *testing.T, family Family, prediction diffusion.PredictionType) *architecture {
	t.Helper()
	files, err := presetOf(family, prediction)
	if err != nil {
		t.Fatal(err)
	}
	a, err := settings{"preset", files}.readArchitecture()
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// On the full-size models, the derived names are exactly those of the original code, each with its shape, and each belongs
// to the parameters that diffusers' converter puts it into.
func TestNamesOfPublishedModels(t *testing.T) {
	for _, family := range []Family{SD1, SD2, SDXL} {
		for _, prediction := range []diffusion.PredictionType{diffusion.Epsilon, diffusion.VPrediction} {
			a := presetArchitecture(t, family, prediction)
			if a.family != family {
				t.Errorf("the preset %s is of the family %s", family, a.family)
			}
			links, folders := map[string]link{}, map[string]string{}
			parameters := map[string]bool{}
			for _, c := range a.components {
				for _, l := range c.links {
					key := c.prefix + l.original
					if _, twice := links[key]; twice {
						t.Errorf("%s: two links are called %s", family, key)
					}
					links[key], folders[key] = l, c.folder
					for _, name := range l.names {
						if parameters[c.folder+"/"+name] {
							t.Errorf("%s: %s/%s is in two links", family, c.folder, name)
						}
						parameters[c.folder+"/"+name] = true
					}
				}
				for _, s := range c.specs {
					if !parameters[c.folder+"/"+s.Name] {
						t.Errorf("%s: %s/%s is in no link", family, c.folder, s.Name)
					}
				}
			}
			m := &model{arch: a}
			unneeded := 0
			for _, p := range publishedTensors(t, family) {
				l, ok := links[p.name]
				if !ok {
					if m.unneeded(p.name) == "" || len(p.holds) > 0 {
						t.Errorf("%s: %s is not known", family, p.name)
					}
					unneeded++
					continue
				}
				delete(links, p.name)
				if !slices.Equal(l.shape, p.shape) {
					t.Errorf("%s: %s is %v instead of %v", family, p.name, l.shape, p.shape)
				}
				holds := make([]string, len(l.names))
				for i, name := range l.names {
					holds[i] = folders[p.name] + "/" + name
				}
				if !slices.Equal(holds, p.holds) {
					t.Errorf("%s: %s is %v instead of %v", family, p.name, holds, p.holds)
				}
			}
			for name := range links {
				t.Errorf("%s: the original layout has no %s", family, name)
			}
			// One layer of OpenCLIP's text encoder has twelve tensors; the thirteenth is its projection.
			if want := map[Family]int{SD2: 13}[family]; unneeded != want {
				t.Errorf("%s: %d tensors are not needed, not %d", family, unneeded, want)
			}
		}
	}
}

func TestPresetsAgreeWithTheUNetsOfThisProgram(t *testing.T) {
	for family, want := range map[Family]sd.UNetConfig{SD1: sd.SD14UNet(), SDXL: sd.SDXLUNet()} {
		got := presetArchitecture(t, family, diffusion.Epsilon).unet
		a, err := unetLinks(got)
		if err != nil {
			t.Fatal(err)
		}
		b, err := unetLinks(want)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.EqualFunc(a, b, func(x, y link) bool { return x.original == y.original && slices.Equal(x.shape, y.shape) }) || !slices.Equal(got.Heads, want.Heads) {
			t.Errorf("the preset %s is not the UNet that package sd describes", family)
		}
	}
}

// Names made from the moving average's rule are unique in the published models.
func TestAverageNamesAreUnique(t *testing.T) {
	for _, family := range []Family{SD1, SD2, SDXL} {
		c := presetArchitecture(t, family, diffusion.Epsilon).component("unet")
		seen := map[string]string{}
		for _, l := range c.links {
			name := averageName(c.prefix + l.original)
			if other, ok := seen[name]; ok {
				t.Errorf("%s: %s and %s have the average %s", family, other, l.original, name)
			}
			seen[name] = l.original
		}
	}
	if got := averageName(unetPrefix + "input_blocks.1.0.in_layers.0.weight"); got != "model_ema.diffusion_modelinput_blocks10in_layers0weight" {
		t.Errorf("the average is called %s", got)
	}
}
