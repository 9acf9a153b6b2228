package report

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// element is an element of a page, with the identifier of the nearest element around it that has one.
type element struct {
	name, inside string
	attributes   map[string]string
}

// parse reads a page, and fails if tags are not balanced, an attribute or an identifier occurs twice, or a label,
// a name or a description points nowhere. The page is written so that a reader of XML that knows HTML's void elements can
// read it.
func parse(t *testing.T, page string) []element {
	t.Helper()
	if !strings.HasPrefix(page, "<!DOCTYPE html>\n<html lang=") {
		t.Errorf("the page begins with %.60q", page)
	}
	d := xml.NewDecoder(strings.NewReader(page))
	d.Strict = false
	d.AutoClose = []string{"meta", "img", "input", "br"}
	d.Entity = xml.HTMLEntity
	var all []element
	var open, names []string
	ids := map[string]bool{}
	var refers []string
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the page cannot be parsed: %v", err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, attributes: map[string]string{}}
			if len(open) > 0 {
				e.inside = open[len(open)-1]
			}
			for _, a := range token.Attr {
				if _, twice := e.attributes[a.Name.Local]; twice {
					t.Errorf("<%s> has %s twice", e.name, a.Name.Local)
				}
				e.attributes[a.Name.Local] = a.Value
				switch a.Name.Local {
				case "aria-labelledby", "aria-describedby", "for":
					refers = append(refers, strings.Fields(a.Value)...)
				}
			}
			around := e.inside
			if id := e.attributes["id"]; id != "" {
				if ids[id] {
					t.Errorf("identifier %q occurs twice", id)
				}
				ids[id], around = true, id
			}
			all, open, names = append(all, e), append(open, around), append(names, e.name)
		case xml.EndElement:
			if len(names) == 0 || names[len(names)-1] != token.Name.Local {
				t.Fatalf("</%s> closes %v", token.Name.Local, names)
			}
			open, names = open[:len(open)-1], names[:len(names)-1]
		}
	}
	if len(names) > 0 {
		t.Errorf("never closed: %v", names)
	}
	for _, id := range refers {
		if !ids[id] {
			t.Errorf("nothing has the identifier %q", id)
		}
	}
	return all
}
