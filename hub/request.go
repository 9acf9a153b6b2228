package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// temporaryError is one that goes away, so that trying again is worth while.
type temporaryError struct {
	err   error
	after time.Duration // what the server asks to wait; 0: it does not say
}

func (e *temporaryError) Error() string { return e.err.Error() }
func (e *temporaryError) Unwrap() error { return e.err }

const (
	apiAttempts  = 3
	fileAttempts = 6 // in a row without a byte of progress
	longestWait  = 5 * time.Minute
)

// wait waits before another attempt, longer each time, or returns the error where there is to be none.
func (c *Client) wait(ctx context.Context, err error, failures, attempts int) error {
	var temporary *temporaryError
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !errors.As(err, &temporary) || failures >= attempts {
		return err
	}
	d := time.Second << (failures - 1)
	if temporary.after > longestWait {
		return fmt.Errorf("%w, and asks to wait for %s; try again then", err, temporary.after)
	}
	return c.pause(ctx, max(d, temporary.after))
}

// get asks for a path below the endpoint, for a file from an offset on. Whoever gets the response closes its body.
// Errors name the model or data set and the remedy.
func (c *Client) get(ctx context.Context, id ID, address string, offset int64) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	if !c.isEndpoint(request.URL) {
		return nil, fmt.Errorf("%s: the hub sends on to another host, %s, which is refused", id, request.URL.Host)
	}
	request.Header.Set("Accept-Encoding", "identity")
	if c.UserAgent != "" {
		request.Header.Set("User-Agent", c.UserAgent)
	}
	if c.token.isSet() {
		request.Header.Set("Authorization", "Bearer "+c.token.reveal())
	}
	if offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.connectionError(ctx, id, err)
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
		return response, nil
	}
	defer response.Body.Close()
	return nil, c.statusError(id, response)
}

// connectionError explains why there is no response. Addresses are left out: those of storage hold signatures.
func (c *Client) connectionError(ctx context.Context, id ID, err error) error {
	if ctx.Err() != nil && !errors.Is(context.Cause(ctx), errStalled) {
		return context.Cause(ctx)
	}
	err = cause(ctx, err)
	host := c.host()
	if failed := new(url.Error); errors.As(err, &failed) {
		if u, parseErr := url.Parse(failed.URL); parseErr == nil && u.Host != "" {
			host = u.Host
		}
		err = failed.Err
	}
	return &temporaryError{err: fmt.Errorf(
		"%s: cannot reach %s: %w; check the network, or copy the %s's folder from another machine's cache to %s and set HF_HUB_OFFLINE=1", id, host, err, id.what(), c.Cache)}
}

// statusError explains a refusal.
func (c *Client) statusError(id ID, r *http.Response) error {
	code, status := r.Header.Get("X-Error-Code"), r.StatusCode
	licence := fmt.Sprintf("accept the licence at %s and set HF_TOKEN", c.page(id))
	if c.token.isSet() {
		licence = fmt.Sprintf("accept the licence at %s with the account that the token in use belongs to", c.page(id))
	}
	switch {
	case code == "GatedRepo" || status == http.StatusForbidden:
		return fmt.Errorf("%s: the %s is gated and access is refused (HTTP %d); %s", id, id.what(), status, licence)
	case code == "RevisionNotFound":
		return fmt.Errorf("%s: the %s has no revision %q; see %s/tree/main for those there are", id, id.what(), id.revision(), c.page(id))
	case code == "EntryNotFound":
		return fmt.Errorf("%s: the hub lists a file that it does not have (HTTP %d); try again later", id, status)
	case status == http.StatusUnauthorized && c.token.isSet():
		return fmt.Errorf("%s: access is refused (HTTP 401): the %s does not exist or is private, or the token in use has expired; check the name and HF_TOKEN", id, id.what())
	case status == http.StatusUnauthorized:
		return fmt.Errorf("%s: access is refused (HTTP 401): there is no such %s, or it is private or gated; check the name, or %s", id, id.what(), licence)
	case status == http.StatusNotFound:
		return fmt.Errorf("%s: %s has no such %s or revision (HTTP 404); check the name", id, c.host(), id.what())
	case status == http.StatusTooManyRequests:
		return &temporaryError{fmt.Errorf("%s: %s is being asked too often (HTTP 429)", id, c.host()), retryAfter(r)}
	case status == http.StatusRequestTimeout || status >= 500:
		return &temporaryError{fmt.Errorf("%s: %s fails (HTTP %d); try again later", id, c.host(), status), retryAfter(r)}
	}
	return fmt.Errorf("%s: %s answers with HTTP %d", id, c.host(), status)
}

// retryAfter is what the header of that name says, in seconds or as a date.
func retryAfter(r *http.Response) time.Duration {
	text := r.Header.Get("Retry-After")
	if seconds, err := strconv.Atoi(text); err == nil {
		return time.Duration(min(max(seconds, 0), 1<<30)) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(at))
	}
	return 0
}

// maxAnswer bounds what is read of one answer of the API; a page of 1000 files has some 300 kB.
const maxAnswer = 32 << 20

// getJSON decodes an answer of the API, and returns the address of its next page.
func (c *Client) getJSON(ctx context.Context, id ID, address string, into any) (next string, err error) {
	for failures := 1; ; failures++ {
		if next, err = c.tryJSON(ctx, id, address, into); err == nil {
			return next, nil
		}
		if err := c.wait(ctx, err, failures, apiAttempts); err != nil {
			return "", err
		}
	}
}

func (c *Client) tryJSON(ctx context.Context, id ID, address string, into any) (next string, err error) {
	ctx, watch, stop := watched(ctx, c.stall)
	defer stop()
	response, err := c.get(ctx, id, address, 0)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(watch(response.Body), maxAnswer+1))
	switch {
	case err != nil:
		return "", c.connectionError(ctx, id, err)
	case len(body) > maxAnswer:
		return "", fmt.Errorf("%s: an answer of %s is longer than %d bytes, which is not plausible", id, c.host(), maxAnswer)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return "", fmt.Errorf("%s: %s does not answer as a hub does (%w); check HF_ENDPOINT", id, c.host(), err)
	}
	return nextPage(response), nil
}

// nextPage is the address of the header Link with rel="next".
func nextPage(r *http.Response) string {
	for _, link := range strings.Split(r.Header.Get("Link"), ",") {
		address, attributes, ok := strings.Cut(strings.TrimSpace(link), ">")
		if ok && strings.HasPrefix(address, "<") && strings.Contains(attributes, `rel="next"`) {
			if u, err := r.Request.URL.Parse(address[1:]); err == nil {
				return u.String()
			}
		}
	}
	return ""
}

var errStalled = errors.New("nothing comes any more")

// watched is a context that ends with errStalled when nothing was read for a while.
func watched(ctx context.Context, stall time.Duration) (_ context.Context, watch func(io.Reader) io.Reader, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(stall, func() { cancel(errStalled) })
	watch = func(r io.Reader) io.Reader { return &watchedReader{r, func() { timer.Reset(stall) }} }
	return ctx, watch, func() {
		timer.Stop()
		cancel(nil)
	}
}

type watchedReader struct {
	io.Reader
	alive func()
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.alive()
	}
	return n, err
}
