package browsertest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFaultsAreFound opens a page that has all that tests look for: what is never found cannot be trusted to be absent.
func TestFaultsAreFound(t *testing.T) {
	b := Start(t)
	path := filepath.Join(t.TempDir(), "faulty.html")
	page := `<!DOCTYPE html><title>Faulty</title><body style="background:#fff"><p style="color:#999">pale</p><p style="color:#000">dark</p>
<div style="width:3000px">wide</div><img src="missing.png"><input type="checkbox"><script>console.error("wrong"); throw new Error("thrown")</script>`
	if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
	tab := b.Open(t, "file://"+path, Look{Width: 390, Height: 800})
	problems := strings.Join(tab.Problems(), "\n")
	if !strings.Contains(problems, "wrong") || !strings.Contains(problems, "thrown") {
		t.Errorf("problems: %s", problems)
	}
	if r := tab.Requests(); len(r) != 2 || !strings.HasSuffix(r[1], "missing.png") {
		t.Errorf("requests: %v", r)
	}
	if u := tab.Unreadable(); len(u) != 1 || !strings.Contains(u[0], "pale") {
		t.Errorf("unreadable: %v", u)
	}
	if tab.Overflow() < 2000 {
		t.Errorf("overflow: %d", tab.Overflow())
	}
	var checked bool
	tab.Click("input")
	if tab.Eval("document.querySelector('input').checked", &checked); !checked {
		t.Error("a click does nothing")
	}
	tab.Press("Space")
	if tab.Eval("document.querySelector('input').checked", &checked); checked {
		t.Error("a key does nothing")
	}
	quiet := b.Open(t, "file://"+path, Look{NoScripts: true})
	if p := strings.Join(quiet.Problems(), "\n"); strings.Contains(p, "thrown") {
		t.Errorf("a script ran: %s", p)
	}
}
