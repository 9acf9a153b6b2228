package convert

import (
	"fmt"
	"strings"

	"github.com/resalign/resalign/nn"
)

// renaming says what a module of diffusers is called in the original layout, and what the modules inside it are called;
// names that inside does not list are the same in both.
type renaming struct {
	to     string
	inside map[string]string
}

// renamings are those of a component, by the path of the module in diffusers.
type renamings map[string]renaming

func (r renamings) add(from, to string, inside map[string]string) { r[from] = renaming{to, inside} }

// original translates a parameter's name.
func (r renamings) original(name string) (string, error) {
	for end := len(name); end > 0; end = strings.LastIndexByte(name[:end], '.') {
		module, ok := r[name[:end]]
		if !ok {
			continue
		}
		rest := strings.TrimPrefix(name[end:], ".")
		for from, to := range module.inside {
			if tail, ok := strings.CutPrefix(rest, from+"."); ok {
				rest = to + "." + tail
				break
			}
		}
		return module.to + "." + rest, nil
	}
	return "", fmt.Errorf("parameter %q has no counterpart in the original layout", name)
}

// links ties all parameters of a component, of the same form unless formOf says otherwise.
func (r renamings) links(specs []nn.Spec, formOf func(nn.Spec) form) ([]link, error) {
	links := make([]link, 0, len(specs))
	for _, s := range specs {
		original, err := r.original(s.Name)
		if err != nil {
			return nil, err
		}
		l := link{original: original, shape: s.Shape, names: []string{s.Name}}
		if formOf != nil && formOf(s) == pointwise {
			l.form, l.shape = pointwise, []int{s.Shape[0], s.Shape[1], 1, 1}
		}
		links = append(links, l)
	}
	return links, checkUnique(links)
}
