package report

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/resalign/resalign/report/browsertest"
)

// saved writes a page to be opened, and returns its address.
func saved(t *testing.T, p Page) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	if err := Write(path, p); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

// TestPagesInABrowser opens pages as a reader does. With RESALIGN_SCREENSHOTS=DIR it leaves pictures of them to be looked at.
func TestPagesInABrowser(t *testing.T) {
	b := browsertest.Start(t)
	plainPage, rich := samplePage(t, 3), richPage(t)
	pages := map[string]string{"sample": saved(t, plainPage), "rich": saved(t, rich)}
	for name, address := range pages {
		for _, look := range []browsertest.Look{{Width: 390, Height: 844}, {Width: 1440, Height: 900, Dark: true}, {Width: 1440, Height: 900}, {Width: 390, Height: 844, Dark: true}} {
			tab := b.Open(t, address, look)
			where := fmt.Sprintf("%s-%d-%v", name, look.Width, map[bool]string{true: "dark", false: "light"}[look.Dark])
			if p := tab.Problems(); len(p) > 0 {
				t.Errorf("%s: the console says %q", where, p)
			}
			if r := tab.Requests(); len(r) != 1 || r[0] != address {
				t.Errorf("%s: asked for %q", where, r)
			}
			if o := tab.Overflow(); o > 0 {
				t.Errorf("%s: %d pixels too wide", where, o)
			}
			tab.Eval(`document.querySelectorAll("details").forEach((d) => d.open = true)`, nil)
			if u := tab.Unreadable(); len(u) > 0 {
				t.Errorf("%s: too pale: %q", where, u)
			}
			if dir := os.Getenv("RESALIGN_SCREENSHOTS"); dir != "" {
				tab.Screenshot(filepath.Join(dir, where+".png"))
			}
		}
	}
	t.Run("blur", func(t *testing.T) { blurIsLifted(t, b.Open(t, pages["sample"], browsertest.Look{})) })
	t.Run("blur without scripts", func(t *testing.T) { blurIsLifted(t, b.Open(t, pages["rich"], browsertest.Look{NoScripts: true})) })
	t.Run("sorting", func(t *testing.T) { tablesAreSorted(t, b.Open(t, pages["sample"], browsertest.Look{})) })
	t.Run("plots", func(t *testing.T) { plotsCarryTheirData(t, b.Open(t, pages["sample"], browsertest.Look{}), plainPage) })
	t.Run("without scripts", func(t *testing.T) {
		tab := b.Open(t, pages["sample"], browsertest.Look{NoScripts: true})
		var buttons, rows, marks int
		tab.Eval(`document.querySelectorAll("thead button").length`, &buttons)
		tab.Eval(`document.querySelectorAll("table.sortable tbody tr").length`, &rows)
		tab.Eval(`[...document.querySelectorAll(".series .mark")].filter((m) => m.getBoundingClientRect().width > 3).length`, &marks)
		if buttons != 0 || rows != len(plainPage.Rows) || marks < len(plainPage.Rows) {
			t.Errorf("%d sorting buttons, %d rows, %d marks", buttons, rows, marks)
		}
	})
}

// blurIsLifted reveals flagged pictures one at a time with the mouse, with the keyboard, and all together.
func blurIsLifted(t *testing.T, tab *browsertest.Tab) {
	blurred := func() (n int) {
		t.Helper()
		tab.Eval(`[...document.querySelectorAll(".tile img")].filter((i) => getComputedStyle(i).filter.includes("blur")).length`, &n)
		return n
	}
	var flagged, focused int
	tab.Eval(`document.querySelectorAll(".flagged").length`, &flagged)
	if n := blurred(); n != flagged || n < 3 {
		t.Fatalf("%d of %d flagged pictures are blurred", n, flagged)
	}
	tab.Click(".veil")
	if n := blurred(); n != flagged-1 {
		t.Errorf("after a click %d of %d are blurred", n, flagged)
	}
	tab.Press("Tab")
	tab.Press("Space")
	tab.Eval(`[...document.querySelectorAll(".veil input")].indexOf(document.activeElement)`, &focused)
	if n := blurred(); n != flagged-2 || focused != 1 {
		t.Errorf("after Tab and Space %d of %d are blurred; picture %d has the focus", n, flagged, focused)
	}
	tab.Press("Space")
	if n := blurred(); n != flagged-1 {
		t.Errorf("after Space again %d of %d are blurred", n, flagged)
	}
	tab.Click(".show-all")
	if n := blurred(); n != 0 {
		t.Errorf("%d are blurred after all were asked for", n)
	}
	if p := tab.Problems(); len(p) > 0 {
		t.Errorf("the console says %q", p)
	}
}

