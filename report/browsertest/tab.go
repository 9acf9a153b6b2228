package browsertest

import (
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Look is how a page is looked at.
type Look struct {
	Width, Height int // of the window in CSS pixels; 0: 1440 × 900
	Dark          bool
	NoScripts     bool
}

// Tab is an open page.
type Tab struct {
	browser *Browser
	session string
	t       testing.TB

	loaded   chan struct{}
	problems []string // what the console says: errors, warnings, uncaught exceptions
	requests []string // addresses that were asked for
}

// Open opens a page and waits until it is loaded. It is closed with the test.
func (b *Browser) Open(t testing.TB, address string, look Look) *Tab {
	t.Helper()
	must := func(session, method string, params any) json.RawMessage {
		t.Helper()
		result, err := b.call(session, method, params)
		if err != nil {
			t.Fatal(err)
		}
		return result
	}
	type object = map[string]any
	var target struct{ TargetID string }
	var attached struct{ SessionID string }
	decode(t, must("", "Target.createTarget", object{"url": "about:blank"}), &target)
	decode(t, must("", "Target.attachToTarget", object{"targetId": target.TargetID, "flatten": true}), &attached)
	tab := &Tab{browser: b, session: attached.SessionID, t: t, loaded: make(chan struct{}, 16)}
	b.mu.Lock()
	b.tabs[tab.session] = tab
	b.mu.Unlock()
	t.Cleanup(func() { _, _ = b.call("", "Target.closeTarget", object{"targetId": target.TargetID}) })
	if look.Width == 0 {
		look.Width, look.Height = 1440, 900
	}
	scheme := "light"
	if look.Dark {
		scheme = "dark"
	}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		must(tab.session, domain+".enable", nil)
	}
	must(tab.session, "Emulation.setDeviceMetricsOverride", object{"width": look.Width, "height": look.Height, "deviceScaleFactor": 1, "mobile": false})
	must(tab.session, "Emulation.setEmulatedMedia", object{"features": []object{{"name": "prefers-color-scheme", "value": scheme}}})
	must(tab.session, "Emulation.setScriptExecutionDisabled", object{"value": look.NoScripts})
	must(tab.session, "Page.navigate", object{"url": address})
	select {
	case <-tab.loaded:
	case <-time.After(patience):
		t.Fatalf("%s was not loaded within %v", address, patience)
	}
	return tab
}

// note keeps what an event says; the browser's lock is held.
func (tab *Tab) note(m message) {
	var p struct {
		Type             string
		Args             []struct{ Value any }
		ExceptionDetails struct {
			Text      string
			Exception struct{ Description string }
		}
		Entry   struct{ Level, Text string }
		Request struct{ URL string }
	}
	_ = json.Unmarshal(m.Params, &p)
	switch m.Method {
	case "Page.loadEventFired":
		select {
		case tab.loaded <- struct{}{}:
		default:
		}
	case "Runtime.consoleAPICalled":
		if p.Type == "error" || p.Type == "warning" || p.Type == "assert" {
			tab.problems = append(tab.problems, fmt.Sprint(p.Type, " ", p.Args))
		}
	case "Runtime.exceptionThrown":
		tab.problems = append(tab.problems, p.ExceptionDetails.Text+" "+p.ExceptionDetails.Exception.Description)
	case "Log.entryAdded":
		if p.Entry.Level == "error" || p.Entry.Level == "warning" {
			tab.problems = append(tab.problems, p.Entry.Text)
		}
	case "Network.requestWillBeSent":
		tab.requests = append(tab.requests, p.Request.URL)
	}
}

// Problems are the errors, warnings and uncaught exceptions so far.
func (tab *Tab) Problems() []string {
	tab.browser.mu.Lock()
	defer tab.browser.mu.Unlock()
	return append([]string(nil), tab.problems...)
}

// Requests are the addresses that the page asked for so far, without what is embedded in it.
func (tab *Tab) Requests() (out []string) {
	tab.browser.mu.Lock()
	defer tab.browser.mu.Unlock()
	for _, address := range tab.requests {
		if !strings.HasPrefix(address, "data:") {
			out = append(out, address)
		}
	}
	return out
}

func (tab *Tab) call(method string, params any) json.RawMessage {
	tab.t.Helper()
	result, err := tab.browser.call(tab.session, method, params)
	if err != nil {
		tab.t.Fatal(err)
	}
	return result
}

// Eval stores the value of a JavaScript expression, awaited if it is a promise.
func (tab *Tab) Eval(expression string, into any) {
	tab.t.Helper()
	var answer struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	decode(tab.t, tab.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}), &answer)
	if e := answer.ExceptionDetails; e != nil {
		tab.t.Fatalf("%s: %s %s", expression, e.Text, e.Exception.Description)
	}
	if into != nil {
		decode(tab.t, answer.Result.Value, into)
	}
}

// Click clicks with the mouse into the middle of the first element that a selector finds.
func (tab *Tab) Click(selector string) {
	tab.t.Helper()
	var at *[2]float64
	tab.Eval(fmt.Sprintf(`(() => { const e = document.querySelector(%q); if (!e) return null; e.scrollIntoView({block: "center", inline: "center"});
		const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()`, selector), &at)
	if at == nil {
		tab.t.Fatalf("nothing on the page is %s", selector)
	}
	for _, kind := range []string{"mousePressed", "mouseReleased"} {
		tab.call("Input.dispatchMouseEvent", map[string]any{"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1})
	}
}

// keys are those that Press knows: their code and number.
var keys = map[string]struct {
	key, code string
	number    int
	text      string
}{"Tab": {"Tab", "Tab", 9, ""}, "Space": {" ", "Space", 32, " "}, "Enter": {"Enter", "Enter", 13, "\r"}}

// Press presses a key: Tab, Space or Enter.
func (tab *Tab) Press(name string) {
	tab.t.Helper()
	k, ok := keys[name]
	if !ok {
		tab.t.Fatalf("there is no key %q", name)
	}
	event := map[string]any{"type": "keyDown", "key": k.key, "code": k.code, "windowsVirtualKeyCode": k.number}
	if k.text != "" {
		event["text"] = k.text
	}
	tab.call("Input.dispatchKeyEvent", event)
	tab.call("Input.dispatchKeyEvent", map[string]any{"type": "keyUp", "key": k.key, "code": k.code, "windowsVirtualKeyCode": k.number})
}

// Screenshot writes the whole page as a PNG.
func (tab *Tab) Screenshot(path string) {
	tab.t.Helper()
	var shot struct{ Data string }
	decode(tab.t, tab.call("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}), &shot)
	content, err := base64.StdEncoding.DecodeString(shot.Data)
	if err == nil {
		err = os.WriteFile(path, content, 0o644)
	}
	if err != nil {
		tab.t.Fatal(err)
	}
}

//go:embed contrast.js
var contrast string

// Unreadable lists the visible texts whose contrast to what is behind them is below the ratio of WCAG AA, 4.5 to 1.
func (tab *Tab) Unreadable() (out []string) {
	tab.t.Helper()
	tab.Eval(contrast, &out)
	return out
}

// Overflow is by how many pixels the page is wider than its window.
func (tab *Tab) Overflow() (pixels int) {
	tab.t.Helper()
	tab.Eval("document.documentElement.scrollWidth - document.documentElement.clientWidth", &pixels)
	return pixels
}

func decode(t testing.TB, content json.RawMessage, into any) {
	t.Helper()
	if err := json.Unmarshal(content, into); err != nil {
		t.Fatalf("the browser answered %.200s: %v", content, err)
	}
}
