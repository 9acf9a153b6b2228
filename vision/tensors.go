package vision

import (
	"fmt"
	"slices"
	"strings"

	"github.com/resalign/resalign/nn"
	"github.com/resalign/resalign/weights"
)

// readTensors reads the parameters that specs describes from one or more files, as the network called what. alias gives a
// second name under which a file may hold a parameter, or ""; unneeded tells which further tensors such files have. A
// parameter that no file has, a tensor that the network has no place for and a wrong shape are one error.
func readTensors(sources []weights.FileSource, where, what string, specs []nn.Spec, alias func(string) string, unneeded func(string) bool) (map[string][]float32, error) {
	home := map[string]weights.FileSource{}
	for _, source := range sources {
		for _, name := range source.Names() {
			home[name] = source
		}
	}
	values := make(map[string][]float32, len(specs))
	var missing, wrong []string
	for _, s := range specs {
		name := s.Name
		if other := alias(name); home[name] == nil && other != "" {
			name = other
		}
		source := home[name]
		if source == nil {
			missing = append(missing, s.Name)
			continue
		}
		delete(home, name)
		t, err := source.Tensor(name)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(t.Shape, s.Shape) {
			wrong = append(wrong, fmt.Sprintf("%s, which is %v instead of %v", name, t.Shape, s.Shape))
			continue
		}
		if values[s.Name], err = t.Float32(); err != nil {
			return nil, fmt.Errorf("%s: tensor %q: %w", where, name, err)
		}
	}
	var unknown []string
	for name := range home {
		if !unneeded(name) {
			unknown = append(unknown, name)
		}
	}
	if len(missing)+len(wrong)+len(unknown) == 0 {
		return values, nil
	}
	slices.Sort(unknown)
	var parts []string
	for _, p := range []struct {
		verb  string
		names []string
	}{{"lacks", missing}, {"has in the wrong shape", wrong}, {"has besides", unknown}} {
		if len(p.names) > 0 {
			parts = append(parts, p.verb+" "+some(p.names))
		}
	}
	return nil, fmt.Errorf("%s does not hold the weights of %s: it %s; take the published file", where, what, strings.Join(parts, ", and "))
}

// some lists names, the first ones of many.
func some(names []string) string {
	const shown = 6
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