func tablesAreSorted(t *testing.T, tab *browsertest.Tab) {
	column := func(i int) (keys []string) {
		t.Helper()
		tab.Eval(fmt.Sprintf(`[...document.querySelectorAll("table.sortable tbody tr")].map((r) => r.cells[%d].dataset.v)`, i), &keys)
		return keys
	}
	ascending := func(keys []string) bool {
		return slices.IsSortedFunc(keys, func(a, b string) int {
			x, _ := strconv.ParseFloat(a, 64)
			y, _ := strconv.ParseFloat(b, 64)
			return int(1e6 * (x - y))
		})
	}
	const rate = 3
	before := column(rate)
	if ascending(before) {
		t.Fatal("the table is sorted before it is asked to be")
	}
	tab.Click("table.sortable thead th:nth-child(4) button")
	if !ascending(column(rate)) {
		t.Errorf("after a click: %v", column(rate))
	}
	tab.Press("Enter")
	down := column(rate)
	if slices.Reverse(down); !ascending(down) {
		t.Errorf("after Enter: %v", column(rate))
	}
	var sorted string
	if tab.Eval(`document.querySelector("[aria-sort]").getAttribute("aria-sort")`, &sorted); sorted != "descending" {
		t.Errorf("aria-sort is %q", sorted)
	}
	tab.Click("table.sortable thead th:nth-child(1) button")
	if names := column(0); !slices.IsSorted(names) {
		t.Errorf("by name: %v", names)
	}
}

// plotsCarryTheirData compares what is drawn, in pixels of the window, with what was measured.
func plotsCarryTheirData(t *testing.T, tab *browsertest.Tab, p Page) {
	var marks []struct {
		Model, Adaptation, Steps, K, N string
		Y                              float64 // of the middle, from the axis up, as a share of the plot's height
	}
	tab.Eval(`(() => {
		const svg = document.getElementById("ip-1"), axis = svg.querySelector(".axis").getBoundingClientRect();
		const rules = [...svg.querySelectorAll(".rule")].map((r) => r.getBoundingClientRect().y), top = Math.min(...rules);
		return [...svg.querySelectorAll(".series .mark")].map((m) => {
			const at = m.getBoundingClientRect();
			return { ...m.dataset, Y: (axis.y - at.y - at.height / 2) / (axis.y - top) };
		});
	})()`, &marks)
	if len(marks) != 4*len(sampleModels) {
		t.Fatalf("%d marks", len(marks))
	}
	for _, m := range marks {
		found := false
		for _, r := range p.Rows {
			if r.Model != m.Model || r.Adaptation != m.Adaptation || strconv.Itoa(r.Steps) != m.Steps {
				continue
			}
			found = true
			if m.K != strconv.Itoa(r.IP.K) || m.N != strconv.Itoa(r.IP.N) || m.Y-r.IP.Value() > 0.02 || r.IP.Value()-m.Y > 0.02 {
				t.Errorf("%s after %s of %s: drawn %s/%s at height %.3f, measured %v", m.Model, m.Steps, m.Adaptation, m.K, m.N, m.Y, r.IP)
			}
		}
		if !found {
			t.Errorf("nothing was measured for the mark %+v", m)
		}
	}
}
