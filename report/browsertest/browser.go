// Package browsertest opens pages in a real browser, for tests: Chromium without a window, driven through its DevTools
// protocol over two pipes.
package browsertest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"
)

// Browser is a running browser.
type Browser struct {
	to *os.File

	mu      sync.Mutex
	next    int
	waiting map[int]chan message
	tabs    map[string]*Tab
	ended   error // why the browser says no more
}

// message is a command, its answer or an event.
type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

// patience is how long a command may take: browsers start slowly on a busy machine.
const patience = 60 * time.Second

// names are what the browser's program may be called.
var names = []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell"}

// find returns the browser's path; "" if there is none.
func find() string {
	if path := os.Getenv("RESALIGN_BROWSER"); path != "" {
		return path
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// Start starts a browser that ends with the test. The test is skipped where there is none: RESALIGN_BROWSER may name one.
func Start(t testing.TB) *Browser {
	t.Helper()
	path := find()
	if path == "" {
		t.Skip("no Chromium or Chrome is installed; install one, or set RESALIGN_BROWSER to its path, to run this test")
	}
	if runtime.GOOS == "windows" {
		t.Skip("a browser cannot be given pipes on Windows; run this test on another system")
	}
	commands, to, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	from, answers, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	profile := t.TempDir()
	cmd := exec.Command(path, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--no-default-browser-check",
		"--disable-gpu", "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--no-zygote", "--hide-scrollbars", "--user-data-dir="+profile, "about:blank")
	cmd.Env = append(os.Environ(), "HOME="+profile)
	cmd.ExtraFiles = []*os.File{commands, answers} // file descriptors 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatalf("the browser %s cannot be started: %v", path, err)
	}
	commands.Close()
	answers.Close()
	b := &Browser{to: to, waiting: map[int]chan message{}, tabs: map[string]*Tab{}}
	go b.listen(from)
	t.Cleanup(func() {
		_, _ = b.call("", "Browser.close", nil)
		exited := make(chan struct{})
		go func() { _ = cmd.Wait(); close(exited) }()
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
		to.Close()
		from.Close()
	})
	return b
}

// listen hands out what the browser says until it ends.
func (b *Browser) listen(from io.Reader) {
	lines := bufio.NewReaderSize(from, 1<<16)
	for {
		text, err := lines.ReadBytes(0)
		if err != nil {
			b.mu.Lock()
			b.ended = fmt.Errorf("the browser ended: %w", err)
			for _, c := range b.waiting {
				close(c)
			}
			b.waiting = map[int]chan message{}
			b.mu.Unlock()
			return
		}
		var m message
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue
		}
		b.mu.Lock()
		if c := b.waiting[m.ID]; c != nil {
			delete(b.waiting, m.ID)
			c <- m
		} else if tab := b.tabs[m.Session]; tab != nil && m.Method != "" {
			tab.note(m)
		}
		b.mu.Unlock()
	}
}

// call sends a command and waits for its answer.
func (b *Browser) call(session, method string, params any) (json.RawMessage, error) {
	content := json.RawMessage("{}")
	if params != nil {
		var err error
		if content, err = json.Marshal(params); err != nil {
			return nil, err
		}
	}
	answer := make(chan message, 1)
	b.mu.Lock()
	if b.ended != nil {
		defer b.mu.Unlock()
		return nil, b.ended
	}
	b.next++
	id := b.next
	b.waiting[id] = answer
	text, err := json.Marshal(message{ID: id, Session: session, Method: method, Params: content})
	if err == nil {
		_, err = b.to.Write(append(text, 0))
	}
	b.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", method, err)
	}
	select {
	case m, ok := <-answer:
		switch {
		case !ok:
			return nil, fmt.Errorf("%s: the browser ended", method)
		case m.Error != nil:
			return nil, fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		return m.Result, nil
	case <-time.After(patience):
		return nil, fmt.Errorf("%s: no answer within %v", method, patience)
	}
}
