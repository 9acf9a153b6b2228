package hub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

var errBusy = errors.New("locked by another process")

// lock takes the lock file that Python programs take for the same blob. busy is called once if another process has it.
func (c *Client) lock(ctx context.Context, path string, busy func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the cache: %w; set HF_HUB_CACHE to a folder that can be written to", err)
	}
	for waited := false; ; waited = true {
		err := tryLock(f)
		if err == nil {
			return func() { _ = f.Close() }, nil // which gives the lock back
		}
		if !errors.Is(err, errBusy) {
			return nil, errors.Join(fmt.Errorf("cannot lock %s: %w", path, err), f.Close())
		}
		if !waited {
			busy()
		}
		if err := sleep(ctx, 200*time.Millisecond); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
}
