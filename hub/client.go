package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// DefaultEndpoint is the public hub.
const DefaultEndpoint = "https://huggingface.co"

// Client knows where models come from and where they are kept. Make it with [FromEnvironment]; it may be used
// concurrently.
type Client struct {
	Endpoint  string // URL of the hub, without a slash at the end
	Cache     string // folder of the shared cache
	Offline   bool   // only what is in the cache may be used
	UserAgent string

	token secret
	http  *http.Client
	pause func(ctx context.Context, d time.Duration) error
	stall time.Duration // without a byte, after which a connection is given up
}

// secret is a token. It is held by a function so that nothing of it is seen when a client is printed.
type secret struct{ reveal func() string }

func hide(text string) secret { return secret{func() string { return text }} }

func (s secret) isSet() bool { return s.reveal != nil && s.reveal() != "" }

// FromEnvironment reads the variables that huggingface_hub reads, through env (os.Getenv): HF_ENDPOINT, HF_HUB_CACHE,
// HF_HOME, XDG_CACHE_HOME, HF_HUB_OFFLINE, HF_TOKEN, HF_TOKEN_PATH, and the token file that `hf auth login` writes.
func FromEnvironment(env func(string) string) (*Client, error) {
	c := &Client{Endpoint: DefaultEndpoint, stall: time.Minute, pause: sleep}
	if text := env("HF_ENDPOINT"); text != "" {
		c.Endpoint = strings.TrimRight(text, "/")
	}
	endpoint, err := url.Parse(c.Endpoint)
	if err != nil || endpoint.Scheme != "https" && endpoint.Scheme != "http" || endpoint.Host == "" || endpoint.User != nil || endpoint.RawQuery != "" {
		return nil, errors.New("HF_ENDPOINT is not the address of a hub; use one such as " + DefaultEndpoint)
	}
	home, err := hubHome(env)
	if err != nil {
		return nil, err
	}
	c.Cache = expand(first(env("HF_HUB_CACHE"), env("HUGGINGFACE_HUB_CACHE"), filepath.Join(home, "hub")), env)
	c.Offline = isTrue(first(env("HF_HUB_OFFLINE"), env("TRANSFORMERS_OFFLINE")))
	if c.token, err = readToken(env, home); err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true // sizes and ranges are those of the files
	c.http = &http.Client{Transport: transport, CheckRedirect: c.checkRedirect}
	return c, nil
}

// hubHome is the folder of everything that belongs to the hub.
func hubHome(env func(string) string) (string, error) {
	if home := env("HF_HOME"); home != "" {
		return expand(home, env), nil
	}
	if cache := env("XDG_CACHE_HOME"); cache != "" {
		return filepath.Join(expand(cache, env), "huggingface"), nil
	}
	user := userHome(env)
	if user == "" && env("HF_HUB_CACHE") == "" {
		return "", errors.New("there is no home folder for the cache of downloaded models; set HF_HOME to a folder")
	}
	return filepath.Join(user, ".cache", "huggingface"), nil
}

func userHome(env func(string) string) string { return first(env("HOME"), env("USERPROFILE")) }

func first(texts ...string) string {
	for _, s := range texts {
		if s != "" {
			return s
		}
	}
	return ""
}

// expand replaces variables and a leading ~ in a path, as huggingface_hub does.
func expand(path string, env func(string) string) string {
	path = os.Expand(path, env)
	if rest, ok := strings.CutPrefix(path, "~"); ok && (rest == "" || os.IsPathSeparator(rest[0])) {
		path = filepath.Join(userHome(env), rest)
	}
	return path
}

func isTrue(text string) bool {
	return slices.Contains([]string{"1", "ON", "YES", "TRUE"}, strings.ToUpper(text))
}

// maxTokenBytes bounds the token file; tokens have some forty bytes.
const maxTokenBytes = 4096

func readToken(env func(string) string, home string) (secret, error) {
	source, text := "HF_TOKEN", first(env("HF_TOKEN"), env("HUGGING_FACE_HUB_TOKEN"))
	if text == "" && !isTrue(env("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
		source = expand(first(env("HF_TOKEN_PATH"), filepath.Join(home, "token")), env)
		info, err := os.Stat(source)
		if errors.Is(err, fs.ErrNotExist) {
			return secret{}, nil
		}
		if err == nil && info.Mode().IsRegular() && info.Size() > maxTokenBytes {
			return secret{}, fmt.Errorf("%s has %d bytes, which is no access token; run `hf auth login` again, or set HF_TOKEN", source, info.Size())
		}
		content, err := os.ReadFile(source)
		if err != nil {
			return secret{}, fmt.Errorf("cannot read the access token: %w; set HF_TOKEN instead", err)
		}
		text = string(content)
	}
	text = strings.TrimSpace(text)
	for _, r := range text {
		if r <= ' ' || r > '~' {
			return secret{}, fmt.Errorf("%s holds characters that no access token has; copy the token again", source)
		}
	}
	return hide(text), nil
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkRedirect keeps the token to the endpoint, and encrypted connections encrypted.
func (c *Client) checkRedirect(request *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("the server redirects in a circle")
	}
	if via[len(via)-1].URL.Scheme == "https" && request.URL.Scheme != "https" {
		return fmt.Errorf("the server redirects from an encrypted connection to an open one at %s, which is refused", request.URL.Host)
	}
	if !c.isEndpoint(request.URL) {
		request.Header.Del("Authorization")
	}
	return nil
}

func (c *Client) isEndpoint(u *url.URL) bool {
	endpoint, err := url.Parse(c.Endpoint)
	return err == nil && u.Scheme == endpoint.Scheme && strings.EqualFold(u.Host, endpoint.Host)
}

// host is the endpoint's name for messages.
func (c *Client) host() string {
	_, host, _ := strings.Cut(c.Endpoint, "://")
	return host
}

// page is the address at which people see a model or a data set, and below which its files are.
func (c *Client) page(id ID) string {
	if id.Dataset {
		return c.Endpoint + "/" + id.route()
	}
	return c.Endpoint + "/" + id.Repo()
}
